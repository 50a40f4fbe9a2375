"""Bundles: what is written, in which precision, and that they are served where there is no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import photos
from support.processor import needs_bf16
from support.servers import ROOT, environment, serve

import pixvec
from pixvec_server import bundle, export, provision, torch_export
from pixvec_server.agreement import relative_error
from pixvec_server.backends.base import BackendOptions
from pixvec_server.backends.select import choose, factory
from pixvec_server.config import TEST_CPU
from pixvec_server.errors import BackendError, BundleError, ExportError
from pixvec_server.offline import Offline
from pixvec_server.probes import pictures
from pixvec_server.spec import ModelSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
CATS = range(281, 286)
TINY = "tiny=timm:test_resnet.r160_in1k?weights=none"
PICTURES = pictures(160, 160, 8)


def spec(text: str) -> ModelSpec:
    found = provision.parse(text).spec
    assert found is not None
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return export.export(spec(TINY), tmp_path_factory.mktemp("plain") / "tiny")


def run(made: bundle.Bundle, kind: str, precision: str = "auto") -> Any:
    place = choose(kind, "cpu", precision, stored=made.manifest.precision)
    engine = factory(place.kind)(made, place, BackendOptions(threads=2, instances=1))
    found = engine.run("image", PICTURES, ("embedding",))["embedding"]
    engine.close()
    return found


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_with_real_weights_a_cat_is_a_cat(name: str) -> None:
    with serve("--model", name) as server, pixvec.Client(server.target) as client:
        logits = client.embed(photos.data("chelsea.png"), output="logits")
        assert client.model(name).parity >= 0.9999  # type: ignore[operator] # it was checked
    assert int(np.argmax(logits)) in CATS
    assert set(np.argsort(-logits)[:3]) <= set(CATS)


@pytest.mark.parametrize(
    ("precision", "kind", "most"),
    [("fp16", "onnx", 0.01), pytest.param("bf16", "openvino", 0.1, marks=needs_bf16)],
)
def test_a_narrow_bundle_is_half_the_size_and_nearly_the_same(
    plain: bundle.Bundle, precision: Any, kind: str, most: float, tmp_path: Path
) -> None:
    made = export.export(spec(TINY), tmp_path / precision, precision=precision)
    files = made.manifest.files["image.onnx"], plain.manifest.files["image.onnx"]
    # The weights are half; the names of the nodes are not.
    assert files[0].bytes < 0.75 * files[1].bytes
    assert made.manifest.precision == precision
    assert made.manifest.outputs["embedding"].space == plain.manifest.outputs["embedding"].space
    assert 1e-6 < relative_error(run(made, kind), run(plain, "onnx")) < most
    with pytest.raises(BackendError, match="export it in fp32"):
        choose(kind, "cpu", "fp32", stored=precision)


def test_a_bf16_bundle_is_made_and_checked_where_it_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TEST_CPU, "baseline")
    said: list[str] = []
    made = export.export(spec(TINY), tmp_path / "bf16", said.append, precision="bf16")
    assert any("this processor computes no bf16" in line for line in said)
    assert made.manifest.parity is not None
    assert 0.99 <= made.manifest.parity < 0.9999999
    for kind in ("auto", "openvino", "onnx", "torch"):
        with pytest.raises(BackendError, match=r"a bundle stored in bf16 cannot run here.*export it in fp32"):
            choose(kind, "cpu", "auto", stored="bf16")


def test_torch_emulates_bf16_where_it_is_asked_to_and_warns(plain: bundle.Bundle) -> None:
    flags = ("--model", f"tiny={plain.folder}", "--backend", "torch", "--precision", "bf16")
    files = [photos.data(name) for name in ("rocket.jpg", "chelsea.png", "astronaut.png")]
    with Offline(plain) as fp32:
        expected = fp32.embed_images(files, ("embedding",)).values["embedding"]
    with serve(*flags, env={TEST_CPU: "baseline"}) as server, pixvec.Client(server.target) as client:
        found = np.stack([client.embed(data, normalize=False) for data in files])
        [warning] = [line for line in server.lines() if "bf16 is emulated" in line["event"]]
    assert 1e-4 < relative_error(found, expected) < 0.1
    assert warning["level"] == "warning"
    assert "precision fp32" in warning["alternatives"]


def test_build_tells_the_precision(tmp_path: Path) -> None:
    export.export(spec(TINY), tmp_path / "half", precision="fp16")
    with serve("--model", f"tiny={tmp_path / 'half'}") as server, pixvec.Client(server.target) as client:
        assert "-fp16/" in client.embed_full(photos.data("rocket.jpg")).origins[0].build


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose weights lie beside its graph, as those of networks past 2 GiB do."""
    monkeypatch.setattr(torch_export, "_ONE_FILE_BYTES", 0)
    export.export(spec(TINY), tmp_path / "split")
    return tmp_path / "split"


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_weights_beside_the_graph_are_read(split: Path, plain: bundle.Bundle, kind: str) -> None:
    made = bundle.load(split)
    assert set(made.manifest.files) == {"image.onnx", "image.onnx.data"}
    assert relative_error(run(made, kind), run(plain, kind)) < 1e-5


def test_weights_beside_the_graph_are_verified(split: Path) -> None:
    data = bytearray((split / "image.onnx.data").read_bytes())
    data[100] ^= 1
    (split / "image.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"image\.onnx\.data is not the file"):
        bundle.load(split)


def test_a_graph_that_disagrees_with_its_source_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = torch_export._write_graph

    def poisoned(tower: Any, path: Path) -> None:
        with_other = tower.module.pixel_mean.clone()
        tower.module.pixel_mean += 5
        written(tower, path)
        tower.module.pixel_mean.copy_(with_other)

    monkeypatch.setattr(torch_export, "_write_graph", poisoned)
    with pytest.raises(ExportError, match="agrees with torch only to cosine"):
        export.export(spec(TINY), tmp_path / "poisoned")
    assert list(tmp_path.iterdir()) == []


def test_random_projections_are_said_to_be_untrained(tmp_path: Path) -> None:
    said: list[str] = []
    made = export.export(spec("efficientnet_lite0?projection=64"), tmp_path / "head", said.append)
    assert any("RANDOM" in line for line in said)
    assert made.manifest.outputs["embedding"].shape == (64,)
    assert "untrained" in made.manifest.outputs["embedding"].space
    assert "untrained" not in made.manifest.outputs["pooled"].space


@pytest.mark.timeout(400)
def test_without_torch_the_default_model_and_bundles_are_served(tmp_path: Path, plain: bundle.Bundle) -> None:
    """A real virtual environment with the extras server and cpu alone, and an empty cache."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{ROOT}[server,cpu]"], check=True)
    expected = plain.manifest.outputs["embedding"].shape
    flags = ("--model", f"tiny={plain.folder}")
    with serve(*flags, python=python) as server, pixvec.Client(server.target) as client:
        assert client.embed(photos.data("rocket.jpg")).shape == expected
    fresh = {"PIXVEC_CACHE": str(tmp_path / "cache")}
    with serve(python=python, env=fresh) as server, pixvec.Client(server.target) as client:
        assert int(np.argmax(client.embed(photos.data("chelsea.png"), output="logits"))) in CATS
        assert client.model().parity >= 0.999999  # type: ignore[operator] # it was checked
    needs = (
        "import importlib.util as u; print([m for m in ('torch', 'timm', 'onnxscript') if u.find_spec(m)])"
    )
    done = subprocess.run([python, "-c", needs], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    command: list[str | Path] = [
        python,
        "-m",
        "pixvec_server",
        "serve",
        "--model",
        "densenet121",
        "--port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 1
    assert "pip install 'pixvec[torch]'" in done.stderr
