"""One decoder for one file, and files that no library here writes."""

from __future__ import annotations

import contextlib
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server.preprocess import Decoded, DecodeOptions, Decoder, ImageLimits, PixelBudget

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

# Canonical Huffman codes of equal length: 11 sizes of DC differences, one AC symbol (end of block).
_DC_BITS, _AC_BITS = 4, 1


def decode(
    data: bytes, limits: ImageLimits | None = None, short_side: int | None = None, **options: Any
) -> Decoded:
    """Decode a file with these options."""
    decoder = Decoder(limits or ImageLimits(), DecodeOptions(**options), PixelBudget(400_000_000))
    with contextlib.ExitStack() as held:
        return decoder.decode(data, held, short_side)


def rgb_of(data: bytes, **options: Any) -> NDArray[np.uint8]:
    """Decode a file to (height, width, 3)."""
    return np.asarray(decode(data, **options).pixels)[:, :, :3]


def mosaic_jpeg(
    planes: Sequence[NDArray[np.int64]],
    factors: Sequence[tuple[int, int]],
    *,
    ids: bytes = b"\x01\x02\x03\x04",
    adobe: int | None = None,
) -> bytes:
    """Write a baseline JPEG of flat blocks in any sampling; no library writes them all.

    planes: the level of each 8 x 8 block of each component, its own size; factors: across and down.
    """
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    rows, columns = planes[0].shape[0] // factors[0][1], planes[0].shape[1] // factors[0][0]
    count = len(planes)
    frame = struct.pack(">BHHB", 8, rows * 8 * down, columns * 8 * across, count)
    frame += b"".join(bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    scan = bytes([count]) + b"".join(bytes([ids[i], 0]) for i in range(count)) + b"\x00\x3f\x00"
    parts = [b"\xff\xd8"]
    if adobe is not None:
        parts.append(_segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe)))
    parts += [
        _segment(0xDB, b"\x00" + bytes([8] * 64)),
        _segment(0xC0, frame),
        _segment(0xC4, b"\x00" + bytes([0, 0, 0, 11] + [0] * 12) + bytes(range(11))),
        _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\x00"),
        _segment(0xDA, scan),
        _entropy_coded(planes, factors, rows, columns),
        b"\xff\xd9",
    ]
    return b"".join(parts)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _entropy_coded(
    planes: Sequence[NDArray[np.int64]], factors: Sequence[tuple[int, int]], rows: int, columns: int
) -> bytes:
    bits: list[str] = []
    before = [0] * len(planes)
    interleaved = len(planes) > 1
    for row, column in np.ndindex(*((rows, columns) if interleaved else planes[0].shape)):
        for i, (h, v) in enumerate(factors):
            size = (v, h) if interleaved else (1, 1)
            for y, x in np.ndindex(*size):
                level = int(planes[i][row * size[0] + y, column * size[1] + x]) - 128
                bits.append(_difference(level - before[i]))
                before[i] = level
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")


def _difference(value: int) -> str:
    size = abs(value).bit_length()
    code = f"{size:0{_DC_BITS}b}"
    if size:
        code += f"{value if value > 0 else value + (1 << size) - 1:0{size}b}"
    return code + "0" * _AC_BITS


def png_chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """Write a chunk, with a checksum of one's own or the right one."""
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(
    samples: NDArray[Any], bits: int, color_type: int, *chunks: bytes, after: Iterable[bytes] = ()
) -> bytes:
    """Write a PNG of samples (height, width) or (height, width, channels), with chunks before its pixels."""
    height, width = samples.shape[:2]
    wide = samples.reshape(height, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in wide]
    else:
        rows = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in wide]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), *after,
         png_chunk(b"IEND", b"")]
    )  # fmt: skip


def tiff(tags: Mapping[int, int | tuple[int, ...]], body: bytes, order: str = "<") -> bytes:
    """Write a TIFF of one directory and one strip by hand; every tag's values are SHORT."""
    entries: dict[int, int | tuple[int, ...]] = {**tags, 273: 0, 279: len(body)}
    end = 8 + 2 + 12 * len(entries) + 4
    rows, extra = b"", b""
    strip_at = end + sum(2 * len(v) for v in entries.values() if isinstance(v, tuple) and len(v) > 2)
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        if tag in (273, 279):
            rows += struct.pack(f"{order}HHII", tag, 4, 1, strip_at if tag == 273 else len(body))
            continue
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            rows += struct.pack(f"{order}HHII", tag, 3, len(values), end + len(extra))
            extra += packed
        else:
            rows += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, len(entries)) + rows + bytes(4) + extra + body


def packed(values: NDArray[Any], bits: int) -> bytes:
    """Pack samples (height, width) of any number of bits, each row from a byte of its own."""
    shifts = np.arange(bits)[::-1]
    return b"".join(np.packbits((row.astype(np.int64)[:, None] >> shifts) & 1).tobytes() for row in values)
