"""What an AVIF's boxes and its AV1 sequence headers say: the size of every frame.

The boxes alone do not bound the work: a decoder allocates what the AV1 data ask for, and scales the frame
to what the boxes say. Sources: ISO 14496-12, ISO 23008-12, AV1 bitstream specification 5.5.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from pixvec_server.errors import UndecodableError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_BOXES = 10_000
_MAX_UNITS = 10_000
_MAX_HEADER_BYTES = 512
_FOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"ipco"}
_TABLES = {b"iinf", b"iloc", b"idat", b"stsd", b"stsc", b"stsz", b"stco", b"co64"}
_IMAGE, _GRID = b"av01", b"grid"
_SEQUENCE_HEADER = 1
_SAMPLE_ENTRY_SIZE_AT = 24
_IN_FILE, _IN_IDAT = 0, 1


@dataclass(slots=True)
class AvifLayout:
    """Sizes that the file asks for, in pixels; `item_types` are where each item's type stands."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    item_types: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Range:
    """AV1 data of one item or sample: `data[start:stop]`."""

    data: bytes
    start: int
    stop: int


def read_layout(data: bytes) -> AvifLayout:
    """Read the boxes and the sequence headers of an AVIF.

    Raises UndecodableError for too many boxes, or for an image without a sequence header: its size is
    unknown. Raises UnsupportedFormatError for items inside of items.
    """
    return _Reader(data).read()


def without_items(data: bytes, layout: AvifLayout, types: Iterable[bytes]) -> bytes:
    """Return the file with its items of these types declared as free space, so that no decoder reads them."""
    changed = bytearray(data)
    for at in layout.item_types:
        if data[at : at + 4] in types:
            changed[at : at + 4] = b"free"
    return bytes(changed)


class _Reader:
    """Walks the boxes of a file; `_streams` are the AV1 data of each image, in parts."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._layout = AvifLayout()
        self._streams: list[Iterable[_Range]] = []
        self._boxes_left = _MAX_BOXES
        self._extents_left = _MAX_BOXES
        self._units_left = _MAX_UNITS
        # Items may share data, but need no more copies than the file has bytes.
        self._copies_left = len(data)

    def read(self) -> AvifLayout:
        self._walk(0, len(self._data))
        for parts in self._streams:
            sizes = [size for part in parts for size in self._frame_sizes(part)]
            if not sizes:
                raise UndecodableError("the avif is damaged: an image has no sequence header", field="image")
            self._layout.sizes += sizes
        return self._layout

    def _walk(self, at: int, end: int) -> None:
        tables: dict[bytes, tuple[int, int]] = {}
        for kind, start, stop in _boxes(self._data, at, end):
            self._boxes_left = _counted(self._boxes_left, 1, f"{_MAX_BOXES} boxes")
            if kind in _FOLDERS or kind == b"meta":
                self._walk(start + 4 if kind == b"meta" else start, stop)
            elif kind == b"ispe":
                self._note_size(start + 4, 4)
            elif kind in tables:
                raise UndecodableError(
                    f"the avif is damaged: it has two {kind.decode()} boxes in one place", field="image"
                )
            elif kind in _TABLES:
                tables[kind] = start, stop
        if b"iloc" in tables:
            self._note_items(tables)
        if b"stsd" in tables:
            self._note_track(tables)

    def _note_size(self, at: int, width: int) -> None:
        self._layout.sizes.append((_number(self._data, at, width), _number(self._data, at + width, width)))

    def _note_items(self, tables: dict[bytes, tuple[int, int]]) -> None:
        types = self._item_types(*tables[b"iinf"]) if b"iinf" in tables else {}
        idat = tables.get(b"idat", (0, 0))
        for item, extents in self._item_extents(*tables[b"iloc"], idat):
            kinds = types.get(item, set())
            if _IMAGE in kinds:
                self._streams.append([self._joined(extents)])
            if _GRID in kinds:
                grid = self._joined(extents)
                width = 4 if _number(grid.data, grid.start + 1, 1) & 1 else 2
                body = grid.data[grid.start + 4 : grid.stop]
                self._layout.sizes.append((_number(body, 0, width), _number(body, width, width)))

    def _item_types(self, start: int, stop: int) -> dict[int, set[bytes]]:
        """Return the types that each item is declared with (ISO 14496-12, 8.11.6)."""
        types: dict[int, set[bytes]] = {}
        for kind, at, _ in _boxes(self._data, start + (8 if _number(self._data, start, 1) else 6), stop):
            self._boxes_left = _counted(self._boxes_left, 1, f"{_MAX_BOXES} boxes")
            if kind != b"infe":
                continue
            wide = 4 if _number(self._data, at, 1) == 3 else 2
            place = at + 4 + wide + 2
            types.setdefault(_number(self._data, at + 4, wide), set()).add(self._data[place : place + 4])
            self._layout.item_types.append(place)
        return types

    def _item_extents(
        self, at: int, stop: int, idat: tuple[int, int]
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield each item's number, and the start and end of its extents (ISO 14496-12, 8.11.3)."""
        data = self._data
        version, widths = _number(data, at, 1), _number(data, at + 4, 2)
        offset_width, length_width, base_width = widths >> 12, widths >> 8 & 15, widths >> 4 & 15
        index_width = widths & 15 if version else 0
        wide = 4 if version == 2 else 2
        items, at = _number(data, at + 6, wide), at + 6 + wide
        for _ in range(items):
            self._extents_left = _counted(self._extents_left, 1, f"{_MAX_BOXES} items and extents")
            item, at = _number(data, at, wide), at + wide
            method = _number(data, at, 2) & 15 if version else _IN_FILE
            if method not in (_IN_FILE, _IN_IDAT):
                raise UnsupportedFormatError(
                    "an avif whose items lie inside of other items is not decoded: re-encode it",
                    field="image",
                )
            at += 4 if version else 2
            first, end = idat if method == _IN_IDAT else (0, len(data))
            first, at = first + _number(data, at, base_width), at + base_width
            count, at = _number(data, at, 2), at + 2
            self._extents_left = _counted(self._extents_left, count, f"{_MAX_BOXES} items and extents")
            extents = []
            for _ in range(count):
                start = min(end, first + _number(data, at + index_width, offset_width))
                at += index_width + offset_width + length_width
                length = _number(data, at - length_width, length_width)
                extents.append((start, min(end, start + length)))
            if at > stop:
                raise UndecodableError("the avif is damaged: its list of items is cut off", field="image")
            if len(extents) == 1 and extents[0][0] == extents[0][1]:
                extents = [(extents[0][0], end)]
            yield item, extents

    def _joined(self, extents: list[tuple[int, int]]) -> _Range:
        """Return an item's data as one range; only several extents are copied."""
        filled = [(start, stop) for start, stop in extents if start < stop]
        if len(filled) == 1:
            return _Range(self._data, *filled[0])
        size = sum(stop - start for start, stop in filled)
        self._copies_left = _counted(self._copies_left, size, "the file's own bytes in extents")
        return _Range(b"".join(self._data[start:stop] for start, stop in filled), 0, size)

    def _note_track(self, tables: dict[bytes, tuple[int, int]]) -> None:
        """Note the size of a track's sample entries, and where its samples are (ISO 14496-12, 8.7)."""
        start, stop = tables[b"stsd"]
        kinds = set()
        for kind, at, _ in _boxes(self._data, start + 8, stop):
            kinds.add(kind)
            self._note_size(at + _SAMPLE_ENTRY_SIZE_AT, 2)
        if _IMAGE in kinds:
            self._streams.append(self._samples(tables))

    def _samples(self, tables: dict[bytes, tuple[int, int]]) -> Iterator[_Range]:
        width = 8 if b"co64" in tables else 4
        chunks = self._table(tables.get(b"co64" if width == 8 else b"stco"), width, 1)
        runs = self._table(tables.get(b"stsc"), 4, 3)
        firsts = [first for first, _, _ in runs]
        sizes = self._sample_sizes(tables.get(b"stsz"))
        for index, (chunk,) in enumerate(chunks, 1):
            at, run = chunk, bisect_right(firsts, index) - 1
            for size in islice(sizes, runs[run][1] if run >= 0 else 0):
                yield _Range(self._data, at, min(len(self._data), at + size))
                at += size

    def _sample_sizes(self, table: tuple[int, int] | None) -> Iterator[int]:
        if table is None:
            return
        same, count = _number(self._data, table[0] + 4, 4), _number(self._data, table[0] + 8, 4)
        _counted(_MAX_UNITS, count, f"{_MAX_UNITS} samples")
        for i in range(count):
            yield same or _number(self._data, table[0] + 12 + 4 * i, 4)

    def _table(self, table: tuple[int, int] | None, width: int, columns: int) -> list[tuple[int, ...]]:
        """Return the rows of a table of numbers that starts with their count."""
        if table is None:
            return []
        start, stop = table
        count = min(_number(self._data, start + 4, 4), (stop - start - 8) // (width * columns))
        _counted(_MAX_BOXES, count, f"{_MAX_BOXES} chunks")
        places = range(start + 8, start + 8 + count * width * columns, width * columns)
        return [tuple(_number(self._data, at + i * width, width) for i in range(columns)) for at in places]

    def _frame_sizes(self, part: _Range) -> Iterator[tuple[int, int]]:
        for kind, at, end in _units(part):
            self._units_left = _counted(self._units_left, 1, f"{_MAX_UNITS} units")
            if kind == _SEQUENCE_HEADER:
                yield _frame_size(_Bits(part.data[at:end]))


def _counted(left: int, taken: int, limit: str) -> int:
    """Return what is left of a bound. Raises UndecodableError when that is less than nothing."""
    if taken > left:
        raise UndecodableError(f"the avif has more than {limit}: re-encode it", field="image")
    return left - taken


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


def _units(part: _Range) -> Iterator[tuple[int, int, int]]:
    """Yield the type and range of the AV1 units (OBUs) of a range; of a unit, its first bytes.

    A decoder does not look at the bit that is forbidden.
    """
    data, at = part.data, part.start
    while at < part.stop:
        head, start = data[at], at + 1 + (data[at] >> 2 & 1)
        size = part.stop - start
        if head & 2:
            size, start = _leb128(data, start)
        yield head >> 3 & 15, start, min(start + min(size, _MAX_HEADER_BYTES), part.stop)
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
