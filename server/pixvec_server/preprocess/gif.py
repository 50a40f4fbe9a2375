"""What a GIF's blocks say: frames and the canvas that holds them. Nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from pixvec_server.errors import UndecodableError

_MAX_STEPS = 20_000
_HEADER_SIZE = 13


@dataclass(frozen=True, slots=True)
class GifLayout:
    """Frames of a GIF, and the canvas that holds them all: a decoder enlarges it where one sticks out.

    `first` is the first frame's box on the canvas: left, top, right, bottom.
    """

    frames: int
    width: int
    height: int
    first: tuple[int, int, int, int]


def gif_layout(data: bytes, max_frames: int) -> GifLayout:
    """Read the blocks of a GIF, up to `max_frames` frames; a damaged tail ends the walk.

    Raises UndecodableError for a header that is cut off, or a frame of too many blocks.
    """
    if len(data) < _HEADER_SIZE:
        raise UndecodableError("the gif is damaged: its header is cut off", field="image")
    width, height = _u16(data, 6), _u16(data, 8)
    first = (0, 0, width, height)
    at, frames = _HEADER_SIZE + _table(data, 10), 0
    for _ in range(_MAX_STEPS):
        kind = data[at : at + 1]
        if kind == b"\x21":
            at = _skip_blocks(data, at + 2)
        elif kind == b"\x2c" and frames < max_frames:
            left, top = _u16(data, at + 1), _u16(data, at + 3)
            right, bottom = left + _u16(data, at + 5), top + _u16(data, at + 7)
            first = first if frames else (left, top, right, bottom)
            width, height = max(width, right), max(height, bottom)
            frames += 1
            at = _skip_blocks(data, at + 11 + _table(data, at + 9))
        else:
            break
    return GifLayout(max(1, frames), width, height, first)


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
