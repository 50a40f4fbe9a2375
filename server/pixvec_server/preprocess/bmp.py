"""BMP files whose channels are given by bit masks, and run-length BMP.

Pillow reads a few layouts of masks only, and takes a run-length file with skipped pixels for a damaged one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pixvec_server.errors import UndecodableError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pixvec_server.types import U8

_INFO_HEADER, _MASKS_AT, _FILE_HEADER = 40, 54, 14
_RUN_LENGTHS, _BIT_FIELDS = (1, 2), (3, 6)
# Run lengths are decoded in Python, with the GIL held.
_MAX_RUN_LENGTH_PIXELS = 1_000_000
_COMPRESSION_AT = 30
_END_OF_LINE, _END_OF_BITMAP, _DELTA = 0, 1, 2
_MAX_TABLE_BITS = 16
_MAX_COMMANDS_PER_PIXEL = 4


@dataclass(frozen=True, slots=True)
class BmpHeader:
    """Where the pixels start, size in pixels, row order, bits of a pixel, and the masks of R, G, B and A."""

    offset: int
    width: int
    height: int
    is_top_down: bool
    bits: int
    compression: int
    masks: tuple[int, int, int, int]

    @property
    def has_masks(self) -> bool:
        """Whether `decode_masked` reads it."""
        return self.compression in _BIT_FIELDS and self.bits in (16, 32) and any(self.masks)


def read_header(data: bytes) -> BmpHeader | None:
    """Read a BMP's header; None for one that is older than the masks or damaged.

    Raises UnsupportedFormatError for a large run-length file.
    """
    size = _number(data, _FILE_HEADER, 4)
    if size < _INFO_HEADER or len(data) < _FILE_HEADER + _INFO_HEADER:
        return None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, _FILE_HEADER + 4)
    if compression in _RUN_LENGTHS and abs(width * height) > _MAX_RUN_LENGTH_PIXELS:
        raise UnsupportedFormatError(
            f"a run-length bmp of over {_MAX_RUN_LENGTH_PIXELS} pixels: save it uncompressed", field="image"
        )
    has_alpha = size >= 56 or compression == 6
    red, green, blue, alpha = (_number(data, _MASKS_AT + 4 * i, 4) for i in range(4))
    masks = red, green, blue, alpha if has_alpha else 0
    return BmpHeader(_number(data, 10, 4), width, abs(height), height < 0, bits, compression, masks)


def without_masks(data: bytes) -> bytes:
    """Return the file declared as uncompressed, which Pillow opens whatever the masks are."""
    return data[:_COMPRESSION_AT] + bytes(4) + data[_COMPRESSION_AT + 4 :]


def decode_masked(data: bytes, header: BmpHeader) -> Image.Image:
    """Decode a BMP of bit masks: mode RGB, or RGBA when a mask of alpha is there and any alpha is not 0.

    Raises UndecodableError for a truncated file.
    """
    row_bytes = (header.width * header.bits + 31) // 32 * 4
    if len(data) < header.offset + row_bytes * header.height:
        raise UndecodableError("the bmp is truncated: send the whole file", field="image")
    kind = np.dtype("<u2" if header.bits == 16 else "<u4")
    rows = np.frombuffer(data, np.uint8, row_bytes * header.height, header.offset).reshape(-1, row_bytes)
    values = np.ascontiguousarray(rows[:: 1 if header.is_top_down else -1]).view(kind)[:, : header.width]
    channels = [_channel(values, mask) for mask in header.masks[:3]]
    alpha = header.masks[3]
    # Many writers declare an alpha channel and leave it at 0 throughout: viewers show such a file opaque.
    if alpha and (values & kind.type(alpha)).any():
        channels.append(_channel(values, alpha))
    return Image.fromarray(np.dstack(channels))


def decode_run_lengths(data: bytes, start: int, size: tuple[int, int], *, is_4_bit: bool) -> bytes:
    """Return the palette indices of a run-length file, (height, width) in the file's order of rows.

    What the file skips is 0, as viewers show it. Raises UndecodableError for a truncated file.
    """
    width, height = size
    pixels, x, y = bytearray(width * height), 0, 0
    for run, right, down, is_new_line in _run_commands(data, start, width * height, is_4_bit=is_4_bit):
        fitting = run[: max(0, width - x)]
        pixels[y * width + x : y * width + x + len(fitting)] = fitting
        x, y = (0 if is_new_line else x + len(run) + right), y + down
        if y >= height or (y == height - 1 and x >= width):
            break
    return bytes(pixels)


def _run_commands(
    data: bytes, at: int, pixels: int, *, is_4_bit: bool
) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield for each command what it draws, how far it moves afterwards, and whether a row ends."""
    for _ in range(_MAX_COMMANDS_PER_PIXEL * pixels + _MAX_COMMANDS_PER_PIXEL):
        count, code = data[at : at + 1], data[at + 1 : at + 2]
        at += 2
        if not code:
            raise UndecodableError("the bmp is truncated: send the whole file", field="image")
        if count[0]:
            yield _repeated(code[0], count[0], is_4_bit=is_4_bit), 0, 0, False
        elif code[0] == _END_OF_LINE:
            yield b"", 0, 1, True
        elif code[0] == _END_OF_BITMAP:
            return
        elif code[0] == _DELTA:
            yield b"", _number(data, at, 1), _number(data, at + 1, 1), False
            at += 2
        else:
            size = (code[0] + 1) // 2 if is_4_bit else code[0]
            run = data[at : at + size]
            yield (_nibbles(run)[: code[0]] if is_4_bit else run), 0, 0, False
            at += size + (size & 1)
    raise UndecodableError("the bmp has more commands than pixels: re-encode it", field="image")


def _repeated(value: int, count: int, *, is_4_bit: bool) -> bytes:
    return (_nibbles(bytes([value])) * count if is_4_bit else bytes([value]) * count)[:count]


def _nibbles(run: bytes) -> bytes:
    return bytes(half for byte in run for half in (byte >> 4, byte & 15))


def opaque_if_empty(image: Image.Image) -> Image.Image:
    """Return an RGBA image without its alpha when that is 0 in every pixel."""
    if image.mode != "RGBA" or image.getchannel("A").getbbox() is not None:
        return image
    return image.convert("RGB")


def _channel(values: NDArray[np.unsignedinteger[Any]], mask: int) -> U8:
    """Scale the bits under a mask to 0..255, rounded; of more than 16 bits the upper 16 count."""
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    if most & (most + 1):
        raise UnsupportedFormatError(
            f"a bmp with the color mask {mask:#x}, which has gaps, is not decoded: save it with 24 bits",
            field="image",
        )
    excess = max(0, most.bit_length() - _MAX_TABLE_BITS)
    levels = np.rint(np.arange((most >> excess) + 1) * (255 / (most >> excess))).astype(np.uint8)
    scaled: U8 = levels[(values & values.dtype.type(mask)) >> (shift + excess)]
    return scaled


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
