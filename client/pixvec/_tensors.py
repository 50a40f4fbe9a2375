"""Tensors of the contract to numpy arrays and back: little-endian, C order."""

import math
from typing import get_args

import numpy as np

from pixvec.v1 import embedding_pb2 as pb

from ._errors import BadOptionError, InputError, InternalError
from ._types import Array, Encoding

CODES: dict[str, pb.Encoding] = {
    "float32": pb.ENCODING_FLOAT32,
    "float16": pb.ENCODING_FLOAT16,
    "bfloat16": pb.ENCODING_BFLOAT16,
    "int8": pb.ENCODING_INT8,
    "binary": pb.ENCODING_BINARY,
}
NAMES: dict[int, Encoding] = {CODES[name]: name for name in get_args(Encoding)}

_DTYPES: dict[int, np.dtype[np.generic]] = {
    pb.ENCODING_FLOAT32: np.dtype("<f4"),
    pb.ENCODING_FLOAT16: np.dtype("<f2"),
    pb.ENCODING_BFLOAT16: np.dtype("<u2"),
    pb.ENCODING_INT8: np.dtype("i1"),
    pb.ENCODING_BINARY: np.dtype("u1"),
}


def encoding_code(encoding: str | None) -> pb.Encoding:
    """Return the enum value for an encoding's name; None is the server's default."""
    if encoding is None:
        return pb.ENCODING_UNSPECIFIED
    if encoding not in CODES:
        raise BadOptionError(f"encoding must be one of {', '.join(CODES)}, not {encoding!r}")
    return CODES[encoding]


def decode_tensor(tensor: pb.Tensor) -> Array:
    """Return a vector's numbers as a writable array of native byte order.

    float32 and bfloat16 give float32, float16 float16, int8 int8 (without its scale), binary the packed
    bits as uint8. Raises InternalError when data and shape disagree.
    """
    dtype = _DTYPES.get(tensor.encoding)
    if dtype is None:
        raise InternalError(f"the server answered in encoding {tensor.encoding}, which is not for vectors")
    shape = _stored_shape(tensor)
    if len(tensor.data) != math.prod(shape) * dtype.itemsize:
        raise InternalError(
            f"the server answered {len(tensor.data)} bytes for a {NAMES[tensor.encoding]} tensor of shape "
            f"{tuple(tensor.shape)}"
        )
    stored = np.frombuffer(tensor.data, dtype).reshape(shape)
    if tensor.encoding == pb.ENCODING_BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(dtype.newbyteorder("="))


def _stored_shape(tensor: pb.Tensor) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if tensor.encoding != pb.ENCODING_BINARY or not shape:
        return shape
    if shape[-1] % 8:
        raise InternalError(f"the server answered {shape[-1]} bits, which is not a multiple of 8")
    return (*shape[:-1], shape[-1] // 8)


def encode_vector(vector: Array) -> pb.Tensor:
    """Return the tensor of one float vector; float16 stays, every other float becomes float32.

    Raises InputError for anything but finite floats of shape (n,).
    """
    if vector.ndim != 1 or vector.dtype.kind != "f" or not vector.size:
        raise InputError(
            f"a vector is a float array of shape (n,), not {vector.dtype} of shape {vector.shape}: "
            "multiply int8 by its scale, or pass the Embedding itself"
        )
    if not np.isfinite(vector).all():
        raise InputError("a vector holds NaN or infinity")
    half = vector.dtype == np.float16
    code, dtype = (pb.ENCODING_FLOAT16, "<f2") if half else (pb.ENCODING_FLOAT32, "<f4")
    return pb.Tensor(encoding=code, shape=vector.shape, data=vector.astype(dtype).tobytes())
