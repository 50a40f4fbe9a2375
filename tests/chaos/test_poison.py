"""Hostile inputs: each gets its Reason at once, costs no memory, and the next good call works."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from PIL import Image
from support import photos
from support.peak import Peak

from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.servers import Server

GOOD = pb.EmbedRequest(input=pb.Input(image=photos.jpeg("rocket.jpg")))
MOST_MEMORY = 64 << 20
MOST_SECONDS = 0.1


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, *chunks: bytes, depth: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def _bilevel(width: int, height: int) -> bytes:
    """A whole PNG of 0 bits: 18 kB for 144 megapixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _png(width, height, _chunk(b"IDAT", body))


def _jpeg_header(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(photos.encode(Image.new("RGB", (64, 64)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _many_scans(count: int) -> bytes:
    """A JPEG that asks for one more empty pass, again and again."""
    data = photos.encode(Image.new("RGB", (640, 480)), "JPEG", progressive=True)
    return data[:-2] + b"\xff\xda\x00\x02" * count + data[-2:]


def _tiff_bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "TIFF", compression="group4")
    return buffer.getvalue()


def _pixels(shape: list[int], size: int, encoding: str = "ENCODING_UINT8") -> pb.Input:
    return pb.Input(pixels=pb.Tensor(encoding=encoding, shape=shape, data=bytes(size)))


def _image(data: bytes) -> pb.Input:
    return pb.Input(image=data)


IMAGES: dict[str, tuple[Callable[[], pb.Input], str]] = {
    "empty": (lambda: _image(b""), "UNDECODABLE"),
    "html": (lambda: _image(b"<!doctype html><html><body>404</body></html>"), "UNDECODABLE"),
    "truncated jpeg": (lambda: _image(photos.jpeg("rocket.jpg")[:20_000]), "UNDECODABLE"),
    "truncated png": (lambda: _image(photos.data("chelsea.png")[:90_000]), "UNDECODABLE"),
    "13000 x 13000 jpeg header": (lambda: _image(_jpeg_header(13_000, 13_000)), "TOO_LARGE"),
    "144 megapixel png": (lambda: _image(_bilevel(12_000, 12_000)), "TOO_LARGE"),
    "400 megapixel png": (lambda: _image(_png(20_000, 20_000)), "TOO_LARGE"),
    "400 megapixel tiff": (lambda: _image(_tiff_bomb()), "TOO_LARGE"),
    "60000 x 1": (lambda: _image(_bilevel(60_000, 1)), "TOO_LARGE"),
    "aspect of 1 to 3000": (lambda: _image(_bilevel(3000, 1)), "TOO_LARGE"),
    "zTXt bomb": (
        lambda: _image(_png(8, 8, _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200 << 20), 9)))),
        "UNDECODABLE",
    ),
    "iCCP bomb": (
        lambda: _image(_png(8, 8, _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200 << 20), 9)))),
        "UNDECODABLE",
    ),
    "jpeg of 2000 scans": (lambda: _image(_many_scans(2000)), "UNDECODABLE"),
    "float pixels": (lambda: _pixels([2, 2, 3], 48, "ENCODING_FLOAT32"), "BAD_OPTION"),
    "pixels that do not fit": (lambda: _pixels([100, 100, 3], 29_999), "UNDECODABLE"),
    "pixels of 2^64": (lambda: _pixels([2**32 - 1, 2**32 - 1, 3], 3), "TOO_LARGE"),
    "psd": (lambda: _image(b"8BPS" + bytes(1000)), "UNSUPPORTED_FORMAT"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_poison_is_refused_at_once_with_its_reason(server: Server, name: str) -> None:
    make, reason = IMAGES[name]
    request = pb.EmbedRequest(input=make())
    stub = server.stub()
    stub.Embed(GOOD)
    with Peak(server.process.pid) as peak:
        started = time.perf_counter()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Embed(request, timeout=10)
        seconds = time.perf_counter() - started
    error = pb.Error.FromString(dict(caught.value.trailing_metadata())["pixvec-error-bin"])
    assert pb.Reason.Name(error.reason) == f"REASON_{reason}", error.message
    assert peak.growth < MOST_MEMORY
    assert stub.Embed(GOOD).embedded.embeddings
    print(
        f"\n{name}: {reason} in {seconds * 1000:.1f} ms, peak +{peak.growth / 2**20:.1f} MiB: {error.message}"
    )


def test_a_nan_vector_is_named(server: Server) -> None:
    space = server.stub().GetModel(pb.GetModelRequest()).model.outputs[0].space
    data = np.full(1280, np.nan, "<f4").tobytes()
    vector = pb.Tensor(encoding="ENCODING_FLOAT32", shape=[1280], data=data)
    operand = pb.Operand(vector=vector, space=space)
    with pytest.raises(grpc.RpcError) as caught:
        server.stub().Similarity(pb.SimilarityRequest(queries=[operand], candidates=[operand]))
    assert "queries[0].vector.data: value 0 is nan" in caught.value.details()


def test_an_empty_region_beside_good_ones(server: Server) -> None:
    regions = [pb.Region(whole=True), pb.Region(left=9, right=9), pb.Region(right=50, bottom=50)]
    request = pb.EmbedRequest(input=pb.Input(image=GOOD.input.image, regions=regions))
    outcomes = [e.WhichOneof("outcome") for e in server.stub().Embed(request).embedded.embeddings]
    assert outcomes == ["vector", "error", "vector"]


def test_poison_in_a_stream_is_that_messages_own(server: Server) -> None:
    def requests() -> Any:
        for i, (make, _) in enumerate(IMAGES.values()):
            yield pb.EmbedStreamRequest(id=f"bad {i}", inputs=[make()])
            yield pb.EmbedStreamRequest(id=f"good {i}", inputs=[GOOD.input])

    answers = {answer.id: answer.results[0] for answer in server.stub().EmbedStream(requests(), timeout=25)}
    assert len(answers) == 2 * len(IMAGES)
    for key, result in answers.items():
        assert result.WhichOneof("outcome") == ("error" if key.startswith("bad") else "embedded"), key
