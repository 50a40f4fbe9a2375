"""Tells whether a file that Pillow has decoded holds all its pixels.

Pillow says nothing of a JPEG whose image data end early in front of an end marker, or of a PNG whose
compressed data end properly before the last row. The server refuses both (docs/images.md).
"""

import re
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SOS, _EOI, _DRI = 0xDA, 0xD9, 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xCA}
_COEFFICIENTS, _BLOCK = 64, 8
# The server's limits of structure.
_MAX_SEGMENTS, _MAX_SCANS, _MAX_CHUNKS = 20_000, 100, 20_000
# No 0xff, which begins a marker, and no run of equal bits, which may stand for nothing.
_FILLER = bytes((37 * i + 91) % 251 for i in range(64))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: the first column and row of each pass, and the steps between its columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_INFLATED_AT_ONCE = 1 << 16


def has_all_pixels(data: bytes, image: "Image") -> bool:
    """Tell whether a loaded image of this file, of Pillow's, lacks no pixels; True for other formats.

    A JPEG is decoded a second time, with bytes added behind each part of its image data: a decoder skips
    them behind whole data, and takes them for pixels where data are missing.
    """
    if image.format == "PNG":
        return _has_all_rows(data, image)
    if image.format not in {"JPEG", "MPO"}:
        return True
    filled = _Jpeg(data).filled()
    if filled is None:
        return False
    from PIL import Image, ImageChops  # noqa: PLC0415 - the caller has loaded Pillow already

    with Image.open(BytesIO(filled), formats=("JPEG",)) as again:
        return ImageChops.difference(again, image).getbbox() is None


class _Jpeg:
    """What a JPEG's markers declare, and which parts of it are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._process = self._width = self._height = self._interval = self._scans = 0
        self._factors: dict[int, tuple[int, int]] = {}
        self._precise: dict[int, set[int]] = {}

    def filled(self) -> bytes | None:
        """Return the file with filler behind each part of image data, None when whole parts are missing."""
        data, at, copied = self._data, 2, 0
        parts = []
        for _ in range(_MAX_SEGMENTS):
            marker = _MARKER.search(data, at)
            if marker is None or self._scans > _MAX_SCANS:
                return None
            kind, start = data[marker.start() + 1], marker.end()
            if kind == _EOI:
                parts.append(data[copied:])
                is_whole = all(len(precise) == _COEFFICIENTS for precise in self._precise.values())
                return b"".join(parts) if is_whole and self._scans else None
            at = start + max(2, int.from_bytes(data[start : start + 2], "big"))
            if kind == _SOS:
                following = _MARKER.search(data, at)
                last = following.start() if following else len(data)
                restarts = [found.start() for found in _RESTART.finditer(data, at, last)]
                if not self._note_scan(data[start + 2 : at], len(restarts)):
                    return None
                for end in (*restarts, last):
                    parts += data[copied:end], _FILLER
                    copied = end
                at = last
            elif kind in _FRAMES and not self._process:
                self._note_frame(kind, data[start + 2 : at])
            elif kind == _DRI:
                self._interval = int.from_bytes(data[start + 2 : start + 4], "big")
        return None

    def _note_frame(self, kind: int, body: bytes) -> None:
        self._process = kind
        self._height, self._width = struct.unpack(">HH", body[1:5])
        for id_, factors in zip(body[6::3], body[7::3], strict=False):
            self._factors[id_] = factors >> 4, factors & 15
            self._precise[id_] = set()

    def _note_scan(self, body: bytes, restarts: int) -> bool:
        """Take in a scan; tell whether it has as many restart markers as it needs."""
        self._scans += 1
        ids = body[1 : 1 + 2 * body[0] : 2]
        first, last, low = body[1 + 2 * body[0] : 4 + 2 * body[0]]
        if self._process not in _PROGRESSIVE:
            first, last, low = 0, _COEFFICIENTS - 1, 0
        for id_ in ids:
            if low & 15 == 0:
                self._precise[id_] |= set(range(first, min(last + 1, _COEFFICIENTS)))
        return not self._interval or restarts >= -(-self._mcus(ids) // self._interval) - 1

    def _mcus(self, ids: bytes) -> int:
        across = max(across for across, _ in self._factors.values())
        down = max(down for _, down in self._factors.values())
        if len(ids) != 1:
            return -(-self._width // (_BLOCK * across)) * -(-self._height // (_BLOCK * down))
        own_across, own_down = self._factors[ids[0]]
        width, height = -(-self._width * own_across // across), -(-self._height * own_down // down)
        return -(-width // _BLOCK) * -(-height // _BLOCK)


def _has_all_rows(data: bytes, image: "Image") -> bool:
    # Pillow leaves rows without data at 0: only then are the data inflated again and counted.
    last = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
    is_interlaced = data[28] == 1
    if any(last) and not is_interlaced:
        return True
    width, height, bits, color_type = struct.unpack(">IIBB", data[16:26])
    missing = _scanline_bytes(width, height, bits * _CHANNELS[color_type], is_interlaced)
    inflater = zlib.decompressobj()
    for kind, body in _chunks(data):
        packed = body if kind == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(inflater.decompress(packed, _INFLATED_AT_ONCE))
            packed = inflater.unconsumed_tail
    return missing <= 0


def _chunks(data: bytes) -> "Iterator[tuple[bytes, bytes]]":
    at = 8
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : end - 4]
        at = end


def _scanline_bytes(width: int, height: int, bits: int, is_interlaced: bool) -> int:
    """Return the bytes of all rows before compression, each with its filter's byte."""
    total = 0
    for left, top, across, down in _PASSES if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
