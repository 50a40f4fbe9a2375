"""TIFF of many sample forms against numbers written by hand or by tifffile, and never by Pillow."""

from __future__ import annotations

import io
import struct
import time
from typing import Any

import numpy as np
import pytest
import tifffile
from support import photos
from support.decoding import decode, packed, rgb_of, tiff

from pixvec_server.errors import TooLargeError, UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess import ImageLimits

_PHOTO = photos.image("astronaut.png").resize((90, 60))
_RGB = np.asarray(_PHOTO)
_GRAY = np.asarray(_PHOTO.convert("L"))
_ALPHA = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))
_SHARE = _ALPHA[:, :, None] / 255


def _written(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, np.ascontiguousarray(array), **options)
    return out.getvalue()


def _gray3(values: Any) -> np.ndarray:
    return np.repeat(np.asarray(values, float)[:, :, None], 3, axis=2)


def _check(data: bytes, expected: Any, within: float = 1.0) -> None:
    got = rgb_of(data).astype(float)
    assert got.shape == np.shape(expected)
    assert np.abs(got - expected).max() <= within


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True},
                                   {"tile": (16, 16)}, {"bigtiff": True}])  # fmt: skip
def test_gray_of_either_polarity(order: str, photometric: str, dtype: Any, extra: dict[str, Any]) -> None:
    if extra.get("bigtiff") and order == ">":
        with pytest.raises(UnsupportedFormatError, match="big-endian BigTIFF"):
            decode(_written(_GRAY.astype(dtype), photometric=photometric, byteorder=order, **extra))
        return
    values = _GRAY.astype(dtype) * (257 if dtype is np.uint16 else 1)
    stored = np.iinfo(dtype).max - values if photometric == "miniswhite" else values
    _check(_written(stored, photometric=photometric, byteorder=order, **extra), _gray3(_GRAY))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 16}])
def test_rgb_in_planes_strips_and_tiles(
    order: str, compression: str | None, planes: str, dtype: Any, layout: dict[str, Any]
) -> None:
    values = _RGB.astype(dtype) * (257 if dtype is np.uint16 else 1)
    if planes == "separate":
        values = values.transpose(2, 0, 1)
    data = _written(
        values, photometric="rgb", byteorder=order, compression=compression, planarconfig=planes, **layout
    )
    _check(data, _RGB)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("is_min_white", [False, True])
def test_few_bits(bits: int, order: str, is_min_white: bool) -> None:
    most = (1 << bits) - 1
    values = np.rint(_GRAY / 255 * most).astype(int)
    tags = {256: 90, 257: 60, 258: bits, 259: 1, 262: int(not is_min_white), 277: 1, 278: 60}
    stored = most - values if is_min_white else values
    _check(tiff(tags, packed(stored, bits), order), _gray3(values * 255 / most))


@pytest.mark.parametrize("width", [89, 90])
@pytest.mark.parametrize("is_min_white", [False, True])
def test_twelve_bits(width: int, is_min_white: bool) -> None:
    values = np.rint(_GRAY[:, :width] / 255 * 4095).astype(int)
    tags = {256: width, 257: 60, 258: 12, 259: 1, 262: int(not is_min_white), 277: 1, 278: 60}
    stored = 4095 - values if is_min_white else values
    _check(tiff(tags, packed(stored, 12)), _gray3(values * 255 / 4095))


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tag", [281, 341])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_fewer_bits_in_sixteen_by_the_largest_sample(
    bits: int, order: str, tag: int, photometric: str
) -> None:
    white = (1 << bits) - 1
    values = np.rint(_GRAY / 255 * white).astype(np.uint16)
    stored = white - values if photometric == "miniswhite" else values
    extra = [(tag, 3, 1, white, True)]
    _check(_written(stored, byteorder=order, photometric=photometric, extratags=extra), _gray3(_GRAY))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_fewer_bits_in_sixteen_of_rgb(order: str, planes: str) -> None:
    values = np.rint(_RGB / 255 * 4095).astype(np.uint16)
    values = values.transpose(2, 0, 1) if planes == "separate" else values
    extra = [(341, 3, 3, (4095,) * 3, True)]
    _check(_written(values, byteorder=order, photometric="rgb", planarconfig=planes, extratags=extra), _RGB)


def test_a_largest_sample_that_is_a_statistic_changes_nothing() -> None:
    values = _GRAY.astype(np.uint16) * 257
    for largest in (40_000, 65_535, 1000, 0):
        data = _written(values, photometric="minisblack", extratags=[(341, 3, 1, largest, True)])
        _check(data, _gray3(_GRAY))


@pytest.mark.parametrize("declared", [511, 4095, 32767])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_a_largest_sample_that_others_exceed_changes_nothing(declared: int, photometric: str) -> None:
    values = (_RGB if photometric == "rgb" else _GRAY).astype(np.uint16) * 257
    assert values.max() > declared
    stored = 65535 - values if photometric == "miniswhite" else values
    data = _written(stored, photometric=photometric, extratags=[(281, 3, 1, declared, True)])
    _check(data, _RGB if photometric == "rgb" else _gray3(_GRAY))


@pytest.mark.parametrize("wide", [1, 257])
def test_a_color_map_of_eight_or_sixteen_bits(wide: int) -> None:
    colors = np.zeros((3, 256), np.uint16)
    colors[:, :64] = np.random.default_rng(0).integers(0, 256, (3, 64))
    indexes = (_GRAY // 4).astype(np.uint8)
    data = _written(indexes, photometric="palette", colormap=colors * wide)
    _check(data, colors.T[indexes])


@pytest.mark.parametrize("wide", [1, 257])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_straight_premultiplied_and_none(wide: int, planes: str, kind: str) -> None:
    color = np.rint(_RGB * _SHARE).astype(np.uint8) if kind == "assocalpha" else _RGB
    values = np.dstack([color, _ALPHA]).astype(np.uint8 if wide == 1 else np.uint16) * wide
    values = values.transpose(2, 0, 1) if planes == "separate" else values
    data = _written(values, photometric="rgb", planarconfig=planes, extrasamples=[kind])
    if planes == "separate" and (kind == "assocalpha" or (kind == "unspecified" and wide == 1)):
        with pytest.raises(UnsupportedFormatError, match="not decoded"):
            decode(data)
        return
    expected = _RGB if kind == "unspecified" else _RGB * _SHARE + 255 * (1 - _SHARE)
    _check(data, expected, within=2)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_gray_with_alpha(kind: str) -> None:
    gray = np.rint(_GRAY * (_ALPHA / 255)) if kind == "assocalpha" else _GRAY
    values = np.dstack([gray, _ALPHA]).astype(np.uint8)
    data = _written(values, photometric="minisblack", planarconfig="contig", extrasamples=[kind])
    _check(data, _gray3(_GRAY * (_ALPHA / 255) + 255.0 - _ALPHA), within=2)


@pytest.mark.parametrize("wide", [1, 257])
def test_cmyk(wide: int) -> None:
    ink = np.asarray(_PHOTO.convert("CMYK"))
    values = ink.astype(np.uint8 if wide == 1 else np.uint16) * wide
    light = 255.0 - ink
    _check(_written(values, photometric="separated"), light[:, :, :3] * light[:, :, 3:] / 255, within=2)


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.int16, np.int32, np.uint32, np.uint64, np.float16, np.float32, np.float64, np.complex64],
)
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
def test_samples_without_a_fixed_white_are_refused_by_name(dtype: Any, photometric: str) -> None:
    values = (_RGB if photometric == "rgb" else _GRAY) // 2
    if dtype is np.complex64 and photometric == "rgb":
        pytest.skip("tifffile does not write it")
    with pytest.raises(UnsupportedFormatError, match=r"convert|save"):
        decode(_written(values.astype(dtype), photometric=photometric))


@pytest.mark.parametrize("bits", [6, 10, 14, 24])
def test_bits_that_are_not_decoded_are_refused_by_name(bits: int) -> None:
    tags = {256: 90, 257: 60, 258: bits, 259: 1, 262: 1, 277: 1, 278: 60}
    with pytest.raises(UnsupportedFormatError, match=f"of {bits} bits"):
        decode(tiff(tags, packed(_GRAY, bits)))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({262: 8}, "CIELAB"),
        ({262: 9}, "ICCLAB"),
        ({262: 6}, "subsampled YCbCr"),
        ({259: 34712}, "compression 34712"),
        ({259: 50002}, "compression 50002"),
        ({262: 32844}, "photometric interpretation 32844"),
        ({262: 32803}, "raw file"),
        ({262: 34892}, "raw file"),
        ({254: 1}, "thumbnail"),
        ({254: 4}, "thumbnail or mask"),
        ({255: 2}, "thumbnail"),
    ],
)
def test_a_form_that_is_not_decoded_is_refused_by_name(tags: dict[int, int], words: str) -> None:
    base: dict[int, Any] = {256: 90, 257: 60, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3, 278: 60}
    with pytest.raises(UnsupportedFormatError, match=words):
        decode(tiff({**base, **tags}, _RGB.tobytes()))


def test_inks_other_than_cmyk_are_refused() -> None:
    tags: dict[int, Any] = {256: 90, 257: 60, 258: (8,) * 4, 259: 1, 262: 5, 277: 4, 278: 60, 332: 2}
    with pytest.raises(UnsupportedFormatError, match="inks"):
        decode(tiff(tags, bytes(90 * 60 * 4)))


def _pages(*pages: tuple[Any, dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for array, options in pages:
            writer.write(np.ascontiguousarray(array), **options)
    return out.getvalue()


_MEAN_FORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "12-bit gray": (_GRAY, lambda v: v.astype(np.uint16) * 16 + v // 16,
                    {"photometric": "minisblack", "extratags": [(281, 3, 1, 4095, True)]}),
    "12-bit rgb": (_RGB, lambda v: v.astype(np.uint16) * 16 + v // 16,
                   {"photometric": "rgb", "extratags": [(281, 3, 1, 4095, True)]}),
    "8-bit color map": (_GRAY, lambda v: v, {"photometric": "palette",
                                             "colormap": np.tile(np.arange(256, dtype=np.uint16), (3, 1))}),
    "16-bit min-is-white": (_GRAY, lambda v: 65535 - v.astype(np.uint16) * 257,
                            {"photometric": "miniswhite"}),
    "8-bit min-is-white": (_GRAY, lambda v: 255 - v, {"photometric": "miniswhite"}),
    "16-bit planes": (_RGB, lambda v: v.astype(np.uint16).transpose(2, 0, 1) * 257,
                      {"photometric": "rgb", "planarconfig": "separate"}),
    "16-bit rgb": (_RGB, lambda v: v.astype(np.uint16) * 257, {"photometric": "rgb"}),
}  # fmt: skip


@pytest.mark.parametrize("form", _MEAN_FORMS)
@pytest.mark.parametrize("before", [0, 1])
def test_every_page_of_a_mean_is_repaired(form: str, before: int) -> None:
    """The mean of a page, of its left-right mirror image and of the page again, after thumbnails."""
    values, stored, options = _MEAN_FORMS[form]
    thumbnail = (_RGB[::4, ::4], {"photometric": "rgb", "subfiletype": 1})
    pages = [(stored(each), options) for each in (values, values[:, ::-1], values)]
    data = _pages(*[thumbnail] * before, *pages)
    plain = values.astype(float) if values.ndim == 3 else _gray3(values)
    expected = (2 * plain + plain[:, ::-1]) / 3
    got = rgb_of(data, frames="mean").astype(float)
    assert decode(data, frames="mean").frames == 3
    assert np.abs(got - expected).max() <= 1
    _check(data, plain)


@pytest.mark.parametrize(
    ("second", "options", "words"),
    [
        (_GRAY.astype(np.float32), {"photometric": "minisblack"}, "floating-point"),
        (_GRAY.astype(np.int16), {"photometric": "minisblack"}, "signed"),
        (_RGB, {"photometric": "cielab"}, "CIELAB"),
    ],
)
def test_a_page_that_is_not_decoded_matters_to_the_mean_alone(
    second: Any, options: dict[str, Any], words: str
) -> None:
    data = _pages((_RGB, {"photometric": "rgb"}), (second, options))
    _check(data, _RGB)
    with pytest.raises(UnsupportedFormatError, match=words):
        decode(data, frames="mean")


def test_a_thumbnail_is_not_taken_for_the_picture() -> None:
    small = (_RGB[::4, ::4], {"photometric": "rgb", "subfiletype": 1})
    full = (_RGB, {"photometric": "rgb"})
    _check(_pages(small, full), _RGB)
    decoded = decode(_pages(full, small), frames="mean")
    assert decoded.frames == 1
    _check(_pages(full, small), _RGB)


@pytest.mark.parametrize("before", [1, 3, 60])
def test_thumbnails_do_not_count_as_frames(before: int) -> None:
    small = (_RGB[::4, ::4], {"photometric": "rgb", "subfiletype": 1})
    full = (_RGB, {"photometric": "rgb"})
    data = _pages(*[small] * before, full, full, full)
    _check(data, _RGB)
    assert decode(data, ImageLimits(frames=1)).width == 90
    assert decode(data, ImageLimits(frames=2), frames="mean").frames == 2


def test_directories_of_many_entries_are_refused_in_time() -> None:
    """Each of 60 pages names 16 directories below it, all of them the same one of 4096 entries."""
    count, pages = 4096, 60
    big = struct.pack("<H", count) + struct.pack("<HHII", 40000, 4, 1, 0) * count + bytes(4)
    big_at = 8
    places_at = big_at + len(big)
    parts = [b"II*\0", b"", big, struct.pack("<16I", *[big_at] * 16)]
    at = places_at + 64
    parts[1] = struct.pack("<I", at)
    for i in range(pages):
        end = at + 2 + 3 * 12 + 4
        parts.append(struct.pack("<HHHIIHHIIHHIII", 3, 256, 4, 1, 9, 257, 4, 1, 9, 330, 4, 16, places_at,
                                 end if i + 1 < pages else 0))  # fmt: skip
        at = end
    start = time.monotonic()
    with pytest.raises(UndecodableError, match="entries"):
        decode(b"".join(parts))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({259: 34712}, "compression 34712 is not decoded: save it without compression"),
        ({259: 33003}, "compression 33003 is not decoded: save it without compression"),
        ({259: 50001}, "compression 50001 is not decoded: save it without compression"),
        ({258: (8, 8), 277: 2, 262: 1, 338: 2, 284: 2}, "interleave its samples"),
        ({258: 8, 277: 1, 262: 0, 266: 2}, "the usual order of bits"),
        ({258: 1, 277: 1, 262: 3, 266: 2, 320: (0, 65535) * 3}, "the usual order of bits"),
        ({258: 2, 277: 1, 262: 3, 266: 2, 320: (0, 1, 2, 65535) * 3}, "the usual order of bits"),
        ({258: 4, 277: 1, 262: 3, 266: 2, 320: (*range(15), 65535) * 3}, "the usual order of bits"),
    ],
)
def test_a_layout_without_decoder_is_refused_with_the_right_remedy(tags: dict[int, Any], words: str) -> None:
    base: dict[int, Any] = {256: 90, 257: 60, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3, 278: 60}
    with pytest.raises(UnsupportedFormatError, match=words):
        decode(tiff({**base, **tags}, bytes(90 * 60 * 4)))


def test_planes_with_one_of_no_meaning_are_refused_with_the_right_remedy() -> None:
    planes = np.concatenate([_RGB, _ALPHA[:, :, None]], axis=2).transpose(2, 0, 1)
    data = _written(planes, photometric="rgb", planarconfig="separate", extrasamples=["unspecified"])
    with pytest.raises(UnsupportedFormatError, match="interleave its samples"):
        decode(data)


@pytest.mark.parametrize("raw", ["cfa", "linear_raw", "dng"])
def test_a_cameras_raw_file_is_refused_by_name(raw: str) -> None:
    thumbnail: dict[str, Any] = {"photometric": "rgb", "subfiletype": 1, "subifds": 1}
    inside: dict[str, Any] = {"photometric": "cfa", "extratags": [(33421, 3, 2, (2, 2), True)]}
    if raw == "linear_raw":
        inside = {"photometric": "linear_raw", "planarconfig": "contig"}
    if raw == "dng":
        thumbnail["extratags"] = [(50706, 1, 4, b"\x01\x04\x00\x00", True)]
        inside = {"photometric": "minisblack"}
    with pytest.raises(UnsupportedFormatError, match="raw file"):
        decode(_pages((_RGB[::4, ::4], thumbnail), (_RGB if raw == "linear_raw" else _GRAY, inside)))


def test_limits_hold_for_every_page_and_tile_before_decoding() -> None:
    small = (_RGB[:8, :8], {"photometric": "rgb"})
    with pytest.raises(TooLargeError, match="90 x 60"):
        decode(_pages(small, (_RGB, {"photometric": "rgb"})), ImageLimits(pixels=5000), frames="mean")
    tags: dict[int, Any] = {
        256: 90,
        257: 60,
        258: (8, 8, 8),
        259: 1,
        262: 2,
        277: 3,
        322: 16_384,
        323: 16_384,
    }
    with pytest.raises(TooLargeError, match="16384 x 16384"):
        decode(tiff(tags, b""))
