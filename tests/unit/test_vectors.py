"""Cutting, normalising and encoding, and the way back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pixvec_server import vectors
from pixvec_server.errors import BadOptionError, UndecodableError
from pixvec_server.types import Encoding, Vector

FLOATS = arrays.arrays(np.float32, st.sampled_from([8, 16, 64]), elements=st.floats(-100, 100, width=32))


@given(FLOATS)
def test_float32_is_exact(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    vector = vectors.encode(values, Encoding.FLOAT32)
    assert np.array_equal(vectors.decode(vector), values)


@given(FLOATS)
def test_float16_is_numpys(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    vector = vectors.encode(values, Encoding.FLOAT16)
    assert np.array_equal(vectors.decode(vector), values.astype(np.float16).astype(np.float32))


@given(FLOATS)
def test_bfloat16_rounds_to_nearest_even_as_ml_dtypes_does(
    values: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> None:
    vector = vectors.encode(values, Encoding.BFLOAT16)
    assert vector.data == values.astype(ml_dtypes.bfloat16).tobytes()
    assert np.array_equal(vectors.decode(vector), values.astype(ml_dtypes.bfloat16).astype(np.float32))


@given(FLOATS)
def test_int8_is_within_half_a_step_or_saturates(
    values: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> None:
    scale = 0.5
    vector = vectors.encode(values, Encoding.INT8, scale)
    assert vector.scale == scale
    expected = np.clip(values, -128 * scale, 127 * scale)
    assert np.abs(vectors.decode(vector) - expected).max() <= scale / 2 + 1e-6


@given(FLOATS)
def test_binary_is_the_sign_high_bit_first(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    vector = vectors.encode(values, Encoding.BINARY)
    assert vector.shape == values.shape
    assert len(vector.data) == len(values) // 8
    assert (vector.data[0] >> 7) == int(values[0] > 0)
    assert np.array_equal(vectors.decode(vector), np.where(values > 0, 1.0, -1.0))


def test_unit_length_and_the_zero_vector() -> None:
    assert np.allclose(vectors.unit(np.array([3, 4], np.float32)), [0.6, 0.8])
    assert not vectors.unit(np.zeros(4, np.float32)).any()


def test_a_map_keeps_its_shape() -> None:
    vector = vectors.encode(np.arange(24, dtype=np.float32).reshape(2, 3, 4), Encoding.FLOAT16)
    assert vector.shape == (2, 3, 4)
    assert len(vector.data) == 48


def test_float16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(BadOptionError, match="65504"):
        vectors.encode(np.array([7e4], np.float32), Encoding.FLOAT16)


@pytest.mark.parametrize(
    ("vector", "error", "words"),
    [
        (Vector(Encoding.UINT8, (4,), bytes(4)), BadOptionError, "pixels"),
        (Vector(Encoding.FLOAT32, (2, 2), bytes(16)), BadOptionError, "not [size]"),
        (Vector(Encoding.FLOAT32, (0,), b""), BadOptionError, "not [size]"),
        (Vector(Encoding.FLOAT32, (4,), bytes(15)), UndecodableError, "15 bytes do not fill"),
        (Vector(Encoding.BINARY, (9,), bytes(2)), BadOptionError, "multiple of 8"),
        (Vector(Encoding.INT8, (4,), bytes(4)), BadOptionError, "positive scale"),
        (Vector(Encoding.INT8, (4,), bytes(4), float("nan")), BadOptionError, "positive scale"),
        (
            Vector(Encoding.FLOAT32, (2,), np.array([1, np.nan], "<f4").tobytes()),
            UndecodableError,
            "value 1 is nan",
        ),
        (
            Vector(Encoding.FLOAT16, (2,), np.array([np.inf, 0], "<f2").tobytes()),
            UndecodableError,
            "value 0 is inf",
        ),
    ],
)
def test_what_is_no_vector(vector: Vector, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        vectors.decode(vector)
    assert words in str(caught.value)


def test_a_binary_answer_needs_a_multiple_of_eight() -> None:
    with pytest.raises(BadOptionError, match="multiple of 8"):
        vectors.encoded_bytes(Encoding.BINARY, (12,))
