"""PNG, BMP, GIF, WebP and AVIF in their odd forms, and bytes that are refused by name."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import photos
from support.decoding import decode, packed, png, png_chunk, rgb_of

from pixvec_server.errors import TooLargeError, UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess import ImageLimits

_PHOTO = photos.image("astronaut.png").resize((90, 60))
_RGB = np.asarray(_PHOTO)
_GRAY = np.asarray(_PHOTO.convert("L"))
_ALPHA = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))
_SHARE = _ALPHA[:, :, None] / 255
_OVER = _RGB * _SHARE + 255 * (1 - _SHARE)
_PNG = png(_RGB, 8, 2)


def _check(data: bytes, expected: Any, within: float = 1.0) -> None:
    got = rgb_of(data).astype(float)
    assert got.shape == np.shape(expected)
    assert np.abs(got - expected).max() <= within


def _gray3(values: Any) -> np.ndarray:
    return np.repeat(np.asarray(values, float)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("share", [0.0, 0.34, 0.5, 1.0])
def test_png_gray_with_a_transparent_level(bits: int, share: float) -> None:
    most = (1 << bits) - 1
    values = np.rint(_GRAY / 255 * most).astype(int)
    clear = int(share * most)
    expected = _gray3(np.where(values == clear, 255, values * 255 / most))
    _check(png(values, bits, 0, png_chunk(b"tRNS", struct.pack(">H", clear))), expected)
    # Bits above a sample's own do not count.
    above = clear | 0xA5A5 << bits & 0xFFFF
    _check(png(values, bits, 0, png_chunk(b"tRNS", struct.pack(">H", above))), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_png_rgb_with_a_transparent_color(bits: int) -> None:
    values = _RGB.astype(int) * (257 if bits == 16 else 1)
    clear = values[10, 10]
    chunk = png_chunk(b"tRNS", struct.pack(">3H", *clear))
    _check(png(values, bits, 2, chunk), np.where((values == clear).all(axis=2)[:, :, None], 255, _RGB))
    # All bits of a sample count: the next value is another color.
    other = clear + np.array([1, 0, 0])
    assert not (values == other).all(axis=2).any()
    _check(png(values, bits, 2, png_chunk(b"tRNS", struct.pack(">3H", *other))), _RGB)


@pytest.mark.parametrize("wide", [1, 257])
def test_png_with_an_alpha_channel(wide: int) -> None:
    bits = 8 if wide == 1 else 16
    _check(png(np.dstack([_RGB, _ALPHA]).astype(int) * wide, bits, 6), _OVER)
    gray = np.dstack([_GRAY, _ALPHA]).astype(int) * wide
    _check(png(gray, bits, 4), _gray3(_GRAY * _SHARE[:, :, 0] + 255 * (1 - _SHARE[:, :, 0])))


@pytest.mark.parametrize(
    "kind",
    [b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"iCCP", b"eXIf", b"pHYs", b"sRGB", b"tIME", b"prVt"],
)
@pytest.mark.parametrize("body", [b"", b"a", b"abc\0defgh"])
@pytest.mark.parametrize("crc", [None, 7])
def test_an_ancillary_chunk_of_a_png_never_fails_it(kind: bytes, body: bytes, crc: int | None) -> None:
    chunk = png_chunk(kind, body, crc=crc)
    _check(png(_RGB, 8, 2, chunk), _RGB, within=0)
    _check(png(_RGB, 8, 2, after=[chunk]), _RGB, within=0)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"tRNS"])
def test_a_png_whose_pixels_depend_on_a_wrong_checksum_is_refused(kind: bytes) -> None:
    data = bytearray(png(_RGB, 8, 2, png_chunk(b"tRNS", bytes(6))))
    at = data.index(kind)
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length] ^= 1
    with pytest.raises(UndecodableError, match=f"checksum of a {kind.decode()} chunk"):
        decode(bytes(data))


@pytest.mark.parametrize("size", [100_000, 5_000_000, 30_000_000])
@pytest.mark.parametrize("head", [b"zTXt" + b"k\0\0", b"iTXt" + b"XML:com.adobe.xmp\0\1\0\0\0",
                                  b"zTXt" + b"Raw profile type exif\0\0", b"iCCP" + b"k\0\0"])  # fmt: skip
def test_a_text_or_profile_of_any_size_does_not_matter(size: int, head: bytes) -> None:
    chunk = png_chunk(head[:4], head[4:] + zlib.compress(bytes(size)))
    _check(png(_RGB, 8, 2, chunk), _RGB, within=0)
    assert decode(png(_RGB, 8, 2, chunk), color="srgb").width == 90


def test_a_png_without_end_chunk_is_decoded_and_one_without_pixels_is_not() -> None:
    _check(_PNG[:-12], _RGB, within=0)
    for end in (len(_PNG) - 20, len(_PNG) // 2, 60):
        with pytest.raises(UndecodableError, match="truncated"):
            decode(_PNG[:end])


def _rows(samples: np.ndarray, bits: int) -> bytes:
    return b"".join(b"\0" + packed(row.reshape(1, -1), bits) for row in samples)


def _adam7(samples: np.ndarray, bits: int) -> bytes:
    """Write the rows of the seven passes, by the table of the PNG specification (section 8.2)."""
    starts = ((0, 0), (0, 4), (4, 0), (0, 2), (2, 0), (0, 1), (1, 0))
    steps = ((8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1))
    parts = []
    for (top, left), (down, across) in zip(starts, steps, strict=True):
        part = samples[top::down, left::across]
        parts.append(_rows(part, bits) if part.size else b"")
    return b"".join(parts)


def _png_of(scanlines: bytes, shape: tuple[int, ...], bits: int, color_type: int, interlaced: int) -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], bits, color_type, 0, 0, interlaced)
    palette = png_chunk(b"PLTE", bytes(range(48))) if color_type == 3 else b""
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), palette,
         png_chunk(b"IDAT", zlib.compress(scanlines)), png_chunk(b"IEND", b"")]
    )  # fmt: skip


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(
    ("bits", "color_type", "channels"),
    [(1, 0, 1), (4, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (4, 3, 1), (8, 4, 2), (8, 6, 4)],
)
@pytest.mark.parametrize("shape", [(41, 27), (8, 9), (1, 5), (3, 1), (2, 2)])
def test_a_png_whose_data_end_before_its_last_row_is_truncated(
    shape: tuple[int, int], bits: int, color_type: int, channels: int, interlaced: int
) -> None:
    """The compressed data are sound and end properly, after fewer rows than the header declares."""
    samples = np.full((*shape, channels), min((1 << bits) - 1, 15), np.int64)
    for value in (samples, samples * 0):
        lines = (_adam7 if interlaced else _rows)(value, bits)
        for whole in (lines, lines + bytes(9)):
            assert decode(_png_of(whole, shape, bits, color_type, interlaced)).width == shape[1]
        for kept in {len(lines) - 1, len(lines) * 2 // 3, len(lines) // 3}:
            with pytest.raises(UndecodableError, match="truncated"):
                decode(_png_of(lines[:kept], shape, bits, color_type, interlaced))


def test_a_png_of_a_transparent_color_and_missing_rows_is_truncated() -> None:
    samples = np.full((40, 30, 1), 7)
    data = _png_of(_rows(samples, 8)[:600], (40, 30), 8, 0, 0)
    with pytest.raises(UndecodableError, match="truncated"):
        decode(data[:33] + png_chunk(b"tRNS", b"\0\7") + data[33:])


@pytest.mark.parametrize(("color_type", "body"), [(0, b""), (0, b"\0"), (2, b"\0" * 5)])
def test_a_transparent_color_that_is_cut_short_is_named(color_type: int, body: bytes) -> None:
    samples = _GRAY if color_type == 0 else _RGB
    with pytest.raises(UndecodableError, match=f"tRNS chunk has {len(body)} bytes and needs"):
        decode(png(samples.astype(int), 8, color_type, png_chunk(b"tRNS", body)))


@pytest.mark.parametrize("tail", [b"", b";", b"\x21\xfe\x02hi\0;", b"\x21\xf9\x04\0\0\0\0\0;", b"\0\0\0"])
def test_a_gif_without_frames_is_named(tail: bytes) -> None:
    with pytest.raises(UndecodableError, match="the gif has no frame"):
        decode(b"GIF89a\x04\0\x04\0\x80\0\0" + bytes(6) + tail)


def test_a_palette_png_without_palette_and_apples_variant_are_refused() -> None:
    with pytest.raises(UndecodableError, match="no palette"):
        decode(png(_GRAY, 8, 3))
    with pytest.raises(UnsupportedFormatError, match="CgBI"):
        decode(_PNG[:8] + png_chunk(b"CgBI", bytes(4)) + _PNG[8:])


def _bmp(values: np.ndarray, bits: int, masks: tuple[int, ...], *, header: int, top_down: bool) -> bytes:
    """Write a BMP of BI_BITFIELDS by hand."""
    height, width = values.shape
    row_bytes = (width * bits + 31) // 32 * 4
    rows = values if top_down else values[::-1]
    body = b"".join(row.astype(f"<u{bits // 8}").tobytes().ljust(row_bytes, b"\0") for row in rows)
    fields = (header, width, -height if top_down else height, 1, bits, 3, len(body), 0, 0, 0, 0)
    head = struct.pack("<IiiHHIIiiII", *fields) + b"".join(struct.pack("<I", mask) for mask in masks)
    head = head if header == 40 else head.ljust(header, b"\0")
    offset = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + head + body


def _placed(channels: list[np.ndarray], masks: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return pixels of these masks, and each channel as its mask's bits can hold it."""
    pixels, held = np.zeros(channels[0].shape, np.uint64), []
    for channel, mask in zip(channels, masks, strict=True):
        shift = (mask & -mask).bit_length() - 1
        most = mask >> shift
        levels = np.rint(channel / 255 * most)
        pixels |= levels.astype(np.uint64) << np.uint64(shift)
        held.append(levels * 255 / most)
    return pixels, held


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF800, 0x07E0, 0x001F)),
        (16, (0x7C00, 0x03E0, 0x001F)),
        (16, (0x0F00, 0x00F0, 0x000F)),
        (16, (0x001F, 0x07E0, 0xF800)),
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    ],
)
def test_a_bmp_of_any_masks(header: int, top_down: bool, bits: int, masks: tuple[int, ...]) -> None:
    pixels, held = _placed([_RGB[:, :, i] for i in range(3)], masks)
    _check(_bmp(pixels, bits, masks, header=header, top_down=top_down), np.dstack(held))


@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks"), [(32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)), (16, (0x0F00, 0xF0, 0xF, 0xF000))]
)
def test_a_bmps_alpha_counts_unless_it_is_zero_everywhere(
    header: int, bits: int, masks: tuple[int, ...]
) -> None:
    color = [_RGB[:, :, i] for i in range(3)]
    pixels, (*rgb, alpha) = _placed([*color, _ALPHA], masks)
    share = alpha[:, :, None] / 255
    expected = np.dstack(rgb) * share + 255 * (1 - share)
    _check(_bmp(pixels, bits, masks, header=header, top_down=False), expected)
    empty, (*rgb, _) = _placed([*color, np.zeros_like(_ALPHA)], masks)
    _check(_bmp(empty, bits, masks, header=header, top_down=False), np.dstack(rgb))


def test_a_bmp_of_a_layout_that_is_not_decoded_is_refused_by_name() -> None:
    data = bytearray(photos.encode(_PHOTO, "BMP"))
    for at, value in ((28, 2), (28, 64), (30, 4), (30, 5)):
        with pytest.raises(UnsupportedFormatError, match="rare layout"):
            decode(bytes(data[:at]) + bytes([value]) + bytes(data[at + 1 :]))
    pixels, _ = _placed([_GRAY] * 3, (0xFF0000, 0xFF00, 0xFF))
    with pytest.raises(UnsupportedFormatError, match="gaps"):
        decode(_bmp(pixels, 32, (0xF0F000, 0xFF, 0xFF), header=40, top_down=False))


def _small_gif(box: tuple[int, int, int, int], canvas: tuple[int, int], **options: Any) -> bytes:
    frame = Image.new("P", (box[2], box[3]), 1)
    frame.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    data = bytearray(photos.encode(frame, "GIF", optimize=False, **options))
    at = data.index(b"\x2c\0\0\0\0")
    data[6:10] = struct.pack("<HH", *canvas)
    data[at + 1 : at + 5] = struct.pack("<HH", *box[:2])
    return bytes(data)


def test_around_a_gifs_first_frame_is_the_background() -> None:
    expected = np.full((30, 40, 3), 255)
    expected[10:20, 5:25] = (0, 255, 0)
    _check(_small_gif((5, 10, 20, 10), (40, 30)), expected)
    blue = rgb_of(_small_gif((5, 10, 20, 10), (40, 30)), background=(0, 0, 255))
    assert tuple(blue[0, 0]) == (0, 0, 255)
    assert tuple(blue[15, 15]) == (0, 255, 0)
    _check(_small_gif((5, 10, 20, 10), (40, 30), transparency=1), np.full((30, 40, 3), 255))


_RUN_PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3))


def _run_bmp(bits: int, commands: bytes, palette: np.ndarray = _RUN_PALETTE, *, gap: int = 0) -> bytes:
    """Write a run-length BMP of 6 x 4 pixels; `gap` unused bytes before its commands."""
    colors = np.hstack([palette[:, ::-1], np.zeros((len(palette), 1), int)]).astype(np.uint8).tobytes()
    body = bytes(gap) + commands
    info = struct.pack(
        "<IiiHHIIiiII", 40, 6, 4, 1, bits, 1 if bits == 8 else 2, len(body), 0, 0, len(palette), 0
    )
    start = 14 + len(info) + len(colors) + gap
    return b"BM" + struct.pack("<IHHI", start + len(commands), 0, 0, start) + info + colors + body


def _of_rows(*rows: list[int]) -> np.ndarray:
    """Rows from the bottom up, as a BMP stores them; those that are left out are color 0."""
    indices = np.zeros((4, 6), int)
    for y, row in enumerate(rows):
        indices[3 - y, : len(row)] = row
    return _RUN_PALETTE[indices]


@pytest.mark.parametrize(
    ("bits", "commands", "expected"),
    [
        (8, b"\6\5\0\0\0\1", _of_rows([5] * 6)),
        (8, b"\0\1", _of_rows()),
        (8, b"\2\5\0\0\3\7\0\1", _of_rows([5] * 2, [7] * 3)),
        (8, b"\2\5\0\0\0\0\3\7\0\1", _of_rows([5] * 2, [], [7] * 3)),  # an empty row
        (8, b"\0\0\0\0\0\0\6\7", _of_rows([], [], [], [7] * 6)),
        (8, b"\2\5\0\2\1\2\1\7\0\1", _of_rows([5] * 2, [], [0, 0, 0, 7])),  # 1 to the right, 2 up
        (8, b"\0\3\1\2\3\0\1\4\0\1", _of_rows([1, 2, 3, 4])),
        (8, b"\xff\5\0\0\1\7\0\1", _of_rows([5] * 6, [7])),
        (8, b"\4\1\0\4\2\3\4\5\0\0\1\7\0\1", _of_rows([1] * 4 + [2, 3], [7])),
        (8, b"\6\1\0\0" * 9, _of_rows(*[[1] * 6] * 4)),
        (4, b"\5\x12\0\0\0\1", _of_rows([1, 2, 1, 2, 1])),
        (4, b"\0\5\x12\x34\x50\0\1\x60\0\1", _of_rows([1, 2, 3, 4, 5, 6])),
        (4, b"\0\3\x12\x30\0\0\2\x77\0\1", _of_rows([1, 2, 3], [7, 7])),
    ],
)
@pytest.mark.parametrize("gap", [0, 1])
def test_a_run_length_bmp_that_skips_pixels(
    bits: int, commands: bytes, expected: np.ndarray, gap: int
) -> None:
    palette = _RUN_PALETTE if bits == 8 else _RUN_PALETTE[:16]
    _check(_run_bmp(bits, commands, palette, gap=gap), expected, within=0)


def test_a_run_length_bmp_in_black_and_white() -> None:
    palette = np.array([[0] * 3, [255] * 3])
    expected = np.zeros((4, 6, 3))
    expected[3, :2] = 255
    _check(_run_bmp(8, b"\2\1\0\1", palette), expected, within=0)


@pytest.mark.parametrize("commands", [b"", b"\6", b"\6\5\0\0", b"\6\5\0\0\0\6\1\2", b"\6\1\0\0" * 3])
def test_a_run_length_bmp_that_is_cut_off_is_truncated(commands: bytes) -> None:
    with pytest.raises(UndecodableError, match="truncated"):
        decode(_run_bmp(8, commands))


def test_a_run_length_bmp_of_empty_commands_is_refused() -> None:
    with pytest.raises(UndecodableError, match="more commands"):
        decode(_run_bmp(8, b"\0\2\0\0" * 100_000))


_COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])


def _drawn_gif(
    width: int, height: int, *frames: tuple[np.ndarray, tuple[int, int], int, int | None]
) -> bytes:
    """Write a GIF of frames: indices (height, width), left and top, disposal, transparent index."""
    parts = []
    for indices, place, disposal, transparent in frames:
        image = Image.fromarray(indices.astype(np.uint8), "P")
        image.putpalette([*_COLORS.ravel().tolist(), *[9] * 756])
        one = photos.encode(image, "GIF", optimize=False)
        at = one.index(b"\x2c\0\0\0\0")
        has_clear = transparent is not None
        parts.append(b"\x21\xf9\x04" + bytes([disposal << 2 | has_clear, 0, 0, transparent or 0, 0]))
        parts.append(b"\x2c" + struct.pack("<HH", *place) + one[at + 5 : -1])
    head = one[:6] + struct.pack("<HH", width, height) + one[10 : 13 + 768]
    return head + b"".join(parts) + b"\x3b"


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
@pytest.mark.parametrize("transparent", [None, 1])
def test_a_mean_of_a_gif_is_transparent_where_nothing_is_drawn(
    disposal: int, transparent: int | None
) -> None:
    """A frame of a quarter of the canvas, and one of a stripe over it, green and red by columns."""
    first, second = np.full((10, 20), 3), np.tile([2, 1], (4, 15))
    data = _drawn_gif(40, 20, (first, (20, 10), disposal, None), (second, (5, 8), 1, transparent))
    canvases = np.full((2, 20, 40, 3), 255)
    canvases[0, 10:20, 20:40] = _COLORS[3]
    if disposal < 2:
        canvases[1] = canvases[0]
    for column in range(30):
        if second[0, column] != transparent:
            canvases[1, 8:12, 5 + column] = _COLORS[second[0, column]]
    got = rgb_of(data, frames="mean").astype(float)
    assert np.abs(got - canvases.mean(axis=0)).max() <= 1
    _check(data, canvases[0])


def test_a_gif_of_equal_frames_is_its_own_mean() -> None:
    frame = (np.full((10, 20), 2), (5, 10), 0, None)
    for disposal in range(4):
        frame = (*frame[:2], disposal, None)
        data = _drawn_gif(40, 30, frame, frame, frame)
        assert np.array_equal(rgb_of(data, frames="mean"), rgb_of(data))


def test_what_sticks_out_of_a_gifs_canvas_is_not_drawn() -> None:
    data = _drawn_gif(
        20, 10, (np.full((10, 20), 2), (0, 0), 0, None), (np.full((10, 20), 1), (15, 5), 1, None)
    )
    expected = np.tile(np.array([0, 255, 0]), (10, 20, 1))
    expected[5:, 15:] = 128, 128, 0
    got = rgb_of(data, frames="mean").astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_default_image_that_is_no_frame_of_a_png_is_not_in_its_mean(count: int) -> None:
    poster = Image.new("RGB", (16, 8), (255, 255, 255))
    frames = [Image.new("RGB", (16, 8), (level, 0, 0)) for level in (40, 80)[:count]]
    data = photos.encode(poster, "PNG", save_all=True, default_image=True, append_images=frames)
    assert data.index(b"IDAT") < data.index(b"fcTL")
    _check(data, np.full((8, 16, 3), 255))
    decoded = decode(data, frames="mean")
    assert decoded.frames == count
    assert tuple(np.asarray(decoded.pixels)[3, 3]) == ((40, 0, 0) if count == 1 else (60, 0, 0))
    assert decode(data, ImageLimits(frames=1), frames="mean").frames == 1


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("WEBP", {"lossless": True, "exact": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("PNG", {}),
    ],
)
def test_alpha_of_other_formats(form: str, options: dict[str, Any]) -> None:
    data = photos.encode(Image.fromarray(np.dstack([_RGB, _ALPHA])), form, **options)
    _check(data, _OVER, within=4)


def test_avif_and_its_sequences() -> None:
    _check(photos.encode(_PHOTO, "AVIF", quality=100, subsampling="4:4:4"), _RGB, within=4)
    frames = [Image.new("RGB", (16, 16), (level, level, level)) for level in (0, 90, 255)]
    data = photos.encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=100)
    first = decode(data)
    assert (first.format, first.frames, int(np.asarray(first.pixels).max())) == ("avif", 3, 0)
    mean = np.asarray(decode(data, frames="mean").pixels).astype(int)
    assert np.abs(mean - 115).max() <= 2
    assert decode(data, ImageLimits(frames=2)).frames == 2


@pytest.mark.parametrize("what", ["box", "sequence header", "both"])
def test_a_huge_avif_is_refused_before_it_is_decoded(what: str) -> None:
    data = photos.encode(Image.new("L", (1000, 1000), 128), "AVIF", speed=10, quality=10)
    at = data.index(b"ispe") + 8
    if what == "sequence header":  # the boxes say that it is small
        data = data[:at] + struct.pack(">II", 64, 64) + data[at + 8 :]
    if what == "box":  # the pixels are small, the boxes say that they are to be enlarged
        small = photos.encode(Image.new("L", (64, 64), 128), "AVIF")
        at = small.index(b"ispe") + 8
        data = small[:at] + struct.pack(">II", 60_000, 60_000) + small[at + 8 :]
    with pytest.raises(TooLargeError, match="image_pixels"):
        decode(data, ImageLimits(pixels=500_000))


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def _items_in(data: bytes, start: int, end: int) -> list[tuple[bytes, bytes]]:
    found = []
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        found.append((data[start + 4 : start + 8], data[start + 8 : start + size]))
        start += size
    return found


def _avif_stored_as(how: str, side: int) -> bytes:
    """Write an AVIF of one item that is said to be 64 x 64, stored in one of the forms that `iloc` has."""
    plain = photos.encode(Image.new("L", (side, side), 128), "AVIF", speed=10, quality=10)
    top = dict(_items_in(plain, 0, len(plain)))
    av1, at = top[b"mdat"], plain.index(b"ispe") + 8
    meta = plain[:at] + struct.pack(">II", 64, 64) + plain[at + 8 :]
    boxes = dict(_items_in(meta, meta.index(b"meta") + 8, meta.index(b"mdat") - 4))
    size, cut = len(av1), 7
    idat = b"\x80" + av1 if how == "idat" else b""

    def written(start: int) -> bytes:
        record = struct.pack(">HHHII", 1, 0, 1, start, size)
        iloc = b"\0\0\0\0\x44\0\0\1" + record
        if how == "idat":
            iloc = b"\1\0\0\0\x44\0\0\1" + struct.pack(">HHHHII", 1, 1, 0, 1, 1, size)
        if how == "inside an item":
            iloc = b"\1\0\0\0\x44\0\0\1" + struct.pack(">HHHHII", 1, 2, 0, 1, 0, size)
        if how == "two extents":
            iloc = b"\0\0\0\0\x44\0\0\1" + struct.pack(
                ">HHHIIII", 1, 0, 2, start + size, cut, start + cut, size - cut
            )
        if how == "empty extents":
            many = struct.pack(">II", start, 0) * 10_001
            iloc = b"\0\0\0\0\x44\0\0\1" + struct.pack(">HHH", 1, 0, 10_002) + many + record[6:]
        if how == "many items":
            others = b"".join(struct.pack(">HHHII", i, 0, 1, start, 0) for i in range(2, 10_003))
            iloc = b"\0\0\0\0\x44\0" + struct.pack(">H", 10_002) + others + record
        if how == "no header":
            iloc = b"\0\0\0\0\x44\0\0\1" + struct.pack(">HHHII", 1, 0, 1, start + cut, size - cut)
        changed = {**boxes, b"iloc": iloc, **({b"idat": idat} if idat else {})}
        body = b"".join(_box(kind, each) for kind, each in changed.items())
        return _box(b"ftyp", top[b"ftyp"]) + _box(b"meta", bytes(4) + body) + struct.pack(">I", 0) + b"mdat"

    stored = b"\x80" * cut + av1[cut:] + av1[:cut] if how == "two extents" else av1
    return written(len(written(0))) + stored


@pytest.mark.parametrize("how", ["plain", "idat", "two extents"])
def test_an_avifs_frame_is_found_wherever_it_is_stored(how: str) -> None:
    assert decode(_avif_stored_as(how, 64)).width == 64
    with pytest.raises(TooLargeError, match="1000 x 1000"):
        decode(_avif_stored_as(how, 1000), ImageLimits(pixels=500_000))


@pytest.mark.parametrize(
    ("how", "words"),
    [("empty extents", "extents"), ("many items", "items"), ("no header", "no sequence header")],
)
def test_an_avif_whose_frame_is_not_found_is_refused(how: str, words: str) -> None:
    with pytest.raises(UndecodableError, match=words):
        decode(_avif_stored_as(how, 1000), ImageLimits(pixels=500_000))


def test_an_avif_of_items_inside_of_items_is_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="other items"):
        decode(_avif_stored_as("inside an item", 64))


@pytest.mark.parametrize("forbidden", [0, 0x80])
def test_the_frames_of_an_avif_sequence_are_found(forbidden: int) -> None:
    """The forbidden bit of a unit's header stops no decoder."""
    frames = [Image.new("L", (1000, 1000), level) for level in (0, 90, 255)]
    data = bytearray(photos.encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], speed=10))
    for at in (i for i in range(len(data)) if data.startswith(b"ispe", i)):
        data[at + 8 : at + 16] = struct.pack(">II", 64, 64)
    at = data.index(b"stsd") + 4 + 8 + 8 + 24
    assert struct.unpack_from(">HH", data, at) == (1000, 1000)
    data[at : at + 4] = struct.pack(">HH", 64, 64)
    first = data.index(b"mdat") + 4
    assert data[first : first + 3] == b"\x12\0\x0a"  # a temporal delimiter, then the sequence header
    data[first] |= forbidden
    with pytest.raises(TooLargeError, match="1000 x 1000"):
        decode(bytes(data), ImageLimits(pixels=500_000))


@pytest.mark.parametrize("header", [b"XXXX", b"MM*\0", bytes(4)])
def test_broken_exif_never_fails_an_avif(header: bytes) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    data = photos.encode(_PHOTO, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    at = data.index(b"MM\0*")
    _check(data[:at] + header + data[at + 4 :], _RGB, within=4)


def test_a_damaged_avif_and_a_huge_webp() -> None:
    data = photos.encode(_PHOTO, "AVIF")
    with pytest.raises(UndecodableError):
        decode(data[: len(data) // 2])
    webp = photos.encode(Image.new("RGBA", (64, 64), (1, 2, 3, 4)), "WEBP", exif=b"Exif\0\0")
    at = webp.index(b"VP8X") + 12
    with pytest.raises(TooLargeError, match="image_pixels"):
        decode(webp[:at] + struct.pack("<I", 16_000)[:3] * 2 + webp[at + 6 :])


_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
_BASE64 = base64.b64encode(_PNG)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (_SVG, "svg"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n' + _SVG, "svg"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><!-- made by --> <!-- two -->' + _SVG, "svg"),
        (b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x.dtd" [<!ENTITY a "b">]>\n' + _SVG, "svg"),
        (b"  \n<svg:svg xmlns:svg='http://www.w3.org/2000/svg'/>", "svg"),
        (f'<?xml version="1.0"?>{_SVG.decode()}'.encode("utf-16"), "svg"),
        (gzip.compress(b"<!-- a -->" + _SVG, mtime=0), "svg, gzip-compressed"),
        (gzip.compress(b"else", mtime=0), "gzip-compressed data"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), "heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(60), "heic"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc" + bytes(60), "heic"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1" + bytes(60), "heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "jpeg xl"),
        (b"\xff\x0a" + bytes(60), "jpeg xl"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "jpeg 2000"),
        (b"\xff\x4f\xff\x51" + bytes(60), "jpeg 2000"),
        (b"II\xbc\x01" + bytes(60), "jpeg xr"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(60), "(CR2)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(60), "(CR3)"),
        (b"IIRO\x08\0\0\0" + bytes(60), "(ORF)"),
        (b"IIRS\x08\0\0\0" + bytes(60), "(ORF)"),
        (b"IIU\0\x18\0\0\0" + bytes(60), "(RW2)"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(60), "(RAF)"),
        (b"\0MRM" + bytes(60), "(MRW)"),
        (b"FOVb" + bytes(60), "(X3F)"),
        (b"II\x1a\0\0\0HEAPCCDR" + bytes(60), "(CRW)"),
        (b"8BPS\0\1" + bytes(60), "psd"),
        (b"gimp xcf v011", "xcf"),
        (b"%PDF-1.7", "pdf"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "eps"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "eps"),
        (b"\0\0\1\0\1\0" + bytes(60), "ico"),
        (b"\x76\x2f\x31\x01" + bytes(60), "openexr"),
        (b"#?RADIANCE\n", "radiance hdr"),
        (b"P6\n4 4\n255\n" + bytes(48), "netpbm"),
        (b"qoif" + bytes(20), "qoi"),
        (b"DDS " + bytes(124), "dds"),
        (bytes(128) + b"DICM" + bytes(20), "dicom"),
        (bytes(60) + b"TRUEVISION-XFILE.\0", "tga"),
        (b"\0\0\2" + bytes(9) + b"\x10\0\x10\0\x18\0" + bytes(768), "tga"),
        (b"\5\0\x0a" + bytes(9) + b"\x10\0\x10\0\x20\x28" + bytes(99), "tga"),
        (b"\0\1\1\0\0\0\1\x18" + bytes(4) + b"\x10\0\x10\0\x08\0" + bytes(999), "tga"),
        (b"\0\0\2\0\1\0\x20\x20\0\0\1\0\1\0\x30\1\0\0\x16\0\0\0" + bytes(99), "cur"),
        (b"P6#c\n2 2\n255\n" + bytes(12), "netpbm"),
        (b"<?xml version='1.0'?><!-- " + b"license " * 2000 + b"-->" + _SVG, "svg"),
        (b"<!DOCTYPE svg [ <!-- ]> --> ]>" + _SVG, "svg"),
        (b"<!DOCTYPE svg [ <!ENTITY a 'x]>y'> <?p ]> ?> ] >" + _SVG, "svg"),
        (b'<!DOCTYPE svg PUBLIC "-//W3C//DTD [SVG] 1.1//EN" "http://x/>">' + _SVG, "svg"),
        (_SVG.decode().encode("utf-16-le"), "svg"),
        (_SVG.decode().encode("utf-16-be"), "svg"),
        (gzip.compress(b"<!-- " + b"q8w7e6" * 4000 + b" -->" + _SVG, mtime=0), "svg, gzip-compressed"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(60), "a 7z archive"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(60), "video (mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  " + bytes(60), "video (mp4 or quicktime)"),
        (b"\x1a\x45\xdf\xa3" + bytes(60), "video (matroska"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(60), "video (avi)"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_by_name_and_with_a_remedy(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        decode(data)
    message = caught.value.message
    assert name in message
    assert len(message) < 300
    assert any(word in message for word in ("convert", "render", "send", "decode it", "decompress"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<!DOCTYPE html><html><body>404", "an HTML page"),
        (b"<html><head>", "an HTML page"),
        (b"<!-- x --><HTML>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML or HTML"),
        (b'{"error": "not found"}', "JSON text"),
        (_BASE64, "base64 text"),
        (base64.b64encode(photos.encode(_PHOTO, "JPEG")), "base64 text"),
        (base64.encodebytes(_PNG), "base64 text"),
        (b'"' + _BASE64 + b'"', "base64 text"),
        (b"'" + _BASE64 + b"'\n", "base64 text"),
        (b"<!DOCTYPE note [<!ELEMENT note ANY>]><note/>", "XML or HTML"),
        (b"<!-- never closed", "XML or HTML"),
        (b"data:image/png;base64," + _BASE64, "a data: URL"),
        (b"https://example.org/a.jpg\n", "a URL"),
    ],
)
def test_text_is_no_image_and_the_error_says_what_it_is(data: bytes, name: str) -> None:
    with pytest.raises(UndecodableError) as caught:
        decode(data)
    assert f"but {name}: " in caught.value.message
    assert len(caught.value.message) < 300


def test_a_prolog_of_many_comments_takes_no_time() -> None:
    start = time.monotonic()
    for data in (
        b"<!--" + b"-->" + b"<!-- -->" * 400_000,
        b"<!-- " * 400_000,
        b"<!doctype x [" + b"<!-- -->" * 400_000,
        b"<!doctype x [" + b"<!--" * 400_000,
        b"<!doctype x [" + b"'" * 400_000,
        b"<!doctype " + b'"' * 400_001,
        b"<!doctype x [" + b"<?" * 400_000,
        b" " * 400_000 + b"<",
        b"A" * (16 << 20) + b"!",
    ):
        with pytest.raises((UndecodableError, UnsupportedFormatError)):
            decode(data)
    assert time.monotonic() - start < 0.5


def test_an_unknown_formats_first_bytes_stand_in_the_message() -> None:
    with pytest.raises(UndecodableError) as refused:
        decode(b"\x01\xfe'\\A\n" + bytes(20))
    assert r"""b"\x01\xfe'\\A\n\x00\x00""" in str(refused.value)


@pytest.mark.parametrize(
    "data", [b"BMI,age,weight\n21.5,33,70\n", b"BM", b"BMW is a car maker, and no bitmap"]
)
def test_text_that_begins_as_a_bitmap_is_no_bitmap(data: bytes) -> None:
    with pytest.raises(UndecodableError, match="no image of a known format"):
        decode(data)


def test_nothing_known_is_undecodable() -> None:
    for data in (b"hello", bytes(1000), b"\xff\xd8", b"BMnot a bitmap"):
        with pytest.raises(UndecodableError):
            decode(data)


def test_a_mean_of_a_mosaic_of_formats_keeps_its_size() -> None:
    """A frame's repair must not change what the other frames are resized to."""
    frames = [_PHOTO.convert("P"), _PHOTO.rotate(90, expand=True).convert("P")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert decode(out.getvalue(), frames="mean").width >= 90
