"""Every format and form of pixel against the picture that it was made from."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import photos

from pixvec_server.errors import (
    RequestError,
    TooLargeError,
    UndecodableError,
    UnsupportedFormatError,
)
from pixvec_server.preprocess import Decoded, DecodeOptions, Decoder, ImageLimits, PixelBudget
from pixvec_server.preprocess.raster import size_of
from pixvec_server.types import Pixels

PHOTO = photos.image("astronaut.png").resize((160, 120))
RGB = np.asarray(PHOTO)


class _Alone:
    """A decoder of one picture at a time."""

    def __init__(self, limits: ImageLimits, options: DecodeOptions) -> None:
        self.budget = PixelBudget(400_000_000)
        self._decoder = Decoder(limits, options, self.budget)

    def decode(self, data: bytes, short_side: int | None = None) -> Decoded:
        with contextlib.ExitStack() as held:
            return self._decoder.decode(data, held, short_side)

    def from_pixels(self, pixels: Pixels) -> Decoded:
        with contextlib.ExitStack() as held:
            return self._decoder.from_pixels(pixels, held)


def _decoder(limits: ImageLimits | None = None, **options: Any) -> _Alone:
    return _Alone(limits or ImageLimits(), DecodeOptions(**options))


def _rgb(decoded: Decoded) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(decoded.pixels)[:, :, :3]


def _close(decoded: Decoded, expected: Any, within: float) -> None:
    got = _rgb(decoded).astype(int)
    assert got.shape == np.asarray(expected).shape
    assert np.abs(got - np.asarray(expected)).mean() <= within


@pytest.mark.parametrize(
    ("form", "options", "within"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 3),
        ("JPEG", {"quality": 98}, 3),
        ("JPEG", {"quality": 98, "progressive": True}, 3),
        ("JPEG", {"quality": 98, "subsampling": 0}, 1),
    ],
)
def test_rgb_of_every_format(form: str, options: dict[str, Any], within: float) -> None:
    decoded = _decoder().decode(photos.encode(PHOTO, form, **options))
    assert (decoded.format, decoded.width, decoded.height, decoded.frames) == (form.lower(), 160, 120, 1)
    _close(decoded, RGB, within)


def test_jpeg_is_decoded_by_libjpeg_turbo_bit_for_bit() -> None:
    data = photos.jpeg("rocket.jpg")
    assert np.array_equal(_rgb(_decoder().decode(data)), simplejpeg.decode_jpeg(data, "RGB"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_grey(form: str) -> None:
    grey = PHOTO.convert("L")
    options: dict[str, Any] = {"quality": 98} if form == "JPEG" else {}
    _close(_decoder().decode(photos.encode(grey, form, **options)), np.asarray(grey.convert("RGB")), 1)


def test_one_bit_is_black_and_white() -> None:
    bilevel = PHOTO.convert("1")
    got = _rgb(_decoder().decode(photos.encode(bilevel, "PNG")))
    assert set(np.unique(got)) == {0, 255}
    assert np.array_equal(got, np.asarray(bilevel.convert("RGB")))


def test_palette() -> None:
    palette = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    assert np.array_equal(
        _rgb(_decoder().decode(photos.encode(palette, "PNG"))), np.asarray(palette.convert("RGB"))
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(form: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (8, 1))
    got = _rgb(_decoder().decode(photos.encode(Image.fromarray(ramp), form)))
    expected = np.round(ramp / 257)
    assert np.abs(got[:, :, 0] - expected).max() <= 1
    assert len(np.unique(got)) > 200


def test_sixteen_bit_rgb_png() -> None:
    wide = RGB.astype(np.uint16) * 257
    decoded = _decoder().decode(_png16(wide))
    _close(decoded, RGB, 1)


@pytest.mark.parametrize("background", [(255, 255, 255), (255, 0, 0)])
def test_alpha_is_composited_on_the_background(background: tuple[int, int, int]) -> None:
    alpha = np.tile(np.linspace(0, 255, 160).astype(np.uint8), (120, 1))
    data = photos.encode(Image.fromarray(np.dstack([RGB, alpha])), "PNG")
    share = alpha[:, :, None] / 255
    expected = RGB * share + np.array(background) * (1 - share)
    got = _rgb(_decoder(background=background).decode(data))
    assert np.abs(got - expected).max() <= 1


def test_grey_with_alpha_and_palette_with_transparency() -> None:
    pair = Image.merge("LA", (PHOTO.convert("L"), Image.new("L", PHOTO.size, 0)))
    assert (_rgb(_decoder().decode(photos.encode(pair, "PNG"))) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (_rgb(_decoder().decode(photos.encode(palette, "PNG", transparency=0))) == 255).all()


def test_cmyk_jpeg_of_adobe_and_plain() -> None:
    cmyk = PHOTO.convert("CMYK")
    adobe = photos.encode(cmyk, "JPEG", quality=98)
    expected = np.asarray(cmyk.convert("RGB"))
    assert b"Adobe" in adobe
    _close(_decoder().decode(adobe), expected, 3)
    plain = photos.encode(Image.fromarray(255 - np.asarray(cmyk), "CMYK"), "JPEG", quality=98)
    _close(_decoder().decode(_without_adobe(plain)), expected, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, form: str) -> None:
    turned = PHOTO.transpose(_UNDO[orientation]) if orientation > 1 else PHOTO
    exif = Image.Exif()
    exif[0x0112] = orientation
    by_form: dict[str, dict[str, Any]] = {"JPEG": {"quality": 98}, "WEBP": {"lossless": True}}
    decoded = _decoder().decode(photos.encode(turned, form, exif=exif, **by_form.get(form, {})))
    assert (decoded.width, decoded.height) == (160, 120)
    _close(decoded, RGB, 3)


def test_a_broken_exif_block_does_not_fail_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = photos.encode(PHOTO, "JPEG", exif=exif)
    at = data.index(b"Exif\0\0") + 6
    decoded = _decoder().decode(data[:at] + b"\xff" * 8 + data[at + 8 :])
    assert (decoded.width, decoded.height) == (160, 120)


def test_an_animation_is_its_first_frame_or_the_mean() -> None:
    frames = [Image.new("RGB", (16, 16), (level, level, level)) for level in (0, 90, 255)]
    gif = photos.encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    webp = photos.encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    for data in (gif, webp):
        first = _decoder().decode(data)
        assert (first.frames, int(_rgb(first).max())) == (3, 0)
        mean = _decoder(frames="mean").decode(data)
        assert mean.frames == 3
        assert np.abs(_rgb(mean).astype(int) - 115).max() <= 1


def test_frames_are_counted_only_to_the_limit() -> None:
    frames = [Image.new("RGB", (4, 4), (0, 0, i)) for i in range(40)]
    gif = photos.encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert _decoder(ImageLimits(frames=10)).decode(gif).frames == 10


def test_fast_decodes_large_jpegs_reduced_and_small_ones_in_full() -> None:
    large = photos.jpeg("rocket.jpg", scale=3)
    decoded = _decoder(mode="fast").decode(large, short_side=256)
    assert (decoded.width, decoded.height) == (1920, 1281)
    assert size_of(decoded.pixels) == (960, 641)
    assert size_of(_decoder(mode="fast").decode(large, short_side=None).pixels) == (1920, 1281)
    assert size_of(_decoder().decode(large, short_side=256).pixels) == (1920, 1281)
    small = photos.jpeg("rocket.jpg")
    assert size_of(_decoder(mode="fast").decode(small, short_side=256).pixels) == (640, 427)


def test_decoded_pixels_of_one_three_and_four_channels() -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    for array, expected in (
        (RGB, RGB),
        (rgba, RGB),
        (RGB[:, :, :1], np.repeat(RGB[:, :, :1], 3, axis=2)),
    ):
        decoded = _decoder().from_pixels(Pixels(array.shape, array.tobytes()))
        assert decoded.format == "pixels"
        assert np.array_equal(_rgb(decoded), expected)


@pytest.mark.parametrize(
    ("shape", "size", "error", "words"),
    [
        ((2, 2, 3), 11, UndecodableError, "11 bytes do not fill"),
        ((2, 2), 4, UndecodableError, "not [height, width, channels]"),
        ((2, 2, 2), 8, UndecodableError, "1, 3 or 4 channels"),
        ((0, 2, 3), 0, UndecodableError, "needs at least one"),
        ((4294967295, 4294967295, 3), 3, TooLargeError, "image_pixels"),
        ((1, 200, 3), 600, TooLargeError, "image_aspect"),
    ],
)
def test_decoded_pixels_that_make_no_image(
    shape: tuple[int, ...], size: int, error: type[RequestError], words: str
) -> None:
    with pytest.raises(error) as caught:
        _decoder().from_pixels(Pixels(shape, bytes(size)))
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", UndecodableError, "empty"),
        (b"<!doctype html><html>", UndecodableError, "no image of a known format"),
        (b"8BPS" + bytes(100), UnsupportedFormatError, "this is psd"),
        (b"%PDF-1.7", UnsupportedFormatError, "this is pdf"),
        (b"\0\0\0\x20ftypheic" + bytes(60), UnsupportedFormatError, "this is heic"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), UndecodableError, "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(50), UndecodableError, "damaged"),
        (b"GIF89a" + bytes(3), UndecodableError, "damaged"),
    ],
)
def test_what_is_no_image(data: bytes, error: type[RequestError], words: str) -> None:
    with pytest.raises(error) as caught:
        _decoder().decode(data)
    assert words in caught.value.message
    assert "0x" not in caught.value.message


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(form: str) -> None:
    data = photos.encode(PHOTO, form)
    with pytest.raises(UndecodableError):
        _decoder().decode(data[: len(data) * 2 // 3])


def test_a_jpeg_with_harmless_rubbish_before_a_marker_is_read() -> None:
    data = photos.encode(PHOTO, "JPEG", quality=98)
    at = data.index(b"\xff\xda")
    noisy = data[:at] + b"\0\0\0" + data[at:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(noisy)
    _close(_decoder().decode(noisy), RGB, 3)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"image_bytes": 1000}, "image_bytes = 1000"),
        ({"pixels": 160 * 120 - 1}, "image_pixels = 19199"),
        ({"side": 159}, "image_side = 159"),
        ({"aspect": 1.3}, "image_aspect = 1.3"),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_each_limit_is_named(limits: dict[str, Any], words: str, form: str) -> None:
    with pytest.raises(TooLargeError) as caught:
        _decoder(ImageLimits(**limits)).decode(photos.encode(PHOTO, form))
    assert words in caught.value.message


def test_what_fits_every_limit_exactly_is_read() -> None:
    data = photos.encode(PHOTO, "PNG")
    limits = ImageLimits(image_bytes=len(data), pixels=160 * 120, side=160, aspect=160 / 120)
    assert _decoder(limits).decode(data).width == 160


def test_a_format_off_the_allow_list_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFormatError) as caught:
        _decoder(ImageLimits(formats=("png",))).decode(photos.encode(PHOTO, "GIF"))
    assert "this is gif" in caught.value.message


def test_pixels_are_held_while_decoding_and_given_back() -> None:
    decoder = _decoder()
    good = [photos.encode(PHOTO, form) for form in ("JPEG", "PNG")]
    broken = [data[: len(data) // 2] for data in good]
    for data in (*good, *broken, *good):
        with contextlib.suppress(UndecodableError):
            decoder.decode(data)
    assert decoder.budget._held == 0


def test_a_picture_waits_for_room_and_is_not_refused() -> None:
    budget, order = PixelBudget(100), []

    def second() -> None:
        with budget.hold(1000):
            order.append("second")

    with budget.hold(60):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_pillows_globals_are_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    _decoder().decode(photos.encode(PHOTO, "PNG"))
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = photos.encode(PHOTO, "JPEG")
    at = data.index(b"\xff\xd9", len(data) - 4)
    with pytest.raises(UndecodableError, match="more than 100 scans"):
        _decoder().decode(data[:at] + b"\xff\xda\x00\x02" * 1000 + data[at:])


def test_what_follows_the_end_of_a_jpeg_is_not_read_as_scans() -> None:
    """As in motion photographs, which carry a film behind the picture."""
    trailer = b"\xff\xda" * 5000
    assert _decoder().decode(photos.encode(PHOTO, "JPEG") + trailer).width == 160


def test_exif_behind_long_comments_is_found() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = photos.encode(PHOTO, "JPEG", exif=exif)
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    assert _decoder().decode(data[:2] + comment * 3 + data[2:]).width == 120


def test_a_gif_whose_later_frame_is_huge_is_refused_without_decoding_it() -> None:
    frames = [Image.new("P", size) for size in ((10, 10), (13_000, 13_000))]
    small, huge = (photos.encode(frame, "GIF") for frame in frames)
    bomb = small[:-1] + huge[huge.index(b"\x2c\0\0\0\0") :]
    with pytest.raises(TooLargeError, match="13000 x 13000"):
        _decoder().decode(bomb)


def test_a_tiff_of_one_huge_tile_is_refused() -> None:
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_384, 323: 16_384}
    data = _tiff(tags, zlib.compress(bytes(1 << 20)))
    with pytest.raises(TooLargeError, match="16384 x 16384"):
        _decoder().decode(data)


def test_a_run_length_bmp_is_small_or_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="run-length"):
        _decoder().decode(_rle_bmp(2000, 2000))


def test_a_png_of_a_million_chunks_is_refused() -> None:
    data = photos.encode(PHOTO, "PNG")
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    with pytest.raises(UndecodableError, match="more than 20000 chunks"):
        _decoder().decode(data[:33] + empty * 1_000_000 + data[33:])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"]), st.data())
def test_damaged_files_raise_only_documented_errors(form: str, data: st.DataObject) -> None:
    original = bytearray(photos.encode(PHOTO.resize((24, 16)), form))
    for _ in range(data.draw(st.integers(1, 6))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RequestError):
        _decoder(ImageLimits(pixels=100_000)).decode(bytes(original))


_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[at + 2 : at + 4])[0]
    return data[:at] + data[at + 2 + length :]


def _png16(values: np.ndarray[Any, np.dtype[np.uint16]]) -> bytes:
    """Write a 16-bit RGB PNG by hand: Pillow cannot."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    out = io.BytesIO(b"")
    out.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return out.getvalue()


def _tiff(tags: dict[int, int], body: bytes) -> bytes:
    """Write a little-endian TIFF of one IFD by hand, its one tile right behind it."""
    entries = {**tags, 324: 0, 325: len(body)}
    at = 8 + 2 + 12 * len(entries) + 4
    entries[324] = at
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", 0) + body


def _rle_bmp(width: int, height: int) -> bytes:
    body = b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + bytes(1024) + body
