"""What an AVIF's boxes and its AV1 sequence headers say: the size of every frame.

The boxes alone do not bound the work: a decoder allocates what the AV1 data ask for, and scales the frame
to what the boxes say. Sources: ISO 14496-12, ISO 23008-12, AV1 bitstream specification 5.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixvec_server.errors import UndecodableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_BOXES = 10_000
_MAX_UNITS = 10_000
_MAX_HEADER_BYTES = 512
_FOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco"}
_SEQUENCE_HEADER = 1
_SAMPLE_ENTRY_SIZE_AT = 24


@dataclass(slots=True)
class AvifLayout:
    """Sizes that the file asks for, in pixels; `starts` is where AV1 data begin."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


def read_layout(data: bytes) -> AvifLayout:
    """Read the boxes and the sequence headers of an AVIF. Raises UndecodableError for too many boxes."""
    layout = AvifLayout()
    _walk(data, 0, len(data), layout, [0])
    units = 0
    for start in layout.starts:
        for kind, at, end in _units(data, start):
            units += 1
            if units > _MAX_UNITS:
                raise UndecodableError(
                    f"the avif has more than {_MAX_UNITS} units: re-encode it", field="image"
                )
            if kind == _SEQUENCE_HEADER:
                layout.sizes.append(_frame_size(_Bits(data[at:end])))
    return layout


def _walk(data: bytes, at: int, end: int, layout: AvifLayout, count: list[int]) -> None:
    for kind, start, stop in _boxes(data, at, end):
        count[0] += 1
        if count[0] > _MAX_BOXES:
            raise UndecodableError(f"the avif has more than {_MAX_BOXES} boxes: re-encode it", field="image")
        if kind in _FOLDERS:
            _walk(data, start, stop, layout, count)
        elif kind == b"meta":
            _walk(data, start + 4, stop, layout, count)
        else:
            _note(layout, kind, data, start, stop)


def _note(layout: AvifLayout, kind: bytes, data: bytes, start: int, stop: int) -> None:
    """Note what a box that holds no others says."""
    if kind == b"ispe":
        layout.sizes.append((_number(data, start + 4, 4), _number(data, start + 8, 4)))
    elif kind == b"stsd":
        _note_sample_entries(data, start + 8, stop, layout)
    elif kind in (b"stco", b"co64"):
        _note_chunks(data, start, stop, 4 if kind == b"stco" else 8, layout)
    elif kind == b"iloc":
        _note_items(data, start, stop, layout)
    elif kind == b"idat":
        layout.starts.append(start)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box in a range, and where its body starts and ends."""
    while at + 8 <= end:
        size, kind, start = _number(data, at, 4), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = _number(data, at + 8, 8), at + 16
        stop = min(at + size, end) if size else end
        if stop < start:
            return
        yield kind, start, stop
        at = stop


def _note_sample_entries(data: bytes, at: int, end: int, layout: AvifLayout) -> None:
    for _, start, _ in _boxes(data, at, end):
        where = start + _SAMPLE_ENTRY_SIZE_AT
        layout.sizes.append((_number(data, where, 2), _number(data, where + 2, 2)))


def _note_chunks(data: bytes, start: int, stop: int, width: int, layout: AvifLayout) -> None:
    count = min(_number(data, start + 4, 4), (stop - start - 8) // width)
    if count > _MAX_BOXES:
        raise UndecodableError(f"the avif has more than {_MAX_BOXES} chunks: re-encode it", field="image")
    layout.starts += [_number(data, start + 8 + i * width, width) for i in range(count)]


def _note_items(data: bytes, at: int, stop: int, layout: AvifLayout) -> None:
    """Note where each extent of each item starts (ISO 14496-12, 8.11.3)."""
    version, widths = data[at], _number(data, at + 4, 2)
    offset_width, length_width, base_width = widths >> 12, widths >> 8 & 15, widths >> 4 & 15
    index_width = widths & 15 if version else 0
    wide = 4 if version == 2 else 2
    items, at = _number(data, at + 6, wide), at + 6 + wide
    for _ in range(min(items, _MAX_BOXES)):
        at += wide + (2 if version else 0) + 2
        base, at = _number(data, at, base_width), at + base_width
        extents, at = _number(data, at, 2), at + 2
        for _ in range(min(extents, _MAX_BOXES)):
            layout.starts.append(base + _number(data, at + index_width, offset_width))
            at += index_width + offset_width + length_width
            if at > stop or len(layout.starts) > _MAX_BOXES:
                return


def _units(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield the type and range of the AV1 units (OBUs) that begin at a place; of a range, its first bytes."""
    while at < len(data) and not data[at] & 0x80:
        head, start = data[at], at + 1 + (data[at] >> 2 & 1)
        size = len(data) - start
        if head & 2:
            size, start = _leb128(data, start)
        yield head >> 3 & 15, start, start + min(size, _MAX_HEADER_BYTES)
        at = start + size


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 8]):
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            return value, at + i + 1
    return value, at + 8


class _Bits:
    """Reads bits, most significant first; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "big") if data else 0
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        shifted = self._bits >> self._left if self._left >= 0 else self._bits << -self._left
        return shifted & ((1 << count) - 1)


def _frame_size(bits: _Bits) -> tuple[int, int]:
    """Return the largest width and height of a sequence header (5.5.1)."""
    bits.take(3 + 1)
    if bits.take(1):
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            zeros = next((i for i in range(32) if bits.take(1)), 32)
            bits.take(zeros)
        if bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)


def _number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "big")
