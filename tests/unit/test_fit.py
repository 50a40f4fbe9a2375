"""One crop and one resize, against the two steps that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm.data
from PIL import Image
from support import photos

from pixvec_server.preprocess import Decoded, EmptyRegionError, PreprocessSpec, fit
from pixvec_server.types import WHOLE, Region

PHOTO = photos.image("rocket.jpg")
SPEC = PreprocessSpec(224, 224, crop=0.875)


def _decoded(picture: Image.Image) -> Decoded:
    return Decoded(picture, picture.width, picture.height, "png")


def _reference(picture: Image.Image, spec: PreprocessSpec) -> Any:
    """timm's own transform, back in grey levels."""
    transform = timm.data.create_transform(
        (3, spec.height, spec.width),
        interpolation=spec.interpolation,
        crop_pct=spec.crop,
        crop_mode="squash" if spec.mode == "squash" else "center",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    return transform(picture).permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize(
    "size", [(640, 427), (427, 640), (500, 500), (231, 233), (256, 256), (1003, 301), (64, 48), (300, 299)]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_one_pass_equals_timms_two_steps_within_a_grey_level(
    size: tuple[int, int], interpolation: Any
) -> None:
    picture = PHOTO.resize(size)
    spec = PreprocessSpec(224, 224, crop=0.875, interpolation=interpolation)
    difference = np.abs(fit(_decoded(picture), WHOLE, spec) - _reference(picture, spec))
    assert difference.max() <= 1.01
    assert difference.mean() < 0.1


def test_squash_keeps_no_aspect() -> None:
    spec = PreprocessSpec(96, 128, mode="squash", interpolation="bilinear")
    expected = np.asarray(PHOTO.resize((128, 96), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(fit(_decoded(PHOTO), WHOLE, spec) - expected).max() <= 1


def test_a_region_is_the_same_as_sending_the_crop() -> None:
    box = (100, 50, 420, 300)
    got = fit(_decoded(PHOTO), Region(*box), SPEC)
    assert np.array_equal(got, fit(_decoded(PHOTO.crop(box)), WHOLE, SPEC))


def test_a_region_is_clipped_to_the_image() -> None:
    got = fit(_decoded(PHOTO), Region(-50, -50, 200, 9999), SPEC)
    assert np.array_equal(got, fit(_decoded(PHOTO.crop((0, 0, 200, 427))), WHOLE, SPEC))


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (20, 10, 10, 20), (640, 0, 700, 10), (-9, -9, 0, 0)])
def test_an_empty_region_is_an_error(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(EmptyRegionError, match="holds no pixel of the 640 x 427 image"):
        fit(_decoded(PHOTO), Region(*box), SPEC)


def test_a_reduced_decode_is_cropped_at_the_same_place() -> None:
    half = PHOTO.resize((320, 214), Image.Resampling.BOX)
    spec = PreprocessSpec(64, 64, crop=0.875)
    full = fit(_decoded(PHOTO), WHOLE, spec).astype(int)
    reduced = fit(Decoded(half, 640, 427, "jpeg"), WHOLE, spec).astype(int)
    assert np.abs(full - reduced).mean() < 3


def test_the_result_is_rgb_and_contiguous_from_four_channels_too() -> None:
    rgbx = Image.frombuffer("RGBX", PHOTO.size, PHOTO.convert("RGBX").tobytes(), "raw", "RGBX", 0, 1)
    got = fit(_decoded(rgbx), WHOLE, SPEC)
    assert got.shape == (224, 224, 3)
    assert got.flags.c_contiguous
    assert np.array_equal(got, fit(_decoded(PHOTO), WHOLE, SPEC))
