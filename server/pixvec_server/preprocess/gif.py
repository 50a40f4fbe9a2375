"""What a GIF's blocks say: frames and the canvas that holds them; and the frames drawn onto that canvas.

Source: GIF89a. As in browsers, a canvas is transparent where nothing was drawn.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pixvec_server.errors import UndecodableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_MAX_STEPS = 20_000
_HEADER_SIZE = 13
_CONTROL = b"\x21\xf9\x04"
_DESCRIPTOR_SIZE = 10
_CLEAR, _RESTORE = 2, 3


@dataclass(frozen=True, slots=True)
class GifFrame:
    """A frame's box on the canvas (left, top, right, bottom), and where its block starts and ends.

    `transparent` is the index that draws nothing; `disposal` is what happens to the box afterwards.
    """

    box: tuple[int, int, int, int]
    start: int
    end: int
    transparent: int | None = None
    disposal: int = 0


@dataclass(frozen=True, slots=True)
class GifLayout:
    """Frames of a GIF, and the canvas that holds them all: a decoder enlarges it where one sticks out.

    `first` is the first frame's box on the canvas: left, top, right, bottom.
    """

    frames: int
    width: int
    height: int
    first: tuple[int, int, int, int]
    drawn: list[GifFrame] = field(default_factory=list)


def gif_layout(data: bytes, max_frames: int) -> GifLayout:
    """Read the blocks of a GIF, up to `max_frames` frames; a damaged tail ends the walk.

    Raises UndecodableError for a header that is cut off, a frame of too many blocks, or no frame.
    """
    if len(data) < _HEADER_SIZE:
        raise UndecodableError("the gif is damaged: its header is cut off", field="image")
    width, height = _u16(data, 6), _u16(data, 8)
    first = (0, 0, width, height)
    at, frames = _HEADER_SIZE + _table(data, 10), 0
    drawn: list[GifFrame] = []
    control: tuple[int | None, int] = (None, 0)
    for _ in range(_MAX_STEPS):
        kind = data[at : at + 1]
        if kind == b"\x21":
            control = _control(data, at) or control
            at = _skip_blocks(data, at + 2)
        elif kind == b"\x2c" and frames < max_frames:
            left, top = _u16(data, at + 1), _u16(data, at + 3)
            right, bottom = left + _u16(data, at + 5), top + _u16(data, at + 7)
            box = left, top, right, bottom
            first = first if frames else box
            width, height = max(width, right), max(height, bottom)
            frames += 1
            start, at = at, _skip_blocks(data, at + 11 + _table(data, at + 9))
            drawn.append(GifFrame(box, start, at, *control))
            control = None, 0
        else:
            break
    if not frames:
        raise UndecodableError(
            "the gif has no frame: it is damaged or cut off; send the whole file", field="image"
        )
    return GifLayout(frames, width, height, first, drawn)


def later_frames(data: bytes, layout: GifLayout, first: Image.Image) -> Iterator[Image.Image]:
    """Yield the canvas, in RGBA, with each frame after the first; `first` is that with the first one.

    What sticks out of the first canvas is not drawn. Raises what Pillow raises for a damaged frame.
    """
    canvas = np.array(first.convert("RGBA"))
    before = np.zeros_like(canvas) if layout.drawn[0].disposal == _RESTORE else canvas
    for last, frame in zip(layout.drawn, layout.drawn[1:], strict=False):
        if last.disposal == _RESTORE:
            canvas = before
        elif last.disposal == _CLEAR:
            left, top, right, bottom = last.box
            canvas[top:bottom, left:right] = 0
        before = canvas.copy() if frame.disposal == _RESTORE else canvas
        _draw(data, frame, canvas)
        yield Image.fromarray(canvas)


def _draw(data: bytes, frame: GifFrame, canvas: NDArray[np.uint8]) -> None:
    left, top, right, bottom = frame.box
    place = canvas[top:bottom, left:right]
    if not place.size:
        return
    with Image.open(io.BytesIO(_alone(data, frame)), formats=("GIF",)) as image:
        indices = np.asarray(image)[: place.shape[0], : place.shape[1]]
        colors = np.asarray(image.convert("RGBA"))[: place.shape[0], : place.shape[1]]
    is_drawn = np.ones(indices.shape, bool) if frame.transparent is None else indices != frame.transparent
    place[is_drawn] = colors[is_drawn]


def _alone(data: bytes, frame: GifFrame) -> bytes:
    """Return a file of one frame, whose canvas is the frame's box."""
    left, top, right, bottom = frame.box
    size = struct.pack("<HH", right - left, bottom - top)
    head = data[:6] + size + data[10 : _HEADER_SIZE + _table(data, 10)]
    descriptor = b"\x2c" + bytes(4) + size + data[frame.start + 9 : frame.start + _DESCRIPTOR_SIZE]
    return head + descriptor + data[frame.start + _DESCRIPTOR_SIZE : frame.end] + b"\x3b"


def _control(data: bytes, at: int) -> tuple[int | None, int] | None:
    """Return the transparent index and the disposal of a graphic control extension, None for another."""
    if not data.startswith(_CONTROL, at) or at + 7 > len(data):
        return None
    return data[at + 6] if data[at + 3] & 1 else None, data[at + 3] >> 2 & 7


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
