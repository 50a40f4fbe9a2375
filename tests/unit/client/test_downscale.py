"""What a client makes smaller before it sends it, and what it leaves as it is."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from support import photos
from support.decoding import decode, png_chunk
from unit.client.fake import Running

import pixvec
from pixvec import BadOptionError, Client
from pixvec._downscale import downscale
from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import UndecodableError

LEAST = (32, 32)


def file(image: Image.Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def shrunk(data: bytes, side: int = 256, least: tuple[int, int] = LEAST) -> Image.Image:
    return opened(downscale(pb.Input(image=data), side, least).image)


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("kind", "stays"), [("JPEG", "JPEG"), ("WEBP", "JPEG"), ("PNG", "PNG"), ("TIFF", "PNG")]
)
def test_a_large_picture_is_sent_smaller(kind: str, stays: str) -> None:
    large = photos.image("chelsea.png").resize((1024, 512))
    small = shrunk(file(large, kind, quality=98))
    assert (small.size, small.format, small.mode) == ((256, 128), stays, "RGB")
    expected = np.asarray(large.resize((256, 128), Image.Resampling.LANCZOS), np.int16)
    assert np.abs(np.asarray(small, np.int16) - expected).mean() <= (2 if stays == "JPEG" else 0)


def test_a_file_that_would_get_no_shorter_is_sent_as_it_is() -> None:
    data = file(gradient(1024, 512), "WEBP", quality=1)
    assert downscale(pb.Input(image=data), 1000, LEAST).image == data


def test_a_picture_of_the_right_size_is_sent_as_it_is() -> None:
    data = file(gradient(256, 200), "JPEG")
    assert downscale(pb.Input(image=data), 256, LEAST).image == data


def test_no_side_gets_below_twice_the_models_input() -> None:
    assert shrunk(file(gradient(1024, 512), "PNG"), 64, (100, 100)).size == (400, 200)
    data = file(gradient(1024, 512), "PNG")
    assert downscale(pb.Input(image=data), 64, (300, 300)).image == data


def test_a_turned_picture_is_upright_and_loses_its_tag() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = shrunk(file(gradient(1024, 512), "JPEG", exif=exif.tobytes()))
    assert small.size == (128, 256)
    assert 0x0112 not in small.getexif()


def test_alpha_is_kept_and_weighs_colours() -> None:
    image = Image.new("RGBA", (1024, 1024), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (0, 0, 1024, 512))
    small = shrunk(file(image, "PNG"), least=(8, 8))
    assert small.mode == "RGBA"
    seen = np.asarray(small)
    assert (seen[seen[..., 3] > 0][:, 1] == 0).all()


@pytest.mark.parametrize(
    "data",
    [
        file(gradient(1024, 512).quantize(), "PNG"),
        file(gradient(1024, 512, "CMYK"), "JPEG"),
        file(Image.fromarray(np.zeros((512, 1024), np.uint16)), "PNG"),
        file(gradient(1024, 512), "GIF", save_all=True, append_images=[gradient(1024, 512).rotate(90)]),
        b"not an image",
        file(gradient(1024, 512), "JPEG")[:2000],
    ],
    ids=["palette", "cmyk", "16 bits", "animation", "no image", "torn"],
)
def test_what_cannot_be_resized_faithfully_is_sent_as_it_is(data: bytes) -> None:
    assert downscale(pb.Input(image=data), 256, LEAST).image == data


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)] + b"\xff\xd9"


def _without_restarts(data: bytes, first: int, last: int) -> bytes:
    start = data.index(b"\xff\xda")
    restarts = [at for at in range(start, len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    return data[: restarts[first]] + data[restarts[last] :]


def _without_scans(data: bytes, kept: int) -> bytes:
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    return data[: scans[kept]] + b"\xff\xd9"


def _png_rows(height: int, rows: int, interlaced: int = 0) -> bytes:
    """Write a white RGB PNG of 800 columns whose data hold so many rows, or Adam7's passes up to the last."""
    lines = (b"\0" + b"\xff" * 2400) * rows
    if interlaced:
        sizes = [(100, 1 / 8), (100, 1 / 8), (200, 1 / 8), (200, 1 / 4), (400, 1 / 4), (400, 1 / 2)]
        lines = b"".join((b"\0" + b"\xff" * 3 * w) * int(height * h) for w, h in sizes)
        lines += (b"\0" + b"\xff" * 2400) * rows
    header = struct.pack(">IIBBBBB", 800, height, 8, 2, 0, 0, interlaced)
    # The text makes the file worth making smaller.
    chunks = [
        (b"IHDR", header),
        (b"tEXt", b"x\0" + b"y" * 100_000),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


_PHOTO = photos.image("astronaut.png").convert("RGB").resize((1024, 768))
_JPEG = file(_PHOTO, "JPEG", quality=95)
_RESTARTS = file(_PHOTO, "JPEG", quality=95, restart_marker_rows=1)
_SCANS = file(_PHOTO, "JPEG", quality=95, progressive=True)
_TIFF_TAGS = {"DNG version": 50706, "subdirectories": 330, "old subfile type": 255}


@pytest.mark.parametrize(
    "data",
    [
        _JPEG,
        _RESTARTS,
        _SCANS,
        file(_PHOTO, "JPEG", quality=95, subsampling=0, optimize=True),
        file(_PHOTO.convert("L"), "JPEG", quality=95),
        file(_PHOTO, "JPEG", quality=95, progressive=True, restart_marker_blocks=7),
        _JPEG + b"behind the end",
        _png_rows(600, 600),
        _png_rows(600, 300, interlaced=1),
        file(Image.new("RGB", (1024, 512)), "BMP"),
        file(Image.fromarray(np.vstack([np.asarray(_PHOTO), np.zeros((9, 1024, 3), np.uint8)])), "PNG"),
    ],
)
def test_a_whole_file_is_sent_smaller(data: bytes) -> None:
    assert max(shrunk(data).size) == 256


@pytest.mark.parametrize(
    "data",
    [
        *(_cut(data, share) for data in (_JPEG, _RESTARTS, _SCANS) for share in (0.3, 0.6, 0.98)),
        _JPEG[:-6] + _JPEG[-2:],
        *(_without_restarts(_RESTARTS, first, last) for first, last in ((2, 3), (1, 9), (0, 40))),
        *(_without_scans(_SCANS, kept) for kept in (1, 3, 8)),
        _RESTARTS[: _RESTARTS.index(b"\xff\xd3") - 30] + _RESTARTS[_RESTARTS.index(b"\xff\xd3") :],
        _png_rows(600, 599),
        _png_rows(600, 200),
        _png_rows(600, 299, interlaced=1),
    ],
)
def test_a_file_that_lacks_pixels_is_left_to_the_server_which_refuses_it(data: bytes) -> None:
    assert downscale(pb.Input(image=data), 64, (8, 8)).image == data
    with pytest.raises(UndecodableError, match="truncated"):
        decode(data)


@pytest.mark.parametrize("tag", _TIFF_TAGS.values(), ids=list(_TIFF_TAGS))
def test_a_tiff_that_may_be_a_thumbnail_is_sent_as_it_is(tag: int) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag] = 1 if tag == 50706 else 3
    tags[tag] = b"\1\4\0\0" if tag == 50706 else 2
    data = file(_PHOTO, "TIFF", tiffinfo=tags)
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        assert tag in image.tag_v2
    assert downscale(pb.Input(image=data), 64, (8, 8)).image == data


def test_arrays_are_made_smaller_too() -> None:
    for mode, channels in (("RGB", 3), ("RGBA", 4), ("L", 1)):
        array = np.asarray(gradient(1024, 512, mode)).reshape(512, 1024, channels)
        message = downscale(pixvec.to_input(array), 256, LEAST)
        assert list(message.pixels.shape) == [128, 256, channels]
        assert len(message.pixels.data) == 128 * 256 * channels


def test_the_client_asks_what_its_model_looks_at(server: Running, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(file(gradient(1024, 512), "PNG"))
    with Client(server.target, max_side=48) as client:
        client.embed(tmp_path / "large.png")
        list(client.embed_iter([tmp_path / "large.png"]))
    for request in (server.service.of("Embed")[0].input, server.service.of("EmbedBatch")[0].inputs[0]):
        # The fake model looks at 32 x 32.
        assert opened(request.image).size == (128, 64)


def test_text_is_left_alone(server: Running) -> None:
    with Client(server.target, max_side=48) as client:
        client.embed_text("a cat")
    assert server.service.of("Embed")[0].input.text == "a cat"


def test_regions_need_the_picture_as_it_is(server: Running) -> None:
    data = photos.jpeg("chelsea.png")
    with Client(server.target, max_side=64) as client:
        with pytest.raises(BadOptionError, match="without max_side"):
            client.embed_full(data, regions=[(0, 0, 9, 9)])
        with pytest.raises(BadOptionError, match="without max_side"):
            client.embed_batch_full([data], regions=[[(0, 0, 9, 9)]])


@pytest.mark.parametrize("side", [0, -5, 1.5, "512", True])
def test_a_side_is_a_number_of_pixels(side: Any) -> None:
    with pytest.raises(BadOptionError, match="max_side"):
        Client("localhost:1", max_side=side)


def test_without_pillow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(BadOptionError, match=r"pip install 'pixvec\[cli\]'"):
        Client("localhost:1", max_side=512)
