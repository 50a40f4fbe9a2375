"""Writes each tower of a model in torch as an ONNX graph, and checks it against torch."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import timm
import torch

from pixvec_server import bundle
from pixvec_server.agreement import cosines, relative_error
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.backends.select import computes_bf16, factory, installed
from pixvec_server.errors import ExportError
from pixvec_server.manifest import Manifest, TextRecord
from pixvec_server.models.outputs import output_record
from pixvec_server.module import build
from pixvec_server.module.text import TOKENIZER, write_tokenizer
from pixvec_server.probes import pictures, sentences
from pixvec_server.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from pixvec_server.backends.base import Kind
    from pixvec_server.manifest import Precision
    from pixvec_server.module import Built, ImageModule, TextModule
    from pixvec_server.spec import ModelSpec
    from pixvec_server.types import F32, U8

# The graph must agree with its source to this cosine on every probe, or it is not kept.
MIN_PARITY: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.98}
# And to this relative error of the vectors less their mean, which untrained networks cannot hide behind.
MAX_ERROR: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.3}
_TYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
_PROBES, _FEW_PROBES = 24, 4
# Networks of more parameters, or of a longer side in pixels, are checked on fewer pictures.
_MANY_PARAMETERS, _LONG_SIDE = 100_000_000, 400
# protobuf holds 2 GiB; the graph itself needs some of it.
_ONE_FILE_BYTES = 1_900_000_000
_BATCH = 8


@dataclass(frozen=True, slots=True)
class Checked:
    """One tower in torch: what it was asked and what it answered, by output."""

    module: ImageModule | TextModule
    asked: NDArray[np.uint8] | NDArray[np.int64]
    answered: dict[str, F32]


def write(spec: ModelSpec, scratch: Path, say: Callable[[str], None], precision: Precision) -> Manifest:
    """Write the graphs of a spec's towers into `scratch` and return the manifest.

    Raises ExportError when a graph does not agree with torch to MIN_PARITY, BundleError when the source is
    missing or is not what the architecture expects.
    """
    say(f"{spec.name}: weights from {spec.source}")
    built = build(spec, fused=False)
    text = _tokenizer(built, scratch)
    towers = {"image": _ask_image(built)}
    if built.text is not None and text is not None:
        towers["text"] = _ask_text(built.text, scratch, text)
    for name, tower in towers.items():
        say(f"{spec.name}: writing the {name} graph")
        if precision != "fp32":
            tower.module.narrow(_TYPES[precision])
        _write_graph(tower, scratch / f"{name}.onnx")
    manifest = _describe(built, text, towers, scratch, precision)
    say(f"{spec.name}: checking against torch")
    if precision == "bf16" and not computes_bf16():
        say(f"{spec.name}: this processor computes no bf16: the check is in fp32, and serving needs another")
    return manifest.model_copy(update={"parity": _parity(bundle.Bundle(scratch, manifest), towers)})


def _ask_image(built: Built) -> Checked:
    pixels = probe_pictures(built.spec)
    return Checked(built.image, pixels, run_torch(built.image, pixels))


def probe_pictures(spec: ModelSpec) -> U8:
    """Return the pictures that a model is checked on: fewer for one that takes seconds for each."""
    preprocess = spec.preprocess
    assert preprocess is not None
    large = (spec.parameters or 0) > _MANY_PARAMETERS or preprocess.height > _LONG_SIDE
    return pictures(preprocess.height, preprocess.width, _FEW_PROBES if large else _PROBES)


def _ask_text(module: TextModule, scratch: Path, text: TextRecord) -> Checked:
    tokenizer = TextTokenizer((scratch / text.tokenizer.file).read_bytes(), text.tokenizer)
    tokens = np.stack([tokenizer.encode(sentence).ids for sentence in sentences()])
    return Checked(module, tokens, run_torch(module, tokens))


def run_torch(
    module: ImageModule | TextModule, batch: NDArray[np.uint8] | NDArray[np.int64]
) -> dict[str, F32]:
    """Return a module's own answer, output by output."""
    with torch.inference_mode():
        parts = [module(torch.from_numpy(batch[at : at + _BATCH])) for at in range(0, len(batch), _BATCH)]
    joined = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
    return dict(zip(module.outputs, joined, strict=True))


def _tokenizer(built: Built, scratch: Path) -> TextRecord | None:
    if built.text is None:
        return None
    context = int(built.tokenizer.context_length)
    return TextRecord(tokenizer=write_tokenizer(built.tokenizer, context, scratch / TOKENIZER))


def _write_graph(tower: Checked, path: Path) -> None:
    module = tower.module
    name = "pixels" if tower.asked.dtype == np.uint8 else "tokens"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, not ours to mend
        program = torch.onnx.export(
            module,
            (torch.from_numpy(tower.asked[:2]),),
            dynamo=True,
            # The optimizer folds normalisation into convolutions in float32, whatever the others' type is.
            optimize=module.dtype == torch.float32,
            verbose=False,
            input_names=[name],
            output_names=[bundle.GRAPH_PREFIX + output for output in module.outputs],
            dynamic_shapes={name: {0: torch.export.Dim("batch", min=1, max=4096)}},
        )
    if program is None:
        raise ExportError(f"{path.name}: torch made no graph")
    program.save(str(path), external_data=_weight_bytes(module) > _ONE_FILE_BYTES)
    onnx.checker.check_model(str(path))


def _weight_bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def _describe(
    built: Built, text: TextRecord | None, towers: dict[str, Checked], scratch: Path, precision: Precision
) -> Manifest:
    spec = built.spec
    assert spec.preprocess is not None
    return Manifest(
        name=spec.name,
        aliases=spec.aliases,
        source=spec.source,
        weights_sha256=built.weights_sha256,
        licence=spec.licence,
        spec=spec,
        preprocess=spec.preprocess,
        outputs={
            name: output_record(spec, built.weights_sha256, name, _answers(towers, name))
            for name in built.image.outputs
        },
        precision=precision,
        text=text,
        prompts=spec.prompts if text is not None else {},
        trained=spec.trained,
        files={path.name: bundle.record(path) for path in sorted(scratch.iterdir())},
        made_with={"torch": torch.__version__, "timm": timm.__version__, "onnx": onnx.__version__},
        **built.facts,
    )


def _answers(towers: dict[str, Checked], name: str) -> F32:
    """Return all towers' answers of one output, one after the other."""
    return np.concatenate([tower.answered[name] for tower in towers.values() if name in tower.answered])


def _parity(made: bundle.Bundle, towers: dict[str, Checked]) -> float | None:
    """Return the worst cosine of any output and probe; None when no engine is here to run the graph."""
    manifest = made.manifest
    # OpenVINO reads bf16 graphs, onnxruntime's CPU engine does not.
    kinds: tuple[Kind, ...] = ("openvino",) if manifest.precision == "bf16" else ("onnx", "openvino")
    kind = next((kind for kind in kinds if installed(kind)), None)
    if kind is None:
        return None
    options = BackendOptions(threads=os.cpu_count() or 1, instances=1)
    engine = factory(kind)(made, Placement(kind, "cpu", manifest.precision, "parity"), options)
    answered: dict[str, dict[str, list[F32]]] = {name: {} for name in towers}
    for name, tower in towers.items():
        for at in range(0, len(tower.asked), _BATCH):
            got = engine.run(name, tower.asked[at : at + _BATCH], tuple(tower.answered))
            for output, values in got.items():
                answered[name].setdefault(output, []).append(values)
    engine.close()
    worst = 1.0
    for name, tower in towers.items():
        for output, values in tower.answered.items():
            worst = min(worst, _agree(np.concatenate(answered[name][output]), values, manifest, name, output))
    return worst


def _agree(ours: F32, theirs: F32, manifest: Manifest, tower: str, output: str) -> float:
    """Return the worst cosine. Raises ExportError when that or the relative error is too far off."""
    worst, error = float(cosines(ours, theirs).min()), relative_error(ours, theirs)
    if not (worst >= MIN_PARITY[manifest.precision] and error <= MAX_ERROR[manifest.precision]):
        raise ExportError(
            f"{manifest.name}: the {tower} graph's {output} agrees with torch only to cosine {worst:.6f}, "
            f"relative error {error:.1e} (at least {MIN_PARITY[manifest.precision]}, at most "
            f"{MAX_ERROR[manifest.precision]})"
        )
    return min(worst, 1.0)
