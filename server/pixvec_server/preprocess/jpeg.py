"""What a JPEG's markers say: size, components, scans, metadata. Nothing is decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pixvec_server.errors import UndecodableError, UnsupportedFormatError

END_OF_IMAGE = b"\xff\xd9"
_MAX_SEGMENTS = 20_000
# A progressive JPEG of a few kilobytes can ask for thousands of passes over the whole picture.
_MAX_SCANS = 100
# Markers that begin a segment: TEM (01) and RST (d0 to d7) have no length.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SOS, _EOI, _APP0, _APP1, _APP2, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_DRI = 0xDD
_APPLICATION = range(0xE0, 0xF0)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_BLOCK = 8
_JFIF, _ICC, _ADOBE = b"JFIF\x00", b"ICC_PROFILE\x00", b"Adobe"
_METADATA = (b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00")
# Shorter ones are no JFIF, ICC or Adobe segments to libjpeg, and errors to Pillow.
_MIN_JFIF_BYTES, _MIN_ICC_BYTES, _MIN_ADOBE_BYTES = 14, 15, 12
_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Start-of-frame markers that libjpeg-turbo decodes: baseline, extended, progressive, each also arithmetic.
_DECODED = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_PROGRESSIVE = {0xC2, 0xCA}
_HUFFMAN = {0xC0, 0xC1, 0xC2}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_JPEG_LS = 0xF7
_COMMON_LUMA = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)}
_COEFFICIENTS = 64


@dataclass(frozen=True, slots=True)
class Component:
    """One color component: its id and its horizontal and vertical sampling factors."""

    id: int
    across: int
    down: int


@dataclass(slots=True)
class JpegHeader:
    """Size in pixels and structure of a JPEG.

    `has_metadata` and `has_profile` tell whether there are APP1 (EXIF, XMP) and ICC segments. `scans` holds
    the start of each scan's header, `is_ended` whether the end marker stands where it should. `segments` are
    those in front of the first scan: the marker's second byte, where the marker starts, where the body ends.
    `intervals` holds the MCUs (the blocks that are coded together) between restart markers, for each scan.
    """

    process: int = 0
    precision: int = 0
    width: int = 0
    height: int = 0
    components: tuple[Component, ...] = ()
    adobe_transform: int | None = None
    has_metadata: bool = False
    has_profile: bool = False
    is_ended: bool = False
    scans: list[int] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    restart_interval: int = 0

    @property
    def is_cmyk(self) -> bool:
        """Whether there are four components."""
        return len(self.components) == 4

    @property
    def is_common(self) -> bool:
        """Whether every decoder reads it alike: Huffman-coded gray or YCbCr of a usual sampling."""
        if self.process not in _HUFFMAN or len(self.components) not in (1, 3):
            return False
        if len(self.components) == 1:
            return True
        first, *chroma = self.components
        is_rgb = self.adobe_transform == 0 or bytes(part.id for part in self.components) == b"RGB"
        usual = (first.across, first.down) in _COMMON_LUMA
        return usual and not is_rgb and all((part.across, part.down) == (1, 1) for part in chroma)


def read_header(data: bytes) -> JpegHeader:
    """Read the markers of a JPEG.

    Raises UndecodableError for one without a frame or of too many scans, UnsupportedFormatError for a kind
    that libjpeg-turbo does not decode to 8 bits.
    """
    header = _walk(data)
    if not header.process:
        raise UndecodableError("the jpeg is damaged: it has no frame header", field="image")
    _check(header)
    return header


def has_all_scans(data: bytes, header: JpegHeader) -> bool:
    """Tell whether the scans together carry every coefficient of every component, to its last bit."""
    precise = {part.id: [False] * _COEFFICIENTS for part in header.components}
    for at in header.scans:
        count = data[at + 2] if at + 2 < len(data) else 0
        tail = at + 3 + 2 * count
        if not count or tail + 3 > len(data):
            return False
        first, last, low = data[tail], data[tail + 1], data[tail + 2] & 15
        if header.process not in _PROGRESSIVE:
            first, last, low = 0, _COEFFICIENTS - 1, 0
        for id_ in data[at + 3 : tail : 2]:
            if id_ in precise and low == 0 and last < _COEFFICIENTS:
                precise[id_][first : last + 1] = [True] * (last + 1 - first)
    return all(all(done) for done in precise.values())


def has_all_restarts(data: bytes, header: JpegHeader) -> bool:
    """Tell whether each scan has the restart markers that its number of MCUs asks for."""
    for at, interval in zip(header.scans, header.intervals, strict=True):
        ids = data[at + 3 : at + 3 + 2 * data[at + 2] : 2]
        first = at + int.from_bytes(data[at : at + 2], "big")
        following = _MARKER.search(data, first)
        last = following.start() if following else len(data)
        count = sum(1 for _ in _RESTART.finditer(data, first, last))
        if interval and count < -(-_mcus(header, ids) // interval) - 1:
            return False
    return True


def _mcus(header: JpegHeader, ids: bytes) -> int:
    across = max(part.across for part in header.components)
    down = max(part.down for part in header.components)
    if len(ids) != 1:
        return -(-header.width // (_BLOCK * across)) * -(-header.height // (_BLOCK * down))
    # A scan of one component has the blocks of its own samples alone.
    part = next(part for part in header.components if part.id == ids[0])
    width, height = -(-header.width * part.across // across), -(-header.height * part.down // down)
    return -(-width // _BLOCK) * -(-height // _BLOCK)


def without_unused(data: bytes, header: JpegHeader) -> bytes:
    """Return the JPEG without what its pixels, orientation and colors do not need in front of its first scan.

    Unused bytes between segments, comments and application segments go; EXIF, XMP, the color profile, and
    JFIF's and Adobe's markers stay, unless they are too short to hold anything.
    """
    if not header.scans:
        return data
    kept = [data[:2]]
    for kind, at, end in header.segments:
        body = memoryview(data)[at + 4 : end]
        if kind == _APP0 and _starts(body, _JFIF, _MIN_JFIF_BYTES):
            kept.append(_PLAIN_JFIF)
        elif (kind not in _APPLICATION and kind != _COM) or _is_used(kind, body):
            kept.append(data[at:end])
    kept.append(data[header.scans[0] - 2 :])
    return b"".join(kept)


def _is_used(kind: int, body: memoryview) -> bool:
    if kind == _APP1:
        return any(_starts(body, name) for name in _METADATA)
    if kind == _APP2:
        return _starts(body, _ICC, _MIN_ICC_BYTES)
    return kind == _APP14 and _starts(body, _ADOBE, _MIN_ADOBE_BYTES)


def _starts(body: memoryview, name: bytes, min_bytes: int = 0) -> bool:
    return len(body) >= min_bytes and body[: len(name)] == name


def _walk(data: bytes) -> JpegHeader:
    header, at = JpegHeader(), 2
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return header
        kind, start = data[marker.start() + 1], marker.end()
        if kind == _EOI:
            header.is_ended = True
            return header
        length = max(2, int.from_bytes(data[start : start + 2], "big"))
        _note(header, kind, data, start, length)
        at = start + length
        if not header.scans:
            header.segments.append((kind, marker.start(), at))
    raise UndecodableError(f"the jpeg has more than {_MAX_SEGMENTS} segments: re-encode it", field="image")


def _note(header: JpegHeader, kind: int, data: bytes, start: int, length: int) -> None:
    body = data[start + 2 : start + min(length, 64)]
    if kind == _SOS:
        header.scans.append(start)
        header.intervals.append(header.restart_interval)
        if len(header.scans) > _MAX_SCANS:
            raise UndecodableError(
                f"the jpeg asks for more than {_MAX_SCANS} scans: re-encode it", field="image"
            )
    elif (kind in _FRAMES or kind == _JPEG_LS) and not header.process:
        _note_frame(header, kind, body)
    elif kind == _DRI:
        header.restart_interval = int.from_bytes(body[:2], "big")
    elif kind == _APP1:
        header.has_metadata |= body.startswith(_METADATA)
    elif kind == _APP2:
        header.has_profile |= body.startswith(_ICC) and len(body) >= _MIN_ICC_BYTES
    elif kind == _APP14 and body.startswith(_ADOBE) and len(body) >= _MIN_ADOBE_BYTES:
        header.adobe_transform = body[11]


def _note_frame(header: JpegHeader, kind: int, body: bytes) -> None:
    count = body[5] if len(body) > 5 else 0
    if len(body) < 6 + 3 * min(count, 4):
        raise UndecodableError(
            "the jpeg is truncated in its frame header: send the whole file", field="image"
        )
    header.process, header.precision = kind, body[0]
    header.height, header.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    header.components = tuple(
        Component(body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, 6 + 3 * count, 3)
        if at + 1 < len(body)
    )  # fmt: skip


def _check(header: JpegHeader) -> None:
    kind = _unsupported_kind(header)
    if kind:
        raise UnsupportedFormatError(
            f"{kind} is not decoded: re-encode it as a baseline jpeg of 8 bits", field="image"
        )
    if not all(1 <= part.across <= 4 and 1 <= part.down <= 4 for part in header.components):
        raise UndecodableError("the jpeg is damaged: a sampling factor is not 1 to 4", field="image")


def _unsupported_kind(header: JpegHeader) -> str:
    count = len(header.components)
    kinds = (
        (header.process == _JPEG_LS, "a JPEG-LS file"),
        (header.process in _LOSSLESS, "a lossless jpeg"),
        (header.process not in _DECODED, "a hierarchical jpeg"),
        (header.precision != 8, f"a jpeg of {header.precision} bits"),
        (count not in (1, 3, 4), f"a jpeg of {count} components"),
        (_is_fractional(header), "a jpeg of fractional sampling, such as 3:2,"),
        (not header.height, "a jpeg whose height stands behind its pixels (DNL)"),
    )
    return next((words for applies, words in kinds if applies), "")


def _is_fractional(header: JpegHeader) -> bool:
    """Tell whether a component would be enlarged by a factor that is no whole number."""
    across = [part.across for part in header.components]
    down = [part.down for part in header.components]
    return any(max(each) % factor for each in (across, down) for factor in each if factor)
