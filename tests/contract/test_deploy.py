"""The images and manifests of deploy/: linted, valid, and in step with the server that they run."""

import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from kubernetes_validate import utils as kubernetes

from pixvec._version import __version__
from pixvec_server.cli import app
from pixvec_server.config import Config, load

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE = DEPLOY / "kubernetes/base"
IMAGES = {"cpu": f"pixvec:{__version__}", "cuda": f"pixvec:{__version__}-cuda"}
SETTINGS = load(BASE / "config.toml", environ={})
each_kind = pytest.mark.parametrize("kind", IMAGES)


def read(path: Path) -> Any:
    [manifest] = kubernetes.resources_from_file(str(path))
    return manifest


def merged(under: Any, over: Any) -> Any:
    """Lay a strategic merge patch over a manifest, as kustomize does: lists of named items merge by name."""
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {key: merged(under.get(key), value) for key, value in over.items()}
    if isinstance(under, list) and all(isinstance(item, dict) and "name" in item for item in under + over):
        patches = {item["name"]: item for item in over}
        return [merged(item, patches.get(item["name"], {})) for item in under]
    return over


MANIFESTS = {path.name: read(path) for path in BASE.glob("*.yaml") if path.stem != "kustomization"}
DEPLOYMENTS = {"cpu": MANIFESTS["deployment.yaml"]}
DEPLOYMENTS["cuda"] = merged(DEPLOYMENTS["cpu"], read(DEPLOY / "kubernetes/cuda/deployment.yaml"))


def stages(kind: str) -> dict[str, list[tuple[str, str]]]:
    """Return a Dockerfile's instructions by stage: (name, the rest with continuations joined)."""
    lines = (DEPLOY / f"docker/Dockerfile.{kind}").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {"": []}
    for word, rest in (line.split(maxsplit=1) for line in text.splitlines() if line.strip()):
        if word == "FROM":
            found[rest.split()[-1]] = []
        list(found.values())[-1].append((word, rest))
    return found


def check_serve(arguments: list[str]) -> None:
    assert arguments[0] == "serve"
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    serve.make_context("serve", arguments[1:])


@each_kind
def test_the_dockerfile_is_clean(kind: str) -> None:
    path = DEPLOY / f"docker/Dockerfile.{kind}"
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    command = [str(hadolint), "--disable-ignore-pragma", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"-f deploy/docker/{path.name} -t {IMAGES[kind]} ." in path.read_text()
    assert set(re.findall(r"ARG VERSION=(\S+)", path.read_text())) == {__version__}
    allowed = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    sources = [name for word, rest in stages(kind)["wheel"] if word == "COPY" for name in rest.split()[:-1]]
    assert {f"!{name}" for name in sources} == {line for line in allowed if line.startswith("!")}
    assert all((DEPLOY.parent / name).exists() for name in sources)


@pytest.mark.parametrize(("kind", "engine"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_the_image_is_the_server_and_nothing_more(kind: str, engine: str) -> None:
    found = stages(kind)
    assert list(found)[-1] == "server"
    final = dict(found["server"])
    assert not {"RUN", "ADD"} & set(final)
    assert final["USER"] == "65532:65532"
    assert json.loads(final["ENTRYPOINT"]) == ["pixvec-server"]
    check_serve(json.loads(final["CMD"]))
    assert final["EXPOSE"].split() == [str(Config().server.port), str(Config().server.metrics_port)]
    copied = [rest for word, rest in found["server"] if word == "COPY"]
    cache = re.findall(r"PIXVEC_CACHE=(\S+)", final["ENV"])[0]
    assert copied == ["--from=venv /opt/pixvec/venv /opt/pixvec/venv", f"--from=bundle {cache} {cache}"]
    assert re.findall(r"whl\[(.*?)\]", str(found["venv"])) == [f"server,{engine}"]
    made = re.findall(r"PIXVEC_CACHE=(\S+) \S*pixvec-server export (\S+)", str(found["bundle"]))
    assert made == [(cache, Config().served[0])]
    assert not [words for words in found.values() if "torch" in str(words)]


def test_every_setting_that_is_named_exists() -> None:
    Config.model_validate(tomllib.loads((BASE / "config.toml").read_text().replace("#~ ", "")))
    known = {f"{table}__{key}".upper() for table, keys in Config().model_dump().items() for key in keys}
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())
    assert set(re.findall(r"PIXVEC_(\w+)", text)) <= known | {"CACHE", "SECTION__KEY"}


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_the_manifests_are_valid(version: str, tmp_path: Path) -> None:
    listed = read(BASE / "kustomization.yaml")
    assert set(listed["resources"]) == set(MANIFESTS)
    with_tokens = tmp_path / "deployment.yaml"
    with_tokens.write_text((BASE / "deployment.yaml").read_text().replace("#~ ", ""))
    for manifest in [*MANIFESTS.values(), DEPLOYMENTS["cuda"], read(with_tokens)]:
        assert kubernetes.validate(manifest, version, strict=True) == version
        assert "namespace" not in manifest["metadata"]


@each_kind
def test_the_pod_fits_the_server(kind: str) -> None:
    template = DEPLOYMENTS[kind]["spec"]["template"]
    [container] = template["spec"]["containers"]
    server, ready = SETTINGS.server, container["readinessProbe"]
    assert container["image"] == IMAGES[kind]
    check_serve(container["args"])
    assert [each["containerPort"] for each in container["ports"]] == [server.port, server.metrics_port]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(server.metrics_port)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": server.port}
    assert server.lame_duck_s >= ready["periodSeconds"] * ready["failureThreshold"]
    assert template["spec"]["terminationGracePeriodSeconds"] >= server.lame_duck_s + server.drain_s + 5
    limits = container["resources"]["limits"]
    held = 4 * SETTINGS.decode.max_pixels_in_hand + SETTINGS.batch.max_queue_bytes + 5 * 10**8
    assert int(limits["memory"].removesuffix("Gi")) << 30 >= held
    assert ("nvidia.com/gpu" in limits) == (kind == "cuda")


@each_kind
def test_the_pod_is_restricted(kind: str) -> None:
    spec = DEPLOYMENTS[kind]["spec"]["template"]["spec"]
    own = spec["containers"][0]["securityContext"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert spec["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 65532}.items()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert all({"configMap", "emptyDir"} & set(volume) for volume in spec["volumes"])
