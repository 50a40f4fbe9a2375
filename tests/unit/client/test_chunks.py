"""A request keeps to every limit at once, and one that cannot is refused in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixvec import Limits, ModelInfo, OutputInfo, Target, TooLargeError
from pixvec._chunks import Chunk, Room, check_size
from pixvec._inputs import to_input
from pixvec._types import Catalog
from pixvec._window import Box
from pixvec.v1 import embedding_pb2 as pb

MIB = 1 << 20


def catalog(limits: Limits, shape: tuple[int, ...] = (1280,)) -> Catalog:
    output = OutputInfo("embedding", "s", shape, (), normalized=True, int8_scales=())
    empty = ("", "", "", "", "")
    model = ModelInfo("m", (), "ready", "", "", (output,), (), 0, None, None, None, *empty[:4], (), "")
    return Catalog((model,), limits, "0")


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    request_bytes=st.integers(8000, 20_000),
    inputs=st.integers(1, 9),
    vectors=st.integers(2, 12),
    targets=st.integers(1, 2),
)
def test_every_request_keeps_to_every_limit(
    sizes: list[int], request_bytes: int, inputs: int, vectors: int, targets: int
) -> None:
    limits = Limits(request_bytes=request_bytes, inputs=inputs, vectors=vectors)
    wanted = [Target()] * targets
    room = Room.of(catalog(limits), wanted, 32, 64 * MIB)
    chunks = [Chunk(room)]
    for index, size in enumerate(sizes):
        message = pb.Input(image=bytes(size))
        if chunks[-1].full() or not chunks[-1].fits(message):
            chunks.append(Chunk(room))
        chunks[-1].add(index, message, Box(b""))
    assert [index for chunk in chunks for index in chunk.indices] == list(range(len(sizes)))
    for chunk in chunks:
        request = pb.EmbedBatchRequest(inputs=chunk.inputs, targets=[pb.Target()] * targets)
        assert request.ByteSize() <= request_bytes
        assert len(chunk.inputs) <= inputs
        assert len(chunk.inputs) * targets <= vectors


def test_the_answer_has_to_fit_too() -> None:
    limits = Limits(response_bytes=MIB)
    room = Room.of(catalog(limits, shape=(197, 768)), [Target(encoding="float16")], 32, 64 * MIB)
    chunk, message = Chunk(room), pb.Input(image=b"cat")
    while chunk.fits(message) and not chunk.full():
        chunk.add(0, message, Box(b""))
    assert len(chunk.inputs) == MIB // (197 * 768 * 2)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(image_bytes=2999), "the array has 3000 bytes, the server's image_bytes is 2999: send it"),
        (Limits(image_pixels=999), "the image has 1000 pixels, the server's image_pixels is 999"),
        (Limits(request_bytes=3000), r"the request has \d+ bytes, the server's request_bytes is 3000"),
    ],
)
def test_one_image_over_a_limit_names_it(limits: Limits, said: str) -> None:
    image = to_input(np.zeros((20, 50, 3), np.uint8))
    check_size(image, Limits(image_bytes=3000, image_pixels=1000), MIB)
    with pytest.raises(TooLargeError, match=said):
        check_size(image, limits, MIB)
    with pytest.raises(TooLargeError, match="the client's max_message_bytes is 3000"):
        check_size(image, Limits(), 3000)
