"""What a PNG's chunks say, and the same PNG without what its pixels do not need.

A decoder stops at ancillary chunks that nothing here uses: a text of megabytes, a wrong checksum. Those are
left out. Critical chunks, and ancillary ones that decide about pixels, stay and must be sound.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
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
_CHANNELS = {GRAY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}
# Adam7: the first column and row of each pass, and the steps between its columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATED_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class PngHeader:
    """Size in pixels, bits of a sample, color type, and the transparent color's samples, if it has one.

    `is_interlaced` tells whether the rows come in Adam7's seven passes.
    """

    width: int
    height: int
    bits: int
    color_type: int
    transparent: tuple[int, ...] = ()
    is_interlaced: bool = False

    @property
    def scanline_bytes(self) -> int:
        """Bytes of all rows before compression, each with its filter's byte."""
        bits = self.bits * _CHANNELS.get(self.color_type, 0)
        passes = _PASSES if self.is_interlaced else ((0, 0, 1, 1),)
        total = 0
        for left, top, across, down in passes:
            columns, rows = -(-(self.width - left) // across), -(-(self.height - top) // down)
            if columns > 0 and rows > 0:
                total += rows * (1 + -(-columns * bits // 8))
        return total


def has_all_rows(data: bytes, header: PngHeader) -> bool:
    """Tell whether the image data, inflated, fill every row; at most that much is inflated."""
    inflater, missing = zlib.decompressobj(), header.scanline_bytes
    for kind, at, end in _chunks(data):
        packed = data[at + 8 : end - 4] if kind == b"IDAT" else b""
        while packed and missing > 0:
            try:
                missing -= len(inflater.decompress(packed, _INFLATED_AT_ONCE))
            except zlib.error:
                return False
            packed = inflater.unconsumed_tail
    return missing <= 0


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
    transparent: bytes | None = None
    kept, has_palette, start = [data[:_SIGNATURE_SIZE]], False, _SIGNATURE_SIZE
    seen: set[bytes] = set()
    dropped = False
    for kind, at, end in _chunks(data):
        if kind == b"IHDR" and header is None and end - at >= 25:
            width, height, bits, color_type = struct.unpack(">IIBB", data[at + 8 : at + 18])
            header = PngHeader(width, height, bits, color_type, is_interlaced=data[at + 20] == 1)
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


def _with_transparent(header: PngHeader, body: bytes | None) -> PngHeader:
    count = {GRAY: 1, _RGB: 3}.get(header.color_type, 0)
    if not count or body is None:
        return header
    if len(body) < 2 * count:
        raise UndecodableError(
            f"the png is damaged: its tRNS chunk has {len(body)} bytes and needs {2 * count}", field="image"
        )
    samples = (value & (1 << header.bits) - 1 for value in struct.unpack(f">{count}H", body[: 2 * count]))
    return replace(header, transparent=tuple(samples))
