"""What a caller wants of a model's output, checked against its manifest, and how a vector gets that form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixvec_server import vectors
from pixvec_server.errors import BadOptionError, NonFiniteError, RequestError, SpaceMismatchError
from pixvec_server.spec import EMBEDDING
from pixvec_server.types import Encoding, Origin, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pixvec_server.manifest import Manifest, OutputRecord
    from pixvec_server.types import F32, Target


@dataclass(frozen=True, slots=True)
class Projection:
    """What makes a derived output of another one: (x - mean) W, x as that output is served."""

    of: str
    unit: bool
    mean: F32
    components: F32

    def apply(self, values: F32) -> F32:
        """Project one vector (n,) to (dimensions,)."""
        x = vectors.unit(values) if self.unit else values
        projected: F32 = self.components @ (x - self.mean)
        return projected


@dataclass(frozen=True, slots=True)
class Form:
    """A target, resolved against its model: which output, cut to what, in which form.

    `graph_output` is the one that the network computes; it differs from `output` where that is derived.
    """

    output: str
    size: int | None
    normalize: bool
    encoding: Encoding
    scale: float | None
    shape: tuple[int, ...]
    origin: Origin
    projection: Projection | None = None

    @property
    def graph_output(self) -> str:
        """Name of the network's own output that the vector is made of."""
        return self.output if self.projection is None else self.projection.of

    @property
    def answer_bytes(self) -> int:
        """Bytes of one vector in this form."""
        return vectors.encoded_bytes(self.encoding, self.shape)

    def finish(self, values: F32) -> F32:
        """Project, cut, then normalise; float32. Raises NonFiniteError for NaN or infinity."""
        if not np.isfinite(values).all():
            raise NonFiniteError("the model answered NaN or infinity for this input", field=self.output)
        projected = values if self.projection is None else self.projection.apply(values)
        cut = projected if self.size is None else projected[: self.size]
        return vectors.unit(cut) if self.normalize else cut


def finish(values: Mapping[str, F32], form: Form) -> Vector | RequestError:
    """Return one answer of an inference's outputs, or the error of its own."""
    try:
        return vectors.encode(form.finish(values[form.graph_output]), form.encoding, form.scale)
    except RequestError as exc:
        return exc


def output_of(manifest: Manifest, name: str) -> OutputRecord:
    """Return an output by name. Raises BadOptionError that lists the model's outputs."""
    record = manifest.outputs.get(name)
    if record is None:
        known = ", ".join(manifest.outputs)
        raise BadOptionError(f"model {manifest.name} has no output {name!r}; it has {known}", field="output")
    return record


def resolve(
    manifest: Manifest,
    target: Target,
    build: Callable[[str], str],
    projections: Mapping[str, Projection],
) -> Form:
    """Check a target against a model.

    Raises BadOptionError or SpaceMismatchError that names the field, the value and what there is.
    """
    name = target.output or EMBEDDING
    record = output_of(manifest, name)
    if target.space and target.space != record.space:
        raise SpaceMismatchError(
            f"{manifest.name}.{name} is in space {record.space}, not in the pinned {target.space}",
            field="space",
        )
    size = _size(manifest, name, record, target.dimensions)
    normalize = record.normalized if target.normalize is None else target.normalize
    if normalize and len(record.shape) != 1:
        raise BadOptionError(
            f"{name} is a map of shape {list(record.shape)}: unset normalize", field="normalize"
        )
    form = Form(
        output=name,
        size=size,
        normalize=normalize,
        encoding=target.encoding,
        scale=_int8_scale(name, record, target.encoding, size, normalize=normalize),
        shape=record.shape if size is None else (size,),
        origin=Origin(manifest.name, record.space, build(name), normalize),
        projection=projections.get(name),
    )
    _ = form.answer_bytes  # refuses a size that BINARY cannot pack
    return form


def _size(manifest: Manifest, name: str, record: OutputRecord, wanted: int | None) -> int | None:
    if wanted is None:
        return record.dimensions[0] if record.dimensions else None
    if wanted not in record.dimensions:
        has = f"has sizes {list(record.dimensions)}" if record.dimensions else "is a map and cannot be cut"
        raise BadOptionError(f"dimensions = {wanted}: {manifest.name}.{name} {has}", field="dimensions")
    return wanted


def _int8_scale(
    name: str, record: OutputRecord, encoding: Encoding, size: int | None, *, normalize: bool
) -> float | None:
    if encoding is Encoding.UINT8:
        raise BadOptionError("UINT8 is for pixels; vectors come as INT8 or BINARY", field="encoding")
    if encoding is not Encoding.INT8:
        return None
    if size is None or not record.int8_scales:
        raise BadOptionError(f"{name} has no INT8 scale: ask for FLOAT16", field="encoding")
    if normalize != record.normalized:
        raise BadOptionError(
            f"INT8 is calibrated for normalize = {str(record.normalized).lower()}: unset normalize",
            field="normalize",
        )
    return record.int8_scales[record.dimensions.index(size)]
