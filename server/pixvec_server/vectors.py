"""From an output's float32 values to the bytes of an answer, and back: cut, normalise, encode."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixvec_server.errors import BadOptionError, UndecodableError
from pixvec_server.types import F32, Encoding, Vector

_NUMPY: dict[Encoding, np.dtype[Any]] = {
    Encoding.FLOAT32: np.dtype("<f4"),
    Encoding.FLOAT16: np.dtype("<f2"),
    Encoding.BFLOAT16: np.dtype("<u2"),
    Encoding.INT8: np.dtype("i1"),
    Encoding.UINT8: np.dtype("u1"),
}
_MAX_AXES = 4
# Photographs that are none of the probes reach past the probes' largest value.
_INT8_HEADROOM, _LEAST = 1.25, 1e-12
# From here on a binary32 rounds to infinity in binary16.
_FLOAT16_MAX = 65520.0


def unit(values: F32) -> F32:
    """Scale to Euclidean length 1; a zero vector stays zero."""
    length = np.linalg.norm(values)
    return values if length == 0 else (values / length).astype(np.float32, copy=False)


def encode(values: F32, encoding: Encoding, scale: float | None = None) -> Vector:
    """Encode finite float32 values of any shape; INT8 takes `scale`.

    Raises BadOptionError when float16 cannot hold a value.
    """
    shape = values.shape
    if encoding is Encoding.FLOAT32:
        return Vector(encoding, shape, np.ascontiguousarray(values, "<f4").tobytes())
    if encoding is Encoding.FLOAT16:
        if float(np.abs(values).max(initial=0.0)) >= _FLOAT16_MAX:
            raise BadOptionError(
                "a value is over float16's 65504: ask for BFLOAT16 or FLOAT32", field="encoding"
            )
        return Vector(encoding, shape, values.astype("<f2").tobytes())
    if encoding is Encoding.BFLOAT16:
        return Vector(encoding, shape, _to_bfloat16(values).tobytes())
    if encoding is Encoding.INT8:
        assert scale is not None
        quantised = np.clip(np.rint(values / scale), -128, 127).astype(np.int8)
        return Vector(encoding, shape, quantised.tobytes(), scale)
    assert encoding is Encoding.BINARY
    return Vector(encoding, shape, np.packbits(values.reshape(-1) > 0).tobytes())


def int8_scale(rows: F32, size: int, *, normalized: bool) -> float:
    """Return the INT8 scale of vectors like these rows (m, n), cut to `size`: with room above the largest."""
    cut = rows[:, :size].astype(np.float64)
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    unit_rows = cut / np.where(lengths == 0, 1, lengths) if normalized else cut
    return max(float(np.abs(unit_rows).max()), _LEAST) * _INT8_HEADROOM / 127


def decode(vector: Vector) -> F32:
    """Return a caller's vector as float32 of shape (size,); BINARY becomes +1 and -1.

    Raises BadOptionError for a form that is no vector, UndecodableError when bytes and shape disagree or a
    value is NaN or infinite.
    """
    if vector.encoding is Encoding.UINT8:
        raise BadOptionError("UINT8 is for pixels: send the vector as FLOAT32", field="encoding")
    if len(vector.shape) != 1 or vector.shape[0] < 1:
        raise BadOptionError(f"shape {list(vector.shape)} is not [size]", field="shape")
    expected = encoded_bytes(vector.encoding, vector.shape)
    if len(vector.data) != expected:
        raise UndecodableError(
            f"{len(vector.data)} bytes do not fill shape {list(vector.shape)} of {vector.encoding.name}, "
            f"which takes {expected}",
            field="data",
        )
    values = _values(vector)
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UndecodableError(f"value {at} is {values[at]}: every value must be finite", field="data")
    return values


def encoded_bytes(encoding: Encoding, shape: tuple[int, ...]) -> int:
    """Return the bytes that `shape` takes. Raises BadOptionError when no tensor has that shape."""
    if len(shape) > _MAX_AXES:
        raise BadOptionError(f"{len(shape)} axes are over {_MAX_AXES}", field="shape")
    count = 1
    for length in shape:
        count *= length
    if encoding is Encoding.BINARY:
        if count % 8:
            raise BadOptionError(f"BINARY needs a multiple of 8 values, not {count}", field="encoding")
        return count // 8
    return count * int(_NUMPY[encoding].itemsize)


def _values(vector: Vector) -> F32:
    if vector.encoding is Encoding.BINARY:
        bits = np.unpackbits(np.frombuffer(vector.data, np.uint8)).astype(np.float32)
        return bits * 2 - 1
    raw = np.frombuffer(vector.data, _NUMPY[vector.encoding])
    if vector.encoding is Encoding.BFLOAT16:
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if vector.encoding is Encoding.INT8:
        if vector.scale is None or not np.isfinite(vector.scale) or vector.scale <= 0:
            raise BadOptionError(f"INT8 needs a positive scale, not {vector.scale}", field="scale")
        return raw.astype(np.float32) * np.float32(vector.scale)
    return raw.astype(np.float32)


def _to_bfloat16(values: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype("<u2")
