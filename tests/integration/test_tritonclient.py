"""The real tritonclient against a real server, in an environment of its own: it wants an older protobuf."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import photos
from support.servers import ROOT, Server

import pixvec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
VERSION = "2.73.0"
HOME = ROOT / ".tools" / f"tritonclient-{VERSION}"
PROGRAMS = ROOT / "tests" / "support" / "programs"
PHOTOS = [photos.path(name) for name in ("chelsea.png", "rocket.jpg", "coffee.png")]


@pytest.fixture(scope="module")
def python() -> Path:
    """A Python that has tritonclient, what the server needs, and the checkout."""
    marker, found = HOME / "complete", HOME / "bin" / "python"
    if not marker.is_file():
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        install = [str(found), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"tritonclient[grpc]=={VERSION}", *_needs("server")], check=True)
        # Editable: what is tested is the checkout, whenever this was made.
        subprocess.run([*install, "--no-deps", "--editable", str(ROOT)], check=True)
        marker.touch()
    return found


def _needs(extra: str) -> list[str]:
    """Return what the checkout needs, without its constraints: they name a newer protobuf."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def _run(python: Path, program: str, *words: str | Path) -> Any:
    return json.loads(_output(python, ROOT, PROGRAMS / program, *words))


def _output(python: Path, folder: Path, *words: str | Path) -> str:
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("client", "server"))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [python, "-W", "error::UserWarning", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(python: Path, tiny_server: Server) -> Any:
    """What tritonclient was answered."""
    return _run(python, "tritonclient_calls.py", tiny_server.target, *PHOTOS)


@pytest.fixture(scope="module")
def expected(tiny_server: Server) -> Any:
    """The photographs' vectors by our own client, (3, 32)."""
    with pixvec.Client(tiny_server.target) as client:
        return client.embed_batch([path.read_bytes() for path in PHOTOS])


def _agree(got: Any, expected: Any) -> None:
    difference = float(np.abs(np.asarray(got) - np.asarray(expected)).max())
    assert difference < 1e-6, f"{difference} apart from pixvec.Client's vectors; expected 0"


@pytest.mark.parametrize("call", ["batch", "gzip", "deadline"])
def test_infer_answers_pixvecs_own_vectors(told: Any, expected: Any, call: str) -> None:
    _agree(told["infer"][call], expected)
    assert told["infer"]["dtype"] == "float32"
    assert told["infer"]["id"] == "mine"


def test_the_space_comes_with_the_answer(told: Any, tiny_server: Server) -> None:
    with pixvec.Client(tiny_server.target) as client:
        assert told["infer"]["space"] == client.embed_full(PHOTOS[0].read_bytes()).origins[0].space


def test_pixels_and_outputs_and_parameters(told: Any, tiny_server: Server) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (2, 20, 30, 3), np.uint8)
    with pixvec.Client(tiny_server.target) as client:
        _agree(told["infer"]["pixels"], client.embed_batch(list(pixels)))
        _agree(told["infer"]["unscaled"][0], client.embed(PHOTOS[0].read_bytes(), normalize=False))
    assert told["infer"]["features"] == [1, 3, 8, 8]


def test_async_infer_answers_each(told: Any, expected: Any) -> None:
    """In the order of the callbacks, which is none."""
    got = sorted(row for rows in told["later"] for row in rows)
    _agree(got, sorted(expected.tolist()))


def test_aio_infers(told: Any, expected: Any) -> None:
    _agree(told["aio"], expected)


def test_a_stream_goes_on_after_a_failing_message(told: Any, expected: Any) -> None:
    first, batch, failed, second, third = told["stream"]
    ids = [answer["id"] for answer in (first, batch, second, third)]
    assert ids == ["message-0", "message-1", "message-3", "message-4"]
    _agree([*first["rows"], *second["rows"], *third["rows"]], expected)
    _agree(batch["rows"], expected)
    assert failed["error"].startswith("inputs[0][0]")
    assert [answer["final"] for answer in (first, batch, second)] == [False, True, False]


def test_the_server_and_its_models_describe_themselves(told: Any) -> None:
    about = told["about"]
    assert (about["live"], about["ready"], about["model_ready"]) == (True, True, True)
    assert about["server"]["name"] == "pixvec"
    assert "statistics" in about["server"]["extensions"]
    assert about["model"]["inputs"] == [
        {"name": "pixels", "datatype": "UINT8", "shape": ["-1", "8", "8", "3"]}
    ]
    assert about["model"]["outputs"][0]["shape"] == ["-1", "32"]
    config = about["config"]["config"]
    assert (config["name"], config["max_batch_size"]) == ("tiny", 256)
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    assert config["output"][0]["data_type"] == "TYPE_FP32"
    assert "preferred_batch_size" in config["dynamic_batching"]
    [statistics] = about["statistics"]["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("tiny", "1")
    assert int(statistics["inference_stats"]["success"]["count"]) >= 10
    models = [(model["name"], model["state"]) for model in about["index"]["models"]]
    assert models == [("tiny", "READY"), ("tiny_pixels", "READY")]


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("model", "NOT_FOUND", "no model is called 'nobody'"),
        ("version", "NOT_FOUND", "not '2'"),
        ("image", "INVALID_ARGUMENT", "inputs[0][1]"),
        ("datatype", "INVALID_ARGUMENT", "'INT32': image is BYTES"),
        ("parameter", "INVALID_ARGUMENT", "parameters.colour"),
        ("sequence", "INVALID_ARGUMENT", "parameters.sequence_"),
        ("classification", "INVALID_ARGUMENT", "outputs[0].parameters.classification"),
        ("region", "INVALID_ARGUMENT", "inputs[0].parameters.shared_memory_region"),
        ("load", "UNIMPLEMENTED", ""),
        ("unload", "UNIMPLEMENTED", ""),
        ("memory", "UNIMPLEMENTED", ""),
        ("cuda", "UNIMPLEMENTED", ""),
        ("trace", "UNIMPLEMENTED", ""),
        ("logging", "UNIMPLEMENTED", ""),
    ],
)
def test_errors_have_the_codes_that_clients_look_for(told: Any, what: str, code: str, words: str) -> None:
    error = told["errors"][what]
    assert error["status"] == f"StatusCode.{code}"
    assert words in error["message"]


def test_the_pages_example_runs(python: Path, tiny_server: Server, expected: Any, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "open-inference.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name, photo in zip(("cat.jpg", "dog.jpg"), PHOTOS, strict=False):
        shutil.copy(photo, tmp_path / name)
    program = block.replace("localhost:50051", tiny_server.target).replace("efficientnet_lite0", "tiny")
    last = "import json; print(json.dumps([vectors.tolist(), space]))"
    vectors, space = json.loads(_output(python, tmp_path, "-c", f"{program}\n{last}"))
    _agree(vectors, expected[:2])
    assert space.startswith("s1-")


@pytest.mark.parametrize("order", ["pixvec", "tritonclient"])
def test_one_process_holds_both_protocols(
    python: Path, tiny_server: Server, expected: Any, order: str
) -> None:
    answers = _run(python, "both_protocols.py", order, tiny_server.target, PHOTOS[0])
    for vector in answers.values():
        _agree(vector, expected[0])
    assert set(answers) == {"pixvec", "tritonclient", "plain"}
