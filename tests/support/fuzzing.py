"""Seeded hostile inputs: small pictures of every format, damaged at random, and random protobuf messages."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from PIL import Image, features

from pixvec.v1 import embedding_pb2 as pb

_INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
_BIG = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MAX_EDITS = 3
_PNG = b"\x89PNG\r\n\x1a\n"
# Of the protobuf messages: how deep, how many of a repeated field, how often a field is set in one that is
# random throughout, and in one that is good but for a few fields.
_MAX_DEPTH, _MAX_REPEATED, _OFTEN, _SELDOM = 6, 3, 0.6, 0.06


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@cache
def pictures() -> tuple[bytes, ...]:
    """Return good files of 37 x 23 pixels, in every format and in many of their forms."""
    rng = np.random.default_rng(7)
    smooth = np.linspace(0, 200, 37 * 23 * 4).reshape(23, 37, 4) + rng.integers(0, 50, (23, 37, 4))
    rgba = Image.fromarray(smooth.astype(np.uint8), "RGBA")
    rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = [
        *(_saved(rgb, "JPEG", subsampling=s, exif=exif) for s in range(3)),
        _saved(rgb, "JPEG", progressive=True, quality=95),
        _saved(grey, "JPEG"),
        _saved(rgb.convert("CMYK"), "JPEG"),
        *(_saved(image, "PNG") for image in (rgb, rgba, grey, palette, rgba.convert("LA"), rgb.convert("1"))),
        _saved(Image.fromarray(rng.integers(0, 65536, (23, 37)).astype(np.uint16)), "PNG"),
        _saved(palette, "PNG", transparency=3),
        _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)], duration=40),
        *(_saved(rgba, "WEBP", lossless=lossless) for lossless in (False, True)),
        _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], duration=40),
        _saved(palette, "GIF"),
        _saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)], duration=40),
        *(_saved(image, "BMP") for image in (rgb, grey, palette, rgb.convert("1"))),
        *(
            _saved(rgb, "TIFF", compression=compression)
            for compression in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")
        ),
        *(_saved(image, "TIFF") for image in (grey, palette, rgba, rgb.convert("1"), rgb.convert("CMYK"))),
        _saved(rgb.convert("1"), "TIFF", compression="group4"),
        _saved(grey.convert("F"), "TIFF"),
        *([_saved(rgb, "AVIF"), _saved(rgba, "AVIF")] if features.check("avif") else []),
    ]
    return tuple(made)


def damaged(rng: random.Random) -> bytes:
    """Return one picture with a few random edits; now and then noise behind a good beginning."""
    data = bytearray(rng.choice(pictures()))
    for _ in range(rng.randint(1, _MAX_EDITS)):
        rng.choice(_EDITS)(rng, data)
    if data.startswith(_PNG) and rng.random() < 0.5:
        _correct_checksums(data)
    return bytes(data)


def _correct_checksums(data: bytearray) -> None:
    """Make a PNG's checksums right again, so that its damage reaches the decoder."""
    at = len(_PNG)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        end = at + 8 + size
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _replace(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(_INTERESTING)


def _head(rng: random.Random, data: bytearray) -> None:
    """Damage what readers look at first."""
    if data:
        data[rng.randrange(min(len(data), 64))] = rng.choice((*_INTERESTING, rng.randrange(256)))


def _number(rng: random.Random, data: bytearray) -> None:
    form = rng.choice(("<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(data) > size:
        at = rng.randrange(len(data) - size)
        data[at : at + size] = struct.pack(form, rng.choice(_BIG) % (1 << 8 * size))


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randint(1, 32)]


def _repeat(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.randint(1, 64)] * rng.randint(1, 8)


def _splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(pictures())
    at = rng.randrange(len(data) + 1)
    data[at:] = other[min(at, len(other)) :]


def _noise(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:] = rng.randbytes(rng.randint(0, 512))


_EDITS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(_flip, _replace, _head, _head, _number, _number, _cut, _remove, _repeat, _splice, _noise),
)


def random_message(rng: random.Random, message: Message, share: float = _OFTEN, depth: int = 0) -> Message:
    """Set a share of a message's fields at random: extreme numbers, enum values that do not exist."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > share or depth > _MAX_DEPTH:
            continue
        values = list(_values(rng, field, depth))
        if not field.is_repeated:
            _assign(message, field, values[0])
        elif field.message_type is None or not field.message_type.GetOptions().map_entry:
            getattr(message, field.name).extend(values)
    return message


def _values(rng: random.Random, field: Any, depth: int) -> Iterator[Any]:
    for _ in range(rng.randint(1, _MAX_REPEATED) if field.is_repeated else 1):
        if field.message_type is not None:
            made = field.message_type._concrete_class()
            yield random_message(rng, made, depth=depth + 1)
        else:
            yield _SCALARS[field.type](rng)


def _assign(message: Message, field: Any, value: Any) -> None:
    if field.message_type is None:
        setattr(message, field.name, value)
    else:
        getattr(message, field.name).CopyFrom(value)


def _integer(low: int, high: int) -> Callable[[random.Random], int]:
    edges = (low, high, 0, 1, min(high, 3), min(high, 224), min(high, 1280))
    return lambda rng: rng.choice((*edges, rng.randint(low, high)))


def _text(rng: random.Random) -> str:
    words = ("", "tiny", "embedding", "pooled", "s1-x", "\0", "x" * 300, "Ünïcödé 東京", "../../etc/passwd")
    return rng.choice(words)


def _bytes(rng: random.Random) -> bytes:
    return rng.choice((b"", damaged(rng), rng.choice(pictures()), rng.randbytes(rng.randint(0, 64))))


def _float(rng: random.Random) -> float:
    return rng.choice((0.0, -1.0, 1.0, float("nan"), float("inf"), 1e-38, 3.4e38, rng.random()))


_F = FieldDescriptor
_SCALARS: dict[int, Callable[[random.Random], Any]] = {
    **dict.fromkeys((_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32), _integer(-(2**31), 2**31 - 1)),
    **dict.fromkeys((_F.TYPE_UINT32, _F.TYPE_FIXED32), _integer(0, 2**32 - 1)),
    **dict.fromkeys((_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64), _integer(-(2**63), 2**63 - 1)),
    **dict.fromkeys((_F.TYPE_UINT64, _F.TYPE_FIXED64), _integer(0, 2**64 - 1)),
    _F.TYPE_ENUM: lambda rng: rng.choice((0, 1, 2, 3, 6, 99)),
    _F.TYPE_BOOL: lambda rng: rng.random() < 0.5,
    _F.TYPE_STRING: _text,
    _F.TYPE_BYTES: _bytes,
    _F.TYPE_FLOAT: _float,
    _F.TYPE_DOUBLE: _float,
}


def _good(rng: random.Random, name: str) -> Message | None:
    given = pb.Input(image=rng.choice(pictures()))
    if name == "EmbedRequest":
        return pb.EmbedRequest(input=given)
    if name == "EmbedBatchRequest":
        return pb.EmbedBatchRequest(inputs=[given, pb.Input(image=damaged(rng))])
    if name == "EmbedStreamRequest":
        return pb.EmbedStreamRequest(id="one", inputs=[given])
    if name == "SimilarityRequest":
        operand = pb.Operand(input=given)
        return pb.SimilarityRequest(queries=[operand], candidates=[operand, operand])
    return None


def random_bytes_of(rng: random.Random, kind: type[Message]) -> bytes:
    """Return a message's bytes: one in two good but for a few fields, one in four damaged."""
    good = _good(rng, kind.DESCRIPTOR.name)
    if good is not None and rng.random() < 0.5:
        message = random_message(rng, good, _SELDOM)
    else:
        message = random_message(rng, kind())
    data = bytearray(message.SerializeToString())
    if rng.random() < 0.25:
        rng.choice(_EDITS)(rng, data)
    return bytes(data)
