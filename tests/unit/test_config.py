"""Where settings come from, who wins, and what a mistake says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pixvec_server import config
from pixvec_server.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pixvec.toml"
    path.write_text(text)
    return path


def test_flags_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = _file(tmp_path, "[server]\nport = 1\nmetrics_port = 2\ndrain_s = 3\n")
    environ = {"PIXVEC_SERVER__PORT": "10", "PIXVEC_SERVER__METRICS_PORT": "20"}
    loaded = config.load(file, {"server.port": 100, "server.host": None}, environ).server
    assert (loaded.port, loaded.metrics_port, loaded.drain_s, loaded.host) == (100, 20, 3, "0.0.0.0")


def test_what_kubernetes_injects_is_not_ours() -> None:
    environ = {"PIXVEC_PORT": "tcp://10.0.0.1:50051", "PIXVEC_SERVICE_HOST": "10.0.0.1"}
    assert config.load(environ=environ) == config.load(environ={})


def test_lists_are_separated_by_commas() -> None:
    loaded = config.load(environ={"PIXVEC_LIMITS__FORMATS": "jpeg, png", "PIXVEC_MODEL__NAMES": "a,b=c"})
    assert loaded.limits.formats == ("jpeg", "png")
    assert loaded.model.names == ("a", "b=c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1\n", "unknown setting server.prot: did you mean server.port?"),
        ("[sever]\nport = 1\n", "unknown setting sever: did you mean server?"),
        ("[server]\nport = 70000\n", "server.port = 70000"),
        ("[decode]\nmode = 'quick'\n", "decode.mode = 'quick': Input should be 'exact' or 'fast'"),
        ("port = 1\n", "`port` must be a table"),
        ("[server\n", "not TOML"),
        ("[server]\ntls_cert_file = 'a'\n", "tls_cert_file and tls_key_file come together"),
        ("[server]\ntoken_file = 'a\\u0000b'\n".replace("'", '"'), "server.token_file"),
        ("[server]\nhost = 'unix'\n", "server.host"),
        ("[server]\nport = 9090\n", "port and metrics_port are both 9090"),
        ("[server]\ndrain_s = inf\n", "server.drain_s"),
        ("[limits]\nvectors = 2000\n", "limits.vectors is over batch.max_queue_items"),
    ],
)
def test_a_mistake_is_named_with_its_mend(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(_file(tmp_path, text), environ={})
    assert words in str(caught.value)


def test_an_unknown_environment_name_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match=r"server\.prt"):
        config.load(environ={"PIXVEC_SERVER__PRT": "1"})


@pytest.mark.parametrize("name", ["PIXVEC__PORT", "PIXVEC_SERVER__"])
def test_half_an_environment_name_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="SECTION__KEY"):
        config.load(environ={name: "1"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        config.load(tmp_path / "none.toml", environ={})


def test_sections_are_frozen() -> None:
    loaded: Any = config.load(environ={})
    with pytest.raises(ValueError, match="frozen"):
        loaded.server.port = 1


def test_the_cache_folder(tmp_path: Path) -> None:
    assert config.cache_folder({"PIXVEC_CACHE": str(tmp_path)}) == tmp_path
    assert config.cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "pixvec"


def test_the_reference_lists_every_setting() -> None:
    text = config.reference()
    for section, key, field in config._fields():
        assert f"`{section}.{key}`" in text
        assert field.description, f"{section}.{key} has no description"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model.cuda_graph": True, "model.tensorrt": True}, "choose one"),
        ({"decode.device": "cuda:1", "decode.mode": "fast"}, "decode.device = cuda:1 decodes in full"),
    ],
)
def test_settings_of_cuda_that_exclude_each_other_are_named(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.load(flags=flags, environ={})


@pytest.mark.parametrize("name", ["port", "metrics_port"])
@pytest.mark.parametrize("port", [99999, 65536, -1, "tcp://10.0.0.1:50051", "1.5"])
def test_a_port_that_no_host_has_is_an_error(name: str, port: Any) -> None:
    with pytest.raises(ConfigError, match=f"server.{name} = "):
        config.load(None, {f"server.{name}": port}, {})
    with pytest.raises(ConfigError, match=f"server.{name} = "):
        config.load(None, {}, {f"PIXVEC_SERVER__{name.upper()}": str(port)})


@pytest.mark.parametrize("name", ["host", "metrics_host"])
@pytest.mark.parametrize(
    "host", ["", "localhost:1", "0.0.0.0:99999", "[::1]", "http://host", "unix:/x", "a b"]
)
def test_a_host_that_is_no_address_is_an_error(name: str, host: str) -> None:
    with pytest.raises(ConfigError, match=rf"server.{name} = .*the port by its own setting"):
        config.load(None, {f"server.{name}": host}, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "pixvec-0.pixvec"])
def test_hosts_that_are_addresses(host: str) -> None:
    assert config.load(None, {"server.host": host}, {}).server.host == host
