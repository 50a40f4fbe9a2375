"""Embedded color profiles: ignored, or converted to sRGB, against the formulas of the color spaces."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from support import photos
from support.decoding import decode, png, png_chunk, rgb_of

from pixvec_server.app import _decode_mode
from pixvec_server.config import Config

_PHOTO = photos.image("astronaut.png").resize((120, 80))
# Colorants in XYZ under D50 as the spaces' own profiles hold them, one row a primary.
_DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
_ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
_WHITE = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _profile(name: str, primaries: Any, gamma: float | None = None) -> bytes:
    """Write an ICC profile of a matrix and one curve: a power, or that of sRGB."""
    curve = (
        b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    )
    if gamma is not None:
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = name.encode()
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + bytes(79)
    tags = {b"desc": description + bytes(-len(description) % 4), b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_WHITE)}
    for tag, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True):
        tags[tag] = b"XYZ \0\0\0\0" + _fixed(*xyz)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + _fixed(*_WHITE) + bytes(48) + table + body


def _linear(values: np.ndarray, gamma: float | None) -> np.ndarray:
    if gamma is not None:
        return values**gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _to_srgb(picture: Image.Image, primaries: Any, gamma: float | None = None) -> np.ndarray:
    """Convert by the formulas: linear light, the two matrices, sRGB's curve (IEC 61966-2-1)."""
    light = _linear(np.asarray(picture) / 255, gamma) @ np.array(primaries) @ np.linalg.inv(np.array(_SRGB))
    light = np.clip(light, 0, 1)
    curved = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(curved * 255)


_SPACES = {
    "Display P3": (_DISPLAY_P3, None),
    "Adobe RGB (1998)": (_ADOBE_RGB, 563 / 256),
}


@pytest.mark.parametrize("name", _SPACES)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_a_profile_is_ignored_or_converted(name: str, form: str, options: dict[str, Any]) -> None:
    primaries, gamma = _SPACES[name]
    data = photos.encode(_PHOTO, form, icc_profile=_profile(name, primaries, gamma), **options)
    assert np.abs(rgb_of(data).astype(float) - np.asarray(_PHOTO)).mean() < 1.5
    expected = _to_srgb(_PHOTO, primaries, gamma)
    assert np.abs(expected - np.asarray(_PHOTO)).mean() > 2
    assert np.abs(rgb_of(data, color="srgb") - expected).mean() < 1.5


def test_alpha_stays_and_sixteen_bits_and_palettes_are_converted_as_well() -> None:
    profile = _profile("Display P3", _DISPLAY_P3)
    expected = _to_srgb(_PHOTO, _DISPLAY_P3)
    half = _PHOTO.copy()
    half.putalpha(128)
    over = expected * (128 / 255) + 255 * (127 / 255)
    got = rgb_of(photos.encode(half, "PNG", icc_profile=profile), color="srgb")
    assert np.abs(got - over).mean() < 1
    palette = _PHOTO.quantize(64)
    got = rgb_of(photos.encode(palette, "PNG", icc_profile=profile), color="srgb")
    assert np.abs(got - _to_srgb(palette.convert("RGB"), _DISPLAY_P3)).mean() < 1


def _gray_profile(gamma: float) -> bytes:
    """Write an ICC profile of gray with the curve of a power."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"gray\0" + bytes(78)
    tags = {
        b"desc": description + bytes(-len(description) % 4),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_WHITE),
        b"kTRC": curve,
    }
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + _fixed(*_WHITE) + bytes(48) + table + body


def _gray_to_srgb(picture: Image.Image, gamma: float) -> np.ndarray:
    light = (np.asarray(picture) / 255) ** gamma
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize("gamma", [1.0, 1.5])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_gray_is_converted_by_a_profile_of_gray(form: str, gamma: float) -> None:
    gray = _PHOTO.convert("L")
    options = {"quality": 100} if form == "JPEG" else {}
    data = photos.encode(gray, form, icc_profile=_gray_profile(gamma), **options)
    expected = _gray_to_srgb(gray, gamma)
    assert np.abs(expected - np.asarray(gray)).mean() > 10
    got = rgb_of(data, color="srgb")
    assert np.abs(got - expected[..., None]).mean() < 1.5
    assert np.abs(rgb_of(data).astype(float) - np.asarray(gray)[..., None]).mean() < 1


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_gray_with_alpha_is_converted_by_a_profile_of_gray(form: str) -> None:
    gray = _PHOTO.convert("L")
    alpha = Image.new("L", gray.size, 128)
    data = photos.encode(Image.merge("LA", (gray, alpha)), form, icc_profile=_gray_profile(1.0))
    expected = _gray_to_srgb(gray, 1.0) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(rgb_of(data, color="srgb") - expected[..., None]).mean() < 1


@pytest.mark.parametrize("bits", [8, 16])
def test_gray_with_a_transparent_level_is_converted_by_a_profile_of_gray(bits: int) -> None:
    samples = np.tile(np.arange(256), (4, 1))
    scale = 257 if bits == 16 else 1
    packed = zlib.compress(_gray_profile(1.0))
    chunks = png_chunk(b"iCCP", b"x\0\0" + packed), png_chunk(b"tRNS", struct.pack(">H", 64 * scale))
    got = rgb_of(png(samples * scale, bits, 0, *chunks), color="srgb")
    expected = _gray_to_srgb(Image.fromarray(samples.astype(np.uint8)), 1.0)
    expected[:, 64] = 255
    # LittleCMS interpolates a curve that is steep at black.
    assert np.abs(got - expected[..., None])[:, 16:].max() <= 2


@pytest.mark.parametrize(
    "name", ["GIMP built-in Linear sRGB", "sRGB-elle-V2-g10.icc", "sRGB IEC61966-2.1", "linear"]
)
@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_a_profile_is_srgb_by_its_curve_and_not_by_its_name(name: str, gamma: float) -> None:
    data = photos.encode(_PHOTO, "PNG", icc_profile=_profile(name, _SRGB, gamma))
    expected = _to_srgb(_PHOTO, _SRGB, gamma)
    assert np.abs(expected - np.asarray(_PHOTO)).mean() > 10
    assert np.abs(rgb_of(data, color="srgb") - expected).mean() < 1


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "c2", "a scanner's"])
def test_a_profile_of_srgb_by_any_name_changes_no_pixel(name: str) -> None:
    data = photos.encode(_PHOTO, "PNG", icc_profile=_profile(name, _SRGB))
    assert np.array_equal(rgb_of(data, color="srgb"), np.asarray(_PHOTO))


def test_srgb_itself_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = photos.encode(_PHOTO, "PNG", icc_profile=profile)
    assert np.array_equal(rgb_of(data, color="srgb"), np.asarray(_PHOTO))


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        bytes(4000),
        _profile("cut", _DISPLAY_P3)[:300],
        _profile("Lab", _DISPLAY_P3).replace(b"RGB XYZ ", b"CMYKLab "),
        b"\xff" * (5 << 20),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes, form: str) -> None:
    if form == "JPEG" and len(profile) > 100_000:
        pytest.skip("a JPEG holds it in 80 segments, which is tried as PNG and TIFF")
    data = photos.encode(_PHOTO, form, icc_profile=profile)
    assert np.array_equal(rgb_of(data, color="srgb"), rgb_of(data))


def test_a_cmyk_jpeg_with_a_profile_of_rgb_is_not_converted() -> None:
    picture = _PHOTO.convert("CMYK")
    data = photos.encode(picture, "JPEG", quality=98, icc_profile=_profile("Display P3", _DISPLAY_P3))
    assert np.array_equal(rgb_of(data, color="srgb"), rgb_of(data))


def test_fast_decoding_converts_as_well() -> None:
    large = _PHOTO.resize((960, 640), Image.Resampling.NEAREST)
    data = photos.encode(large, "JPEG", quality=98, icc_profile=_profile("Display P3", _DISPLAY_P3))
    decoded = decode(data, short_side=100, mode="fast", color="srgb")
    small = np.asarray(decoded.pixels)[:, :, :3]
    assert small.shape == (320, 480, 3)
    expected = _to_srgb(large.resize((480, 320), Image.Resampling.BOX), _DISPLAY_P3)
    assert np.abs(small - expected).mean() < 3


@pytest.mark.parametrize(
    ("decode", "name"),
    [
        ({}, "exact"),
        ({"mode": "fast"}, "fast"),
        ({"color": "srgb"}, "exact-srgb"),
        ({"mode": "fast", "color": "srgb"}, "fast-srgb"),
        ({"device": "cuda", "color": "srgb"}, "exact-nvjpeg-srgb"),
    ],
)
def test_build_records_a_conversion(decode: dict[str, str], name: str) -> None:
    assert _decode_mode(Config.model_validate({"decode": decode})) == name


def test_a_png_profile_that_inflates_without_end_is_dropped() -> None:
    data = photos.encode(_PHOTO, "PNG")
    bomb = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50 << 20)))
    assert np.array_equal(rgb_of(data[:33] + bomb + data[33:], color="srgb"), np.asarray(_PHOTO))
