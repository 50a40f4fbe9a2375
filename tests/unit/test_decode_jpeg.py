"""JPEG of every sampling and color form, whole and cut, against colors that are known beforehand."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support import photos
from support.decoding import decode, mosaic_jpeg, rgb_of

from pixvec_server.errors import UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess.raster import size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Four quadrants of one color each, in Y, Cb, Cr; a side is a whole number of blocks in every sampling.
_SIDE = 192
_LEVELS = ((60, 100, 190), (200, 120, 110), (120, 180, 90), (90, 128, 128))
# Chroma is interpolated across the borders of quadrants.
_MARGIN = 32
_PHOTO = photos.image("astronaut.png").resize((160, 120))


def _planes(levels: Sequence[Sequence[int]], factors: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    planes = []
    for i, (h, v) in enumerate(factors):
        rows, columns = _SIDE * v // (8 * down), _SIDE * h // (8 * across)
        plane = np.empty((rows, columns), np.int64)
        for quadrant, level in enumerate(levels):
            top, left = quadrant // 2 * rows // 2, quadrant % 2 * columns // 2
            plane[top : top + rows // 2, left : left + columns // 2] = level[i]
        planes.append(plane)
    return planes


def _check_quadrants(pixels: np.ndarray, colors: Sequence[Sequence[float]]) -> None:
    half = pixels.shape[0] // 2
    for quadrant, color in enumerate(colors):
        top, left = quadrant // 2 * half, quadrant % 2 * half
        inside = pixels[top : top + half, left : left + half]
        margin = _MARGIN * pixels.shape[0] // _SIDE
        inside = inside[margin:-margin, margin:-margin].astype(float)
        assert np.abs(inside - np.clip(color, 0, 255)).max() <= 2


def _from_ycc(level: Sequence[int]) -> tuple[float, ...]:
    """Convert by ITU-R BT.601, full range."""
    y, cb, cr = level[0], level[1] - 128, level[2] - 128
    return y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(
    "factors",
    [
        ((1, 1), (1, 1), (1, 1)),
        ((2, 1), (2, 1), (2, 1)),
        ((1, 2), (1, 2), (1, 2)),
        ((2, 1), (1, 1), (1, 1)),
        ((1, 2), (1, 1), (1, 1)),
        ((2, 2), (1, 1), (1, 1)),
        ((4, 1), (1, 1), (1, 1)),
        ((1, 4), (1, 1), (1, 1)),
        ((4, 2), (1, 1), (1, 1)),
        ((2, 4), (1, 1), (1, 1)),
        ((3, 1), (1, 1), (1, 1)),
        ((1, 3), (1, 1), (1, 1)),
        ((3, 2), (1, 1), (1, 1)),
        ((4, 1), (2, 1), (2, 1)),
        ((2, 2), (1, 2), (2, 1)),
        ((2, 2), (2, 1), (1, 2)),
        ((2, 2), (2, 1), (2, 1)),
        ((2, 1), (2, 1), (1, 1)),
        ((1, 1), (2, 1), (1, 2)),
        ((1, 1), (2, 2), (2, 2)),
        ((3, 1), (3, 1), (3, 1)),
    ],
)
def test_every_sampling_that_libjpeg_turbo_decodes(factors: Sequence[tuple[int, int]], mode: str) -> None:
    data = mosaic_jpeg(_planes(_LEVELS, factors), factors)
    decoded = decode(data, short_side=24, mode=mode)
    assert (decoded.width, decoded.height) == (_SIDE, _SIDE)
    _check_quadrants(np.asarray(decoded.pixels)[:, :, :3], [_from_ycc(level) for level in _LEVELS])


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (3, 1), (1, 4)])
def test_gray_with_any_sampling_factor(factor: tuple[int, int]) -> None:
    """A scan of one component has its blocks in rows, whatever its factors."""
    plane = _planes(_LEVELS, [(1, 1)])
    data = mosaic_jpeg(plane, [(1, 1)])
    at = data.index(b"\xff\xc0") + 11
    data = data[:at] + bytes([factor[0] << 4 | factor[1]]) + data[at + 1 :]
    _check_quadrants(rgb_of(data), [[level[0]] * 3 for level in _LEVELS])


@pytest.mark.parametrize("factors", [((1, 1),) * 3, ((2, 1), (1, 1), (2, 1)), ((1, 2),) * 3])
@pytest.mark.parametrize(("ids", "adobe"), [(b"RGB", None), (b"\x01\x02\x03", 0)])
def test_rgb_by_its_component_ids_or_by_adobes_marker(
    factors: Sequence[tuple[int, int]], ids: bytes, adobe: int | None
) -> None:
    data = mosaic_jpeg(_planes(_LEVELS, factors), factors, ids=ids, adobe=adobe)
    _check_quadrants(rgb_of(data), _LEVELS)


@pytest.mark.parametrize("factors", [((1, 1),) * 4, ((2, 2), (1, 1), (1, 1), (2, 2))])
@pytest.mark.parametrize("adobe", [None, 0, 2])
def test_cmyk_and_ycck_with_subsampling(factors: Sequence[tuple[int, int]], adobe: int | None) -> None:
    levels = [(*level, key) for level, key in zip(_LEVELS, (255, 200, 150, 230), strict=True)]
    data = mosaic_jpeg(_planes(levels, factors), factors, adobe=adobe)
    expected = []
    for *color, key in levels:
        if adobe == 2:  # YCCK: Adobe stores light, the YCbCr part of it is inverted once more
            ink = [255 - value for value in np.clip(_from_ycc(color), 0, 255)]
        else:
            ink = [255 - value for value in color] if adobe is None else list(color)
        light = 255 - key if adobe is None else key
        expected.append([value * light / 255 for value in ink])
    _check_quadrants(rgb_of(data), expected)


def test_fractional_sampling_is_refused_by_name() -> None:
    factors = ((3, 1), (2, 1), (1, 1))
    with pytest.raises(UnsupportedFormatError, match="fractional sampling"):
        decode(mosaic_jpeg(_planes(_LEVELS, factors), factors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame[:4] + b"\x0c" + frame[5:], "12 bits"),
        (lambda frame: b"\xff\xc3" + frame[2:], "lossless"),
        (lambda frame: b"\xff\xc5" + frame[2:], "hierarchical"),
        (lambda frame: b"\xff\xf7" + frame[2:], "JPEG-LS"),
        (lambda frame: frame[:5] + b"\0\0" + frame[7:], "DNL"),
        (lambda frame: frame[:9] + b"\x02" + frame[10:], "2 components"),
    ],
)
def test_a_jpeg_that_is_not_decoded_is_refused_by_name(change: Callable[[bytes], bytes], words: str) -> None:
    data = photos.encode(_PHOTO, "JPEG")
    at = data.index(b"\xff\xc0")
    with pytest.raises(UnsupportedFormatError, match=words):
        decode(data[:at] + change(data[at:]))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "CMYK", "progressive": True}]
)
def test_a_jpeg_that_lacks_its_end_marker_alone_is_decoded(options: dict[str, object]) -> None:
    settings = {"mode": "RGB", "progressive": False} | options
    photo = _PHOTO.convert(str(settings["mode"]))
    data = photos.encode(photo, "JPEG", quality=95, progressive=settings["progressive"])
    assert data.endswith(b"\xff\xd9")
    assert np.array_equal(rgb_of(data[:-2]), rgb_of(data))
    assert np.array_equal(rgb_of(data[:-1]), rgb_of(data))


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "CMYK"}])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_jpeg_that_lacks_pixels_is_truncated(kept: float, options: dict[str, object], end: bytes) -> None:
    photo = _PHOTO.convert(str(options.get("mode", "RGB")))
    data = photos.encode(photo, "JPEG", quality=95, progressive=options.get("progressive", False))
    with pytest.raises(UndecodableError, match="truncated"):
        decode(data[: int(len(data) * kept)] + end)


def test_a_progressive_jpeg_that_lacks_whole_scans_is_truncated() -> None:
    data = photos.encode(_PHOTO, "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) > 3
    for at in scans[1:]:
        for end in (b"", _EOI):
            with pytest.raises(UndecodableError, match="truncated"):
                decode(data[:at] + end)


_EOI = b"\xff\xd9"


def _one_scan_each(planes: Sequence[np.ndarray], kept: int) -> bytes:
    """Write a JPEG of one scan a component, and the first `kept` of the scans."""
    interleaved = mosaic_jpeg(planes, [(1, 1)] * 3)
    at = interleaved.index(b"\xff\xda")
    data = interleaved[:at]
    for i, plane in enumerate(planes[:kept]):
        single = mosaic_jpeg([plane], [(1, 1)])
        scan = single.index(b"\xff\xda")
        data += single[scan : scan + 5] + bytes([i + 1]) + single[scan + 6 : -2]
    return data + _EOI


def test_a_jpeg_that_lacks_a_components_scan_is_truncated() -> None:
    planes = _planes(_LEVELS, [(1, 1)] * 3)
    _check_quadrants(rgb_of(_one_scan_each(planes, 3)), [_from_ycc(level) for level in _LEVELS])
    for kept in (1, 2):
        with pytest.raises(UndecodableError, match="truncated"):
            decode(_one_scan_each(planes, kept))


def _with_restarts(mode: str = "RGB", *, progressive: bool = False) -> tuple[bytes, list[int]]:
    photo = _PHOTO.convert(mode)
    data = photos.encode(photo, "JPEG", quality=95, restart_marker_rows=1, progressive=progressive)
    first = data.index(b"\xff\xda")
    return data, [at for at in range(first, len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_restart_intervals_is_truncated(mode: str, progressive: bool) -> None:
    data, restarts = _with_restarts(mode, progressive=progressive)
    assert np.abs(rgb_of(data).astype(int) - np.asarray(_PHOTO.convert(mode).convert("RGB"))).mean() < 4
    assert len(restarts) >= 7
    for first, last in ((0, 1), (1, 4), (4, 5)):
        with pytest.raises(UndecodableError, match="truncated"):
            decode(data[: restarts[first]] + data[restarts[last] :])


def test_a_jpeg_that_lacks_eight_restart_intervals_or_one_marker_is_truncated() -> None:
    """Restart markers are numbered from 0 to 7: no number is wrong until the end."""
    photo = _PHOTO.resize((160, 240))
    data = photos.encode(photo, "JPEG", quality=95, restart_marker_rows=1)
    first = data.index(b"\xff\xda")
    restarts = [at for at in range(first, len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    assert len(restarts) > 10
    for start, end in ((restarts[1], restarts[9]), (restarts[2], restarts[2] + 2)):
        with pytest.raises(UndecodableError, match="truncated"):
            decode(data[:start] + data[end:])


@pytest.mark.parametrize("unused", [b"\x00\x11", b"\xff\xe0\x00\x10JFIF\x00\x02" + bytes(8)])
def test_unused_bytes_do_not_hide_that_pixels_are_missing(unused: bytes) -> None:
    """libjpeg-turbo tells its first warning alone."""
    data = photos.encode(_PHOTO, "JPEG", quality=95)
    at = data.index(b"\xff\xdb")
    assert np.array_equal(rgb_of(data[:at] + unused + data[at:]), rgb_of(data))
    with pytest.raises(UndecodableError, match="truncated"):
        decode(data[:at] + unused + data[at : len(data) // 2] + _EOI)


@pytest.mark.parametrize("where", [b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"])
@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd3", b"\xff\xff\xff", b"\xff\x00"])
def test_a_marker_without_length_in_front_of_a_segment_is_skipped(where: bytes, marker: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = photos.encode(_PHOTO, "JPEG", exif=exif)
    at = data.index(where)
    assert np.array_equal(rgb_of(data[:at] + marker + data[at:]), rgb_of(data))


def test_markers_without_length_do_not_hide_scans() -> None:
    data = photos.encode(_PHOTO, "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(UndecodableError, match="100 scans"):
        decode(data[:scan] + (b"\xff\x01" + data[scan:-2]) * 101 + _EOI)


_SHORT_SEGMENTS = [
    (0xE0, b"JFIF\0"),
    (0xE0, b"JFXX\0"),
    (0xE1, b"Exif\0\0"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    (0xE2, b"ICC_PROFILE\0"),
    (0xE2, b"ICC_PROFILE\0\1"),
    (0xE2, b"MPF\0II*\0abcdef"),
    (0xE2, b"FPXR\0"),
    (0xED, b"Photoshop 3.0\x008BIM\4"),
    (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10"),
    (0xEE, b"Adobe"),
    (0xEE, b"Adobe\0d\0"),
    (0xE5, b""),
    (0xFE, b""),
]


@pytest.mark.parametrize(("kind", "body"), _SHORT_SEGMENTS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_segment_that_is_cut_short_does_not_matter(kind: int, body: bytes, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = _PHOTO.convert(mode)
    whole = photos.encode(photo, "JPEG", quality=95, exif=exif)
    upright = np.rot90(np.asarray(photo.convert("RGB")).astype(int), -1)
    segment = struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body
    for at in (2, whole.index(b"\xff\xdb")):
        data = whole[:at] + segment + whole[at:]
        for color in ("ignore", "srgb"):
            assert np.abs(rgb_of(data, color=color) - upright).mean() < 4


def test_an_odd_sampling_is_reduced_as_others_are() -> None:
    factors = ((3, 1), (1, 1), (1, 1))
    data = mosaic_jpeg(_planes(_LEVELS, factors), factors)
    assert size_of(decode(data, short_side=24, mode="fast").pixels) == (48, 48)
    assert size_of(decode(data, short_side=24, mode="exact").pixels) == (192, 192)


def test_a_height_of_one_byte_too_few_in_the_frame_header() -> None:
    data = photos.encode(_PHOTO, "JPEG")
    at = data.index(b"\xff\xc0")
    with pytest.raises(UndecodableError, match="truncated"):
        decode(data[: at + 8])


def test_what_pillow_and_libjpeg_turbo_decode_is_the_same() -> None:
    """The fallback must not make other pixels of a file than the first decoder would."""
    data = photos.encode(_PHOTO, "JPEG", quality=90, subsampling=2)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), rgb_of(data))


def test_a_hostile_header_costs_nothing() -> None:
    data = bytearray(photos.encode(_PHOTO, "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(Exception, match="image_pixels"):
        decode(bytes(data))
