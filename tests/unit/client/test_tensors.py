"""Numbers survive the wire, and what disagrees with itself is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixvec import InputError, InternalError
from pixvec._tensors import CODES, decode_tensor, encode_vector
from pixvec.v1 import embedding_pb2 as pb

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)


def tensor(encoding: int, shape: Any, data: bytes, scale: float | None = None) -> pb.Tensor:
    return pb.Tensor(encoding=pb.Encoding.Name(encoding), shape=shape, data=data, scale=scale)


def test_every_vector_encoding_of_the_contract_has_a_name() -> None:
    every = {value for value in pb.Encoding.values() if value}
    assert set(CODES.values()) == every - {pb.ENCODING_UINT8}


@given(hnp.arrays(np.float32, SHAPES))
def test_float32(array: Any) -> None:
    decoded = decode_tensor(tensor(pb.ENCODING_FLOAT32, array.shape, array.astype("<f4").tobytes()))
    assert decoded.dtype == np.float32
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, array)


@given(hnp.arrays(np.float16, SHAPES))
def test_float16(array: Any) -> None:
    decoded = decode_tensor(tensor(pb.ENCODING_FLOAT16, array.shape, array.astype("<f2").tobytes()))
    assert decoded.dtype == np.float16
    np.testing.assert_array_equal(decoded, array)


@given(hnp.arrays(np.uint16, SHAPES))
def test_bfloat16_is_the_upper_half_of_a_float32(bits: Any) -> None:
    decoded = decode_tensor(tensor(pb.ENCODING_BFLOAT16, bits.shape, bits.astype("<u2").tobytes()))
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded.view(np.uint32) >> 16, bits)
    assert not (decoded.view(np.uint32) & 0xFFFF).any()


@given(hnp.arrays(np.int8, SHAPES))
def test_int8(array: Any) -> None:
    decoded = decode_tensor(tensor(pb.ENCODING_INT8, array.shape, array.tobytes(), 0.5))
    assert decoded.dtype == np.int8
    np.testing.assert_array_equal(decoded, array)


@given(hnp.arrays(np.bool_, st.sampled_from([(8,), (64,), (2, 16)])))
def test_binary_stays_packed(bits: Any) -> None:
    decoded = decode_tensor(tensor(pb.ENCODING_BINARY, bits.shape, np.packbits(bits, axis=-1).tobytes()))
    assert decoded.shape == (*bits.shape[:-1], bits.shape[-1] // 8)
    np.testing.assert_array_equal(np.unpackbits(decoded, axis=-1), bits)


@given(hnp.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)))
def test_a_vector_goes_out_as_float32(vector: Any) -> None:
    message = encode_vector(vector)
    assert list(message.shape) == [5]
    np.testing.assert_array_equal(decode_tensor(message), vector.astype(np.float32))
    half = np.array([0.5, -2], np.float16)
    assert encode_vector(half).encoding == pb.ENCODING_FLOAT16
    np.testing.assert_array_equal(decode_tensor(encode_vector(half)), half)


@pytest.mark.parametrize(
    "broken",
    [
        pb.Tensor(encoding=pb.ENCODING_FLOAT32, shape=[3], data=bytes(8)),
        pb.Tensor(encoding=pb.ENCODING_FLOAT16, shape=[2, 2], data=bytes(4)),
        pb.Tensor(encoding=pb.ENCODING_BINARY, shape=[12], data=bytes(2)),
        pb.Tensor(encoding=pb.ENCODING_BINARY, shape=[16], data=bytes(16)),
        pb.Tensor(encoding=pb.ENCODING_UINT8, shape=[1], data=bytes(1)),
        pb.Tensor(shape=[1], data=bytes(4)),
    ],
)
def test_what_disagrees_with_itself_is_refused(broken: pb.Tensor) -> None:
    with pytest.raises(InternalError, match="the server answered"):
        decode_tensor(broken)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 2)), np.zeros(3, np.int8), np.zeros(0), np.array([np.inf]), np.array([1.0, np.nan])],
)
def test_what_is_no_vector_is_refused(bad: Any) -> None:
    with pytest.raises(InputError):
        encode_vector(bad)
