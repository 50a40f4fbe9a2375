"""What a file's own structure says, without decoding: a JPEG's markers, a PNG's chunks, a GIF's blocks.

Each walk is bounded, because the structure is the sender's to choose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixvec_server.errors import UndecodableError

_MAX_STEPS = 20_000
# A progressive JPEG of a few kilobytes can ask for thousands of passes over the whole picture.
_MAX_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1


def jpeg_has_exif(data: bytes) -> bool:
    """Tell whether a JPEG has an EXIF segment. Raises UndecodableError for one of too many scans."""
    at, scans, exif = 2, 0, False
    for _ in range(_MAX_STEPS):
        marker = _MARKER.search(data, at)
        if marker is None or data[marker.start() + 1] == _EOI:
            return exif
        kind, start = data[marker.start() + 1], marker.end()
        scans += kind == _SOS
        if scans > _MAX_SCANS:
            raise UndecodableError(
                f"the jpeg asks for more than {_MAX_SCANS} scans: re-encode it", field="image"
            )
        exif |= kind == _APP1 and data.startswith(b"Exif\x00\x00", start + 2)
        at = start + max(2, int.from_bytes(data[start : start + 2], "big"))
    raise UndecodableError(f"the jpeg has more than {_MAX_STEPS} segments: re-encode it", field="image")


def check_png(data: bytes) -> None:
    """Raise UndecodableError for a PNG of so many chunks that reading them is the work."""
    at = 8
    for _ in range(_MAX_STEPS):
        if at >= len(data) or data.startswith(b"IEND", at + 4):
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise UndecodableError(f"the png has more than {_MAX_STEPS} chunks: re-encode it", field="image")


@dataclass(frozen=True, slots=True)
class GifLayout:
    """Frames of a GIF, and the canvas that holds them all: a decoder enlarges it where one sticks out."""

    frames: int
    width: int
    height: int


def gif_layout(data: bytes, most_frames: int) -> GifLayout:
    """Read the blocks of a GIF, up to `most_frames` frames; a damaged tail ends the walk."""
    width, height = _u16(data, 6), _u16(data, 8)
    at, frames = 13 + _table(data, 10), 0
    for _ in range(_MAX_STEPS):
        kind = data[at : at + 1]
        if kind == b"\x21":
            at = _skip_blocks(data, at + 2)
        elif kind == b"\x2c" and frames < most_frames:
            frames += 1
            width = max(width, _u16(data, at + 1) + _u16(data, at + 5))
            height = max(height, _u16(data, at + 3) + _u16(data, at + 7))
            at = _skip_blocks(data, at + 11 + _table(data, at + 9))
        else:
            break
    return GifLayout(max(1, frames), width, height)


def _skip_blocks(data: bytes, at: int) -> int:
    for _ in range(_MAX_STEPS * 10):
        length = data[at] if at < len(data) else 0
        at += 1 + length
        if not length:
            return at
    raise UndecodableError("the gif has a frame of too many blocks: re-encode it", field="image")


def _table(data: bytes, at: int) -> int:
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")
