"""What a PNG's chunks say, and the same PNG without what its pixels do not need.

A decoder stops at ancillary chunks that nothing here uses: a text of megabytes, a wrong checksum. Those are
left out. Critical chunks, and ancillary ones that decide about pixels, stay and must be sound.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixvec_server.errors import UndecodableError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNATURE_SIZE = 8
_MAX_CHUNKS = 20_000
_MAX_METADATA_BYTES = 1 << 20
_MIN_DEFLATED_BYTES = 8
# Ancillary by their name, yet part of the pixels: transparency and the frames of an animation.
_OF_PIXELS = {b"tRNS", b"acTL", b"fcTL", b"fdAT"}
_TEXTS = {b"zTXt", b"iTXt", b"tEXt"}
_ORIENTATION_KEYS = (b"XML:com.adobe.xmp\x00", b"Raw profile type exif\x00")
GRAY, _RGB, _PALETTE = 0, 2, 3


@dataclass(frozen=True, slots=True)
class PngHeader:
    """Size in pixels, bits of a sample, color type, and the transparent color's samples, if it has one."""

    width: int
    height: int
    bits: int
    color_type: int
    transparent: tuple[int, ...] = ()


def read_png(data: bytes) -> tuple[PngHeader, bytes]:
    """Return a PNG's header, and the file with the chunks alone that its pixels and its display need.

    Raises UndecodableError for a damaged structure or one of so many chunks that reading them is the work,
    UnsupportedFormatError for Apple's variant.
    """
    if data.startswith(b"CgBI", _SIGNATURE_SIZE + 4):
        raise UnsupportedFormatError(
            "this is Apple's CgBI variant of png, as found in iOS apps: convert it to a standard png",
            field="image",
        )
    header: PngHeader | None = None
    transparent, kept, has_palette, start = b"", [data[:_SIGNATURE_SIZE]], False, _SIGNATURE_SIZE
    seen: set[bytes] = set()
    dropped = False
    for kind, at, end in _chunks(data):
        if kind == b"IHDR" and header is None and end - at >= 25:
            header = PngHeader(*struct.unpack(">IIBB", data[at + 8 : at + 18]))
        has_palette |= kind == b"PLTE"
        if kind == b"tRNS":
            transparent = data[at + 8 : end - 4]
        if not _is_needed(kind, data, at, end, seen):
            kept.append(data[start:at])
            start, dropped = end, True
    if header is None:
        raise UndecodableError("the png is damaged: it has no header chunk", field="image")
    if header.color_type == _PALETTE and not has_palette:
        raise UndecodableError("the png is damaged: it has no palette", field="image")
    kept.append(data[start:])
    return _with_transparent(header, transparent), b"".join(kept) if dropped else data


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's type, and where the chunk starts and ends, up to the last."""
    at = _SIGNATURE_SIZE
    for _ in range(_MAX_CHUNKS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield kind, at, end
        at = end
    raise UndecodableError(f"the png has more than {_MAX_CHUNKS} chunks: re-encode it", field="image")


def _is_needed(kind: bytes, data: bytes, at: int, end: int, seen: set[bytes]) -> bool:
    is_critical = not kind[0] & 0x20
    checksum = int.from_bytes(data[end - 4 : end], "big")
    is_sound = end <= len(data) and zlib.crc32(memoryview(data)[at + 4 : end - 4]) == checksum
    if is_critical or kind in _OF_PIXELS:
        _check_sound(kind, end <= len(data), is_sound)
        return True
    key = kind
    if kind in _TEXTS:
        key = next((name for name in _ORIENTATION_KEYS if data.startswith(name, at + 8)), b"")
    elif kind not in (b"eXIf", b"iCCP"):
        return False
    if not key or key in seen or not is_sound or end - at > _MAX_METADATA_BYTES:
        return False
    seen.add(key)
    return _is_small_inflated(kind, data[at + 8 : end - 4])


def _check_sound(kind: bytes, is_whole: bool, is_sound: bool) -> None:
    if not is_whole:
        raise UndecodableError("the png is truncated: send the whole file", field="image")
    if not is_sound:
        name = kind.decode("ascii", "backslashreplace")
        raise UndecodableError(f"the png is damaged: the checksum of a {name} chunk is wrong", field="image")


def _is_small_inflated(kind: bytes, body: bytes) -> bool:
    """Tell whether a chunk's compressed part is sound and at most the bound when it is inflated."""
    packed = _compressed_part(kind, body)
    if packed is None:
        return True
    if len(packed) < _MIN_DEFLATED_BYTES:
        return False
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(packed, _MAX_METADATA_BYTES)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail


def _compressed_part(kind: bytes, body: bytes) -> bytes | None:
    _, _, rest = body.partition(b"\x00")
    if kind in (b"iCCP", b"zTXt"):
        return rest[1:]
    if kind == b"iTXt" and rest[:1] == b"\x01":
        return rest[2:].split(b"\x00", 2)[-1]
    return None


def _with_transparent(header: PngHeader, body: bytes) -> PngHeader:
    count = {GRAY: 1, _RGB: 3}.get(header.color_type, 0)
    if not count or len(body) < 2 * count:
        return header
    samples = (value & (1 << header.bits) - 1 for value in struct.unpack(f">{count}H", body[: 2 * count]))
    return PngHeader(header.width, header.height, header.bits, header.color_type, tuple(samples))
