"""What a TIFF's directories say: pages, tiles, sample form, camera raw. Nothing is decoded.

Sources: TIFF 6.0, Adobe DNG 1.7 (tags 50706 and 32803), BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pixvec_server.errors import UndecodableError, UnsupportedFormatError

_SUBFILE, _OLD_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_SAMPLES, _MAX_SAMPLE, _PLANAR, _TILE_WIDTH, _TILE_LENGTH, _SUB_DIRECTORIES = 277, 281, 284, 322, 323, 330
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SIGNED_MAX_SAMPLE = 332, 338, 339, 341
_YCBCR_SAMPLING, _DNG_VERSION = 530, 50706
_READ = {
    _SUBFILE, _OLD_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _MAX_SAMPLE,
    _PLANAR, _TILE_WIDTH, _TILE_LENGTH, _SUB_DIRECTORIES, _INK_SET, _SAMPLE_FORMAT, _SIGNED_MAX_SAMPLE,
    _EXTRA_SAMPLES, _YCBCR_SAMPLING, _DNG_VERSION,
}  # fmt: skip
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_MAX_ENTRIES, _MAX_VALUES, _MAX_SUB_DIRECTORIES = 4096, 16, 16
# Thumbnails and masks beside the pictures; entries of all directories of a file.
_MAX_REDUCED, _MAX_ALL_ENTRIES = 64, 200_000
_REDUCED_OR_MASK = 0b101
_MIN_IS_WHITE, _MIN_IS_BLACK, _SEPARATED, _YCBCR = 0, 1, 5, 6
_RAW_PHOTOMETRICS = {32803: "a color filter array", 34892: "linear raw samples"}
_LABS = {8: "CIELAB", 9: "ICCLAB", 10: "ITULAB"}
_SAMPLE_FORMATS = {
    2: "signed integers",
    3: "floating-point numbers",
    5: "complex integers",
    6: "complex numbers",
}
_UNCOMPRESSED, _PREMULTIPLIED = 1, 1


@dataclass(frozen=True, slots=True)
class TiffPage:
    """The numbers of a directory's tags that matter here; `places` is where a tag's value stands."""

    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    def first(self, tag: int, default: int = 0) -> int:
        """Return a tag's first number."""
        return self.tags.get(tag, (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored."""
        return self.first(_WIDTH), self.first(_LENGTH)

    @property
    def tile(self) -> tuple[int, int] | None:
        """Width and height of a tile, None for strips."""
        if _TILE_WIDTH in self.tags and _TILE_LENGTH in self.tags:
            return self.first(_TILE_WIDTH), self.first(_TILE_LENGTH)
        return None

    @property
    def is_picture(self) -> bool:
        """Whether it is a page by itself: not a smaller copy of another, nor a mask."""
        return not self.first(_SUBFILE) & _REDUCED_OR_MASK and self.first(_OLD_SUBFILE) != 2

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return max(self.tags.get(_BITS, (1,)))

    @property
    def is_wide_gray(self) -> bool:
        """Whether it has one sample a pixel of 9 to 16 bits."""
        return 8 < self.bits <= 16 and self.first(_SAMPLES, 1) == 1

    @property
    def white(self) -> int:
        """The sample that is white, or black where small numbers are white.

        Declared by the bits of a sample, or by a MaxSampleValue of 2^n - 1: fewer bits in wider samples.
        """
        full = (1 << self.bits) - 1
        for tag in (_SIGNED_MAX_SAMPLE, _MAX_SAMPLE):
            declared = self.first(tag)
            if 0xFF < declared < full and not declared & (declared + 1):
                return declared
        return full

    @property
    def is_min_white(self) -> bool:
        """Whether small numbers are white."""
        return self.first(_PHOTOMETRIC, _MIN_IS_WHITE) == _MIN_IS_WHITE

    @property
    def is_scaled(self) -> bool:
        """Whether white is less than the samples could hold."""
        return 8 < self.bits <= 16 and self.white != (1 << self.bits) - 1

    @property
    def compression(self) -> int:
        """The number of its compression."""
        return self.first(_COMPRESSION, _UNCOMPRESSED)

    @property
    def is_compressed(self) -> bool:
        """Whether its pixels are compressed."""
        return self.compression != _UNCOMPRESSED

    @property
    def is_planar(self) -> bool:
        """Whether it has a plane for each sample of a pixel."""
        return self.first(_PLANAR, 1) == 2 and self.first(_SAMPLES, 1) > 1

    @property
    def is_wide_planar(self) -> bool:
        """Whether it has planes of 16 bits."""
        return self.is_planar and self.bits == 16

    def described(self) -> str:
        """Return the page's form in words."""
        bits = "/".join(map(str, self.tags.get(_BITS, (1,))))
        return (
            f"a tiff of {self.first(_SAMPLES, 1)} samples of {bits} bits, photometric interpretation "
            f"{self.first(_PHOTOMETRIC)}, compression {self.compression}"
        )

    def as_min_is_black(self, data: bytes) -> bytes:
        """Return the file with small numbers declared black: Pillow ignores the other order at 16 bits."""
        place = self.places.get(_PHOTOMETRIC)
        if place is None:
            return data
        changed = bytearray(data)
        changed[place : place + 2] = struct.pack("<H" if data.startswith(b"II") else ">H", _MIN_IS_BLACK)
        return bytes(changed)


def read_pages(data: bytes, max_pictures: int) -> list[TiffPage]:
    """Return the file's directories in their order, up to as many pictures; a damaged one ends the list.

    Raises UnsupportedFormatError for a camera's raw file, whose first page is often a thumbnail, or for a
    big-endian BigTIFF; UndecodableError for directories of too many entries.
    """
    if data.startswith(b"MM\x00+"):
        raise UnsupportedFormatError(
            "a big-endian BigTIFF is not decoded: save it in little-endian byte order, or as a classic tiff",
            field="image",
        )
    order, is_big = "<" if data.startswith(b"II") else ">", data[2:4] in (b"+\x00", b"\x00+")
    reader = _Reader(data, order, is_big)
    pages: list[TiffPage] = []
    at, seen, left = reader.first, set[int](), max_pictures
    while at and at not in seen and left > 0 and len(pages) < max_pictures + _MAX_REDUCED:
        seen.add(at)
        page, at = reader.page(at)
        if page is None:
            break
        _refuse_raw(page, reader)
        pages.append(page)
        left -= page.is_picture
    return pages


def check_form(page: TiffPage) -> None:
    """Raise UnsupportedFormatError for samples without a fixed meaning in RGB."""
    formats = set(page.tags.get(_SAMPLE_FORMAT, (1,)))
    odd = next((_SAMPLE_FORMATS[kind] for kind in sorted(formats) if kind in _SAMPLE_FORMATS), None)
    if odd:
        raise UnsupportedFormatError(
            f"a tiff of {odd} has no fixed white: convert it to unsigned 8 or 16 bits", field="image"
        )
    photometric = page.first(_PHOTOMETRIC)
    if photometric in _LABS:
        raise UnsupportedFormatError(
            f"a tiff in {_LABS[photometric]} is not decoded: convert it to RGB", field="image"
        )
    if photometric == _YCBCR and not page.is_compressed and page.tags.get(_YCBCR_SAMPLING, (2, 2)) != (1, 1):
        raise UnsupportedFormatError(
            "a tiff of uncompressed, subsampled YCbCr is not decoded: convert it to RGB", field="image"
        )
    if page.is_planar and _PREMULTIPLIED in page.tags.get(_EXTRA_SAMPLES, ()):
        raise UnsupportedFormatError(
            "a tiff of planes with premultiplied alpha is not decoded: interleave its samples", field="image"
        )
    if photometric == _SEPARATED and page.first(_INK_SET, 1) != 1:
        raise UnsupportedFormatError("a tiff of inks other than CMYK: convert it to RGB", field="image")


def _refuse_raw(page: TiffPage, reader: _Reader) -> None:
    below = [reader.page(at)[0] for at in page.tags.get(_SUB_DIRECTORIES, ())[:_MAX_SUB_DIRECTORIES]]
    form = next(
        (_RAW_PHOTOMETRICS[kind] for each in (page, *below) if each
         for kind in each.tags.get(_PHOTOMETRIC, ()) if kind in _RAW_PHOTOMETRICS), None
    )  # fmt: skip
    if form is None and _DNG_VERSION not in page.tags:
        return
    kind = "DNG" if _DNG_VERSION in page.tags else f"based on tiff, with {form}"
    raise UnsupportedFormatError(
        f"this is a camera's raw file ({kind}), which is not decoded: convert it to jpeg or tiff",
        field="image",
    )


class _Reader:
    """Reads directories of a file by its byte order and width of offsets."""

    def __init__(self, data: bytes, order: str, is_big: bool) -> None:
        self._data, self._order, self._is_big = data, order, is_big
        self._offset, self._offset_size = ("Q", 8) if is_big else ("I", 4)
        self.first = self._number(8 if is_big else 4, self._offset)
        self._entries_left = _MAX_ALL_ENTRIES

    def page(self, at: int) -> tuple[TiffPage | None, int]:
        """Return the directory at a place, None for none, and where the next one is."""
        count_form, head, entry = ("Q", 8, 20) if self._is_big else ("H", 2, 12)
        count = self._number(at, count_form)
        if not 0 < count <= _MAX_ENTRIES or at + head + count * entry > len(self._data):
            return None, 0
        self._entries_left -= count
        if self._entries_left < 0:
            raise UndecodableError(
                f"the tiff's directories have more than {_MAX_ALL_ENTRIES} entries: re-encode it",
                field="image",
            )
        page = TiffPage()
        for start in range(at + head, at + head + count * entry, entry):
            self._note(page, start)
        return page, self._number(at + head + count * entry, self._offset)

    def _note(self, page: TiffPage, start: int) -> None:
        tag, kind = self._number(start, "H"), self._number(start + 2, "H")
        form = _TYPES.get(kind)
        if tag not in _READ or form is None or tag in page.tags:
            return
        count = self._number(start + 4, self._offset)
        inline = start + 4 + self._offset_size
        size = struct.calcsize(f"={form}")
        place = inline if count * size <= self._offset_size else self._number(inline, self._offset)
        values = tuple(self._number(place + i * size, form) for i in range(min(count, _MAX_VALUES)))
        if values:
            page.tags[tag], page.places[tag] = values, place

    def _number(self, at: int, form: str) -> int:
        size = struct.calcsize(f"={form}")
        if at < 0 or at + size > len(self._data):
            return 0
        return int(struct.unpack_from(self._order + form, self._data, at)[0])
