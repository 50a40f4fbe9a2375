"""Makes a bundle: the module as an ONNX graph, checked against torch before it is kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import timm
import torch

from pixvec_server import bundle
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.backends.select import factory, installed
from pixvec_server.errors import ExportError
from pixvec_server.module import OUTPUTS, build

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixvec_server.backends.base import Kind
    from pixvec_server.catalog import Preset
    from pixvec_server.module import ImageModule
    from pixvec_server.types import F32, U8

# The graph must agree with its source to this cosine on every probe, or it is not kept.
MIN_PARITY = 0.9999
_PROBES = 24
_NORMALIZED = {"embedding": True, "logits": False, "features": False}
# Photographs that are none of the probes reach past the probes' largest value.
_INT8_HEADROOM = 1.25


def export(preset: Preset, folder: Path, say: Callable[[str], None] = lambda _text: None) -> bundle.Bundle:
    """Write a bundle into `folder`, whole or not at all. Returns it loaded and verified.

    Raises ExportError when the graph does not agree with torch to MIN_PARITY, BundleError when the source is
    missing or is not what the architecture expects.
    """
    say(f"{preset.name}: weights from {preset.source}")
    module, weights = build(preset)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        graph = scratch / "image.onnx"
        say(f"{preset.name}: writing the graph")
        _write_graph(module, preset, graph)
        images = probes(preset.height, preset.width)
        expected = _run_torch(module, images)
        manifest = _describe(preset, weights, expected, graph)
        say(f"{preset.name}: checking the graph against torch")
        parity = _parity(bundle.Bundle(scratch, manifest), images, expected)
        bundle.save(scratch, manifest.model_copy(update={"parity": parity}))
        _put(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return bundle.load(folder)


def probes(height: int, width: int, count: int = _PROBES) -> U8:
    """Return seeded pictures with the spectrum of photographs (1/f): (count, height, width, 3) uint8."""
    rng = np.random.default_rng(20_251)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    falloff = 1.0 / np.maximum(frequency, 1.0 / max(height, width))
    noise = rng.normal(size=(count, height, width, 3))
    spectrum = np.fft.fft2(noise, axes=(1, 2)) * falloff[None, :, :, None]
    waves = np.fft.ifft2(spectrum, axes=(1, 2)).real
    # Three channels that share most of their light, as in photographs.
    waves = 0.8 * waves.mean(axis=3, keepdims=True) + 0.4 * waves
    low, high = np.percentile(waves, (1, 99), axis=(1, 2, 3), keepdims=True)
    pixels: U8 = np.clip((waves - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return pixels


def _write_graph(module: ImageModule, preset: Preset, path: Path) -> None:
    example = (torch.zeros((2, preset.height, preset.width, 3), dtype=torch.uint8),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, not ours to mend
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=[bundle.GRAPH_PREFIX + name for name in OUTPUTS],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=4096)}},
        )
    if program is None:
        raise ExportError(f"{preset.name}: torch made no graph")
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))


def _run_torch(module: ImageModule, images: U8) -> dict[str, F32]:
    with torch.inference_mode():
        values = module(torch.from_numpy(images))
    return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}


def _describe(preset: Preset, weights: str, expected: dict[str, F32], graph: Path) -> bundle.Manifest:
    return bundle.Manifest(
        name=preset.name,
        aliases=preset.aliases,
        source=preset.source,
        weights_sha256=weights,
        licence=preset.licence,
        preprocess=preset.preprocess,
        outputs={name: _output(preset, weights, name, values) for name, values in expected.items()},
        files={graph.name: bundle.record(graph)},
        made_with={"torch": torch.__version__, "timm": timm.__version__, "onnx": onnx.__version__},
    )


def _output(preset: Preset, weights: str, name: str, values: F32) -> bundle.OutputRecord:
    shape = values.shape[1:]
    # These networks were not trained to be cut: the full size is the only one that means anything.
    sizes = shape if len(shape) == 1 else ()
    normalized = _NORMALIZED[name]
    unit = values / np.linalg.norm(values, axis=1, keepdims=True) if normalized else values
    scale = float(np.abs(unit).max()) * _INT8_HEADROOM / 127
    return bundle.OutputRecord(
        space=bundle.space_id(weights, name, preset.preprocess),
        shape=shape,
        dimensions=sizes,
        normalized=normalized,
        int8_scales=(scale,) * len(sizes),
    )


def _parity(made: bundle.Bundle, images: U8, expected: dict[str, F32]) -> float | None:
    """Return the worst cosine of any output and probe; None when no engine is here to run the graph."""
    kind: Kind = "onnx" if installed("onnx") else "openvino"
    if not installed(kind):
        return None
    options = BackendOptions(threads=os.cpu_count() or 1, instances=1)
    engine = factory(kind)(made, Placement(kind, "cpu", "fp32", "parity"), options)
    got = engine.run(images, OUTPUTS)
    engine.close()
    worst = min(float(_cosines(got[name], expected[name]).min()) for name in OUTPUTS)
    if not worst >= MIN_PARITY:
        raise ExportError(f"{made.manifest.name}: {kind} and torch agree only to cosine {worst:.6f}")
    return min(worst, 1.0)


def _cosines(left: F32, right: F32) -> F32:
    a, b = left.reshape(len(left), -1).astype(np.float64), right.reshape(len(right), -1).astype(np.float64)
    cosines: F32 = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


def _put(scratch: Path, folder: Path) -> None:
    """Move a finished bundle into place; another process's equal bundle may already be there."""
    try:
        scratch.rename(folder)
    except OSError as exc:
        if not (folder / bundle.MANIFEST).is_file():
            raise ExportError(
                f"{folder} is in the way: {exc.strerror}; remove it or choose another -o"
            ) from exc
