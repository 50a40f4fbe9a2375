"""One rule for which way up an image is, in every format, at the server and at every place of the client."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support import photos
from support.decoding import decode, png_chunk, rgb_of

from pixvec._downscale import downscale
from pixvec._inputs import to_input
from pixvec._orientation import upright, upright_size
from pixvec.compat._images import smart_read_image_v2
from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

_PHOTO = photos.image("astronaut.png").resize((320, 200))
# How numpy stores the upright picture under each value (EXIF 2.3, 4.6.4): rows and columns first.
_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


def _exif(value: int | None) -> bytes:
    exif = Image.Exif()
    exif[0x0131] = "pixvec"
    if value is not None:
        exif[0x0112] = value
    return exif.tobytes()


def _xmp(value: int, *, is_element: bool = False) -> bytes:
    inner = f"<tiff:Orientation>{value}</tiff:Orientation>" if is_element else ""
    attribute = "" if is_element else f' tiff:Orientation="{value}"'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{inner}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _jpeg(picture: Image.Image, exif: bytes | None, xmp: bytes | None) -> bytes:
    data = photos.encode(picture, "JPEG", quality=98, subsampling=0, **({"exif": exif} if exif else {}))
    if xmp is None:
        return data
    body = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def _png(picture: Image.Image, exif: bytes | None, xmp: bytes | None) -> bytes:
    data = photos.encode(picture, "PNG", **({"exif": exif} if exif else {}))
    if xmp is None:
        return data
    return data[:33] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]


def _png_of_raw_profile(picture: Image.Image, exif: bytes | None, xmp: bytes | None) -> bytes:
    """As ImageMagick writes it; XMP compressed."""
    data = photos.encode(picture, "PNG")
    chunks = b""
    if exif is not None:
        text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
        chunks += png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    if xmp is not None:
        chunks += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp))
    return data[:33] + chunks + data[33:]


def _webp(picture: Image.Image, exif: bytes | None, xmp: bytes | None) -> bytes:
    return photos.encode(picture, "WEBP", lossless=True, exif=exif or b"", xmp=xmp or b"")


def _tiff(picture: Image.Image, exif: bytes | None, xmp: bytes | None) -> bytes:
    tags: dict[int, object] = {}
    if exif is not None:
        parsed = Image.Exif()
        parsed.load(exif)
        tags |= dict(parsed)
    if xmp is not None:
        tags[700] = xmp
    out = io.BytesIO()
    picture.save(out, "TIFF", tiffinfo=tags)
    return out.getvalue()


_WRITERS = {"jpeg": _jpeg, "png": _png, "raw profile": _png_of_raw_profile, "webp": _webp, "tiff": _tiff}


def _stored(value: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(_STORED[value](np.asarray(_PHOTO))))


def _is_upright(picture: np.ndarray) -> bool:
    wanted = np.asarray(_PHOTO.resize((picture.shape[1], picture.shape[0])), int)
    is_landscape = picture.shape[1] > picture.shape[0]
    return is_landscape and bool(np.abs(picture.astype(int) - wanted).mean() < 6)


def _check_everywhere(data: bytes) -> None:
    """The server, files made smaller, PIL images, compat and thumbnails agree that it is upright."""
    assert _is_upright(rgb_of(data))
    assert _is_upright(rgb_of(data, mode="fast", short_side=50))
    smaller = downscale(pb.Input(image=data), 160, (50, 50)).image
    assert decode(smaller).width in (160, 320)  # a file that is short already stays
    assert _is_upright(rgb_of(smaller))
    with Image.open(io.BytesIO(data)) as image:
        assert upright_size(image) == (320, 200)
        assert _is_upright(np.asarray(upright(image).convert("RGB")))
    message = to_input(Image.open(io.BytesIO(data)))
    pixels = np.frombuffer(message.pixels.data, np.uint8).reshape(tuple(message.pixels.shape))
    assert _is_upright(pixels)
    assert _is_upright(np.asarray(smart_read_image_v2(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("form", _WRITERS)
def test_exif(form: str, value: int) -> None:
    _check_everywhere(_WRITERS[form](_stored(value), _exif(value), None))


@pytest.mark.parametrize("is_element", [False, True])
@pytest.mark.parametrize("value", [1, 3, 6, 7])
@pytest.mark.parametrize("form", _WRITERS)
def test_xmp(form: str, value: int, is_element: bool) -> None:
    _check_everywhere(_WRITERS[form](_stored(value), None, _xmp(value, is_element=is_element)))


@pytest.mark.parametrize("form", _WRITERS)
def test_exif_comes_before_xmp(form: str) -> None:
    write = _WRITERS[form]
    _check_everywhere(write(_stored(6), _exif(6), _xmp(8)))
    _check_everywhere(write(_stored(1), _exif(1), _xmp(8)))
    _check_everywhere(write(_stored(1), _exif(9), _xmp(8)))
    # A block without the tag says nothing.
    _check_everywhere(write(_stored(8), _exif(None), _xmp(8)))


@pytest.mark.parametrize("value", [0, 9, 77])
@pytest.mark.parametrize("form", _WRITERS)
def test_a_value_without_meaning_turns_nothing(form: str, value: int) -> None:
    _check_everywhere(_WRITERS[form](_stored(1), _exif(value), None))


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_broken_block_turns_nothing(form: str) -> None:
    _check_everywhere(_WRITERS[form](_stored(1), b"Exif\0\0\xff\xff\xff\xff\xff\xff", None))


@pytest.mark.parametrize("value", range(1, 9))
def test_an_avif_is_turned_once_by_its_own_properties(value: int) -> None:
    """Writers put EXIF's value into irot and imir and keep the block as it was."""
    options = {"exif": _exif(value), "quality": 100, "subsampling": "4:4:4"}
    _check_everywhere(photos.encode(_stored(value), "AVIF", **options))


def test_a_cmyk_jpeg_and_one_of_odd_sampling_are_turned_as_well() -> None:
    picture = _stored(6).convert("CMYK")
    assert _is_upright(rgb_of(_jpeg(picture, None, _xmp(6))))


@pytest.mark.parametrize("color", ["ignore", "srgb"])
def test_a_turn_and_a_profile_go_together(color: str) -> None:
    data = _jpeg(_stored(6), _exif(6), None)
    assert _is_upright(rgb_of(data, color=color))
