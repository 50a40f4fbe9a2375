"""What a WebP's header says. Nothing is decoded: opening it for decoding allocates its canvas."""

from __future__ import annotations


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the first chunk, None when it is of no known kind (RFC 9649)."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + _number(body[4:7]), 1 + _number(body[7:10])
    if kind == b"VP8 ":
        return _number(body[6:8]) & 0x3FFF, _number(body[8:10]) & 0x3FFF
    if kind == b"VP8L":
        bits = _number(body[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return None


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
