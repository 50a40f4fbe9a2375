"""What a bundle records of each output: its space, the sizes that it may be cut to, its INT8 scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixvec_server import bundle
from pixvec_server.manifest import OutputRecord
from pixvec_server.spec import EMBEDDING
from pixvec_server.vectors import int8_scale

if TYPE_CHECKING:
    from pixvec_server.spec import ModelSpec
    from pixvec_server.types import F32


def output_record(spec: ModelSpec, weights_sha256: str, name: str, answers: F32) -> OutputRecord:
    """Describe the output `name` of a spec's network; `answers` (n, …) are its values for probe inputs."""
    assert spec.preprocess is not None
    shape = answers.shape[1:]
    normalized = spec.normalize and name == EMBEDDING
    sizes = _sizes(spec, name, shape)
    trained = spec.trained if name == EMBEDDING else spec.weights != "none"
    return OutputRecord(
        space=bundle.space_id(weights_sha256, recipe(spec, name), spec.preprocess, trained=trained),
        shape=shape,
        dimensions=sizes,
        normalized=normalized,
        int8_scales=tuple(int8_scale(answers, size, normalized=normalized) for size in sizes),
    )


def recipe(spec: ModelSpec, output: str) -> str:
    """Say which vector an output is; outputs of one recipe are the same vector under two names."""
    layer = spec.layer if output == EMBEDDING else output
    pool = f"/{spec.pool}" if layer == "pooled" and spec.pool != "own" else ""
    projected = "/projection" if output == EMBEDDING and spec.projection else ""
    return f"{layer}{pool}{projected}"


def _sizes(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes that a vector may be cut to: its own, and those that the model was trained for."""
    if len(shape) != 1:
        return ()
    trained = [size for size in spec.dimensions if size < shape[0]] if name == EMBEDDING else []
    return (shape[0], *sorted(trained, reverse=True))
