"""EfficientNet-Lite's two exporters, ours and torch's: the same space, the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support import photos

from pixvec_server import bundle, catalog, export, lite_export
from pixvec_server.agreement import cosines, relative_error
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.backends.select import factory, installed
from pixvec_server.errors import BundleError, ExportError
from pixvec_server.models import efficientnet_lite
from pixvec_server.models.wheel import weights_file
from pixvec_server.probes import pictures
from pixvec_server.spec import ModelSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def batch(spec: ModelSpec) -> Any:
    """Return 24 seeded pictures and the sample photographs, in the size that the network takes."""
    assert spec.preprocess is not None
    size = spec.preprocess.height
    resized = [np.asarray(photos.image(name).resize((size, size))) for name in photos.NAMES]
    return np.concatenate([pictures(size, size, 24), np.stack(resized)])


def answers(made: bundle.Bundle, kind: Any, pixels: Any) -> dict[str, Any]:
    backend = factory(kind)(
        made, Placement(kind, "cpu", "fp32", "test"), BackendOptions(threads=2, instances=1)
    )
    parts = [
        backend.run("image", pixels[at : at + 8], lite_export.OUTPUTS) for at in range(0, len(pixels), 8)
    ]
    backend.close()
    return {name: np.concatenate([part[name] for part in parts]) for name in lite_export.OUTPUTS}


def test_both_exporters_make_the_same_bundle(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compares with torch's exporter, and torch is not installed")
    from pixvec_server import torch_export

    spec = catalog.find("efficientnet_lite0")
    ours = export.export(spec, tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    manifest = torch_export.write(spec, tmp_path / "theirs", lambda _text: None, "fp32")
    theirs = bundle.Bundle(tmp_path / "theirs", manifest)
    assert ours.manifest.weights_sha256 == manifest.weights_sha256
    assert ours.manifest.parity is not None
    assert ours.manifest.parity > 0.999999
    for output, record in manifest.outputs.items():
        own = ours.manifest.outputs[output]
        assert own.model_copy(update={"int8_scales": ()}) == record.model_copy(update={"int8_scales": ()})
        np.testing.assert_allclose(own.int8_scales, record.int8_scales, rtol=1e-4)
    pixels = batch(spec)
    reference = answers(theirs, "onnx", pixels)
    for kind in ("onnx", "openvino"):
        assert installed(kind)
        found = answers(ours, kind, pixels)
        for output in lite_export.OUTPUTS:
            assert cosines(found[output], reference[output]).min() >= 0.999999
            assert relative_error(found[output], reference[output]) < 1e-4


@pytest.mark.parametrize("name", ["efficientnet_lite1", "efficientnet_lite2"])
def test_the_larger_ones_give_timms_vectors(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="compares with torch, which is not installed")
    from pixvec_server.module import build
    from pixvec_server.torch_export import run_torch

    spec = catalog.find(name)
    made, built, pixels = export.export(spec, tmp_path / "made"), build(spec), batch(spec)
    assert made.manifest.weights_sha256 == built.weights_sha256
    found, reference = answers(made, "onnx", pixels), run_torch(built.image, pixels)
    for output in lite_export.OUTPUTS:
        assert cosines(found[output], reference[output]).min() >= 0.999999


@pytest.mark.parametrize(
    "settings",
    [{"input": 192}, {"input": 200}, {"input": 225}, {"profile": "pupyl-tf"}, {"normalize": False}],
    ids=str,
)
def test_other_preprocessing_gives_what_torch_gives(settings: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="compares with torch, which is not installed")
    from pixvec_server.module import build
    from pixvec_server.torch_export import run_torch

    spec = catalog.changed(catalog.find("efficientnet_lite0"), settings, "test")
    assert spec.preprocess is not None
    assert efficientnet_lite.is_supported(spec)
    pixels = pictures(spec.preprocess.height, spec.preprocess.width, 4)
    graph = efficientnet_lite.build_graph(spec, efficientnet_lite.read_weights(spec), "")
    (found,) = run_graph(graph, pixels, "features")
    expected = run_torch(build(spec).image, pixels)["features"]
    assert relative_error(found, expected) < 1e-4


def test_blue_before_red_is_turned() -> None:
    plain = catalog.find("efficientnet_lite0")
    assert plain.preprocess is not None
    turned = plain.model_copy(update={"preprocess": plain.preprocess.model_copy(update={"channels": "bgr"})})
    pixels, weights = pictures(224, 224, 2), efficientnet_lite.read_weights(plain)
    (found,) = run_graph(efficientnet_lite.build_graph(turned, weights, ""), pixels, "embedding")
    (expected,) = run_graph(efficientnet_lite.build_graph(plain, weights, ""), pixels[..., ::-1], "embedding")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def run_graph(graph: onnx.ModelProto, pixels: Any, output: str) -> list[Any]:
    import onnxruntime as ort

    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run([output], {"pixels": np.ascontiguousarray(pixels)})
    return found


def test_another_input_size_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = catalog.changed(catalog.find("efficientnet_lite0"), {"input": 96}, "test")
    parity = export.export(spec, tmp_path / "small").manifest.parity
    assert parity is not None
    assert parity > 0.999999
    monkeypatch.setattr(lite_export, "MIN_PARITY", 1.1)
    with pytest.raises(ExportError, match="agrees with timm only to cosine"):
        export.export(spec, tmp_path / "refused")


def test_a_changed_file_of_weights_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = catalog.find("efficientnet_lite0")
    data = bytearray(weights_file(spec.location).read_bytes())
    data[314] ^= 3
    changed = tmp_path / "weights.pth"
    changed.write_bytes(data)
    monkeypatch.setattr(efficientnet_lite, "weights_file", lambda _package: changed)
    with pytest.raises(BundleError, match=r"weights\.pth is not the published file.*reinstall"):
        efficientnet_lite.read_weights(spec)


def test_weights_of_another_network_are_refused() -> None:
    spec = catalog.find("efficientnet_lite0")
    larger = spec.model_copy(update={"source": catalog.find("efficientnet_lite1").source})
    with pytest.raises(BundleError, match="386 tensors, tf_efficientnet_lite0 296"):
        efficientnet_lite.read_weights(larger)
    assert not efficientnet_lite.is_supported(spec.model_copy(update={"source": "wheel:another-package"}))
    weights = efficientnet_lite.read_weights(spec)
    weights["blocks.3.1.bn2.weight"] = weights["bn1.weight"]
    with pytest.raises(BundleError, match="does not fit tf_efficientnet_lite0"):
        efficientnet_lite.build_graph(spec, weights, "")


@pytest.mark.parametrize(
    "changes", [{"weights": "none"}, {"layer": "logits"}, {"pool": "max"}, {"projection": "64"}], ids=str
)
def test_what_only_torch_can_make_is_left_to_torch(changes: dict[str, Any]) -> None:
    spec = catalog.find("efficientnet_lite0").model_copy(update=changes)
    assert not efficientnet_lite.is_supported(spec)


def test_a_graph_that_disagrees_with_timm_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = efficientnet_lite.build_graph

    def wrong(spec: ModelSpec, weights: Any, prefix: str) -> onnx.ModelProto:
        return right(spec, {**weights, "conv_stem.weight": weights["conv_stem.weight"][:, ::-1]}, prefix)

    monkeypatch.setattr(efficientnet_lite, "build_graph", wrong)
    with pytest.raises(ExportError, match="agrees with timm only to cosine"):
        export.export(catalog.find("efficientnet_lite0"), tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
