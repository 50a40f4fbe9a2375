"""Both kernels of the resize against each other and against torchvision's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import photos
from torchvision.transforms.v2 import functional

from pixvec_server.preprocess import RESIZE_KERNEL, resize
from pixvec_server.types import U8

PHOTO = np.asarray(photos.image("rocket.jpg"))
FILTERS = ("bilinear", "bicubic", "lanczos")

pytestmark = pytest.mark.skipif(
    RESIZE_KERNEL == "pillow", reason="cykooz.resizer has no wheel for this machine"
)


def _pillow(pixels: Any, box: resize.Box, size: tuple[int, int], interpolation: str) -> U8:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "cykooz", None)
        return resize.resize(pixels, box, size, interpolation)


@pytest.mark.parametrize("size", [(341, 256), (224, 224), (64, 300), (900, 700)])
def test_a_whole_image_equals_torchvisions_own_kernel_to_the_bit(size: tuple[int, int]) -> None:
    tensor = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)
    expected = functional.resize(
        tensor, [size[1], size[0]], interpolation=functional.InterpolationMode.BICUBIC, antialias=True
    )
    got = resize.resize(PHOTO, (0, 0, 640, 427), size, "bicubic")
    assert np.array_equal(got, expected.permute(1, 2, 0).numpy())


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    channels=st.sampled_from((3, 4)),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    interpolation=st.sampled_from(FILTERS),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_kernels_are_a_grey_level_apart_at_most(  # noqa: PLR0917 - hypothesis calls by name
    data: st.DataObject,
    shape: tuple[int, int],
    channels: int,
    size: tuple[int, int],
    interpolation: str,
    seed: int,
) -> None:
    height, width = shape
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    left, top = (data.draw(st.floats(0, side * 0.9)) for side in (width, height))
    right = data.draw(st.floats(left + width * 0.05, width))
    bottom = data.draw(st.floats(top + height * 0.05, height))
    box = left, top, right, bottom
    got = resize.resize(pixels, box, size, interpolation)
    assert got.shape == (size[1], size[0], 3)
    difference = np.abs(got.astype(int) - _pillow(pixels, box, size, interpolation))
    # Noise at full contrast: the first direction's level may be weighted by more than 1 in the second.
    assert difference.max() <= 2


@pytest.mark.parametrize("interpolation", FILTERS)
def test_of_a_photograph_few_values_are_apart(interpolation: str) -> None:
    """Not a property of any pixels: a few values may lie on the border of two levels all of them."""
    box = (107.0, 0.0, 534.0, 427.0)
    got = resize.resize(PHOTO, box, (224, 224), interpolation)
    difference = np.abs(got.astype(int) - _pillow(PHOTO, box, (224, 224), interpolation))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("interpolation", FILTERS)
def test_strips_are_the_whole(interpolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box = (10.5, 20.25, 600.0, 400.75)
    whole = resize.resize(PHOTO, box, (224, 224), interpolation)
    monkeypatch.setattr(resize, "_STRIP_BYTES", 640 * 3 * 7)
    assert np.array_equal(resize.resize(PHOTO, box, (224, 224), interpolation), whole)


@pytest.mark.parametrize("interpolation", [*FILTERS, "nearest"])
def test_arrays_views_and_images_of_three_and_four_channels_agree(interpolation: str) -> None:
    box, size = (3.5, 0.0, 300.0, 250.5), (96, 128)
    image = Image.fromarray(PHOTO).crop((40, 30, 440, 330))
    expected = resize.resize(image, box, size, interpolation)
    four = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 7, np.uint8)])
    for pixels in (PHOTO[30:330, 40:440], four[30:330, 40:440], image.convert("RGBX")):
        assert np.array_equal(resize.resize(pixels, box, size, interpolation), expected)


def test_pixels_of_the_right_size_are_left_alone() -> None:
    assert np.array_equal(resize.resize(PHOTO, (0, 0, 640, 427), (640, 427), "bicubic"), PHOTO)
