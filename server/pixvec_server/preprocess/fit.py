"""One crop and one resize: from a decoded image to the network's uint8 input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pixvec_server.errors import BadOptionError
from pixvec_server.preprocess.raster import cut, size_of
from pixvec_server.preprocess.resize import resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixvec_server.preprocess.decode import Decoded
    from pixvec_server.preprocess.raster import Raster
    from pixvec_server.spec import Preprocess
    from pixvec_server.types import U8, Region


class EmptyRegionError(BadOptionError):
    """A region that holds no pixel of the image."""


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes a network's input.

    `short_side_crop` is the two-step transform of timm and torchvision: the shorter side to `resize_to`, or
    to floor(side / crop), then the centre; `squash` resizes both sides to floor(side / crop), keeping no
    aspect. Without `antialias` each pixel is interpolated from its neighbours alone, as OpenCV does.
    `frames` is what is taken of an animation; None: what the server is set to.
    """

    height: int
    width: int
    mode: Literal["short_side_crop", "squash"] = "short_side_crop"
    crop: float = 1.0
    resize_to: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    antialias: bool = True
    frames: Literal["first", "mean"] | None = None

    @property
    def short_side(self) -> int:
        """Length in pixels that the image's shorter side gets, before the crop."""
        side = min(self.height, self.width)
        return self.resize_to or int(side / self.crop)


def spec_of(record: Preprocess) -> PreprocessSpec:
    """Return the part of a model's preprocessing that happens before its graph."""
    return PreprocessSpec(
        height=record.height,
        width=record.width,
        mode=record.mode,
        crop=record.crop,
        resize_to=record.short_side,
        interpolation=record.interpolation,
        antialias=record.antialias,
        frames=record.frames,
    )


def fit(image: Decoded, region: Region, spec: PreprocessSpec) -> U8:
    """Crop a region and resize it, in one pass: (height, width, 3) uint8 RGB.

    The two-step transform's crop window is mapped back to the source, with that transform's own rounding,
    and resampled directly: the same pixels come out as from resize-then-crop. Raises EmptyRegionError when
    the region, clipped to the image, holds no pixel.
    """
    pixels, width, height = _cut(image, region)
    left, top, right, bottom = crop_window(width, height, spec)
    columns, rows = size_of(pixels)
    scale_x, scale_y = columns / width, rows / height
    box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
    if not spec.antialias and spec.interpolation in _TAPS:
        return _sampled(np.asarray(pixels)[:, :, :3], box, spec)
    return resize(pixels, box, (spec.width, spec.height), spec.interpolation)


def is_fitted(shape: tuple[int, ...], spec: PreprocessSpec) -> bool:
    """Tell whether `fit` would leave pixels of this shape as they are."""
    size = spec.width, spec.height
    return shape == (spec.height, spec.width, 3) and crop_window(*size, spec) == (0, 0, *size)


def crop_window(width: int, height: int, spec: PreprocessSpec) -> tuple[float, float, float, float]:
    """Return the part of a (width, height) image that the network sees: left, top, right, bottom.

    Rounding as in torchvision's `resize` (the longer side is cut to an integer) and `center_crop` (half the
    margin is rounded to even).
    """
    if spec.mode == "squash":
        resized_w, resized_h = int(spec.width / spec.crop), int(spec.height / spec.crop)
    else:
        short, long = sorted((width, height))
        resized_long = int(spec.short_side * long / short)
        resized_w, resized_h = (
            (spec.short_side, resized_long) if width <= height else (resized_long, spec.short_side)
        )
    left, top = round((resized_w - spec.width) / 2.0), round((resized_h - spec.height) / 2.0)
    step_x, step_y = width / resized_w, height / resized_h
    return left * step_x, top * step_y, (left + spec.width) * step_x, (top + spec.height) * step_y


def _sampled(pixels: U8, box: tuple[float, float, float, float], spec: PreprocessSpec) -> U8:
    """Interpolate without antialiasing, as OpenCV's `resize` and torch's `interpolate` do.

    The cubic kernel is Keys' with a = -0.75, pixel centres lie at halves, edges are repeated.
    """
    columns, across = _taps(box[0], box[2], spec.width, pixels.shape[1], spec.interpolation)
    rows, down = _taps(box[1], box[3], spec.height, pixels.shape[0], spec.interpolation)
    total = np.zeros((spec.height, spec.width, 3), np.float32)
    for row, weight_down in zip(rows, down, strict=True):
        line = np.zeros_like(total)
        for column, weight_across in zip(columns, across, strict=True):
            line += pixels[row[:, None], column[None, :]] * weight_across[None, :, None]
        total += line * weight_down[:, None, None]
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _taps(
    start: float, end: float, size: int, length: int, interpolation: str
) -> tuple[list[NDArray[np.intp]], list[NDArray[np.float32]]]:
    """Return for each tap the source index of every output pixel, and its weight."""
    at = start + (np.arange(size) + 0.5) * (end - start) / size - 0.5
    first = np.floor(at)
    offset = at - first
    reach, kernel = _TAPS[interpolation]
    indexes = [np.clip(first + step, 0, length - 1).astype(np.intp) for step in reach]
    weights = [kernel(np.abs(offset - step)).astype(np.float32) for step in reach]
    return indexes, weights


def _linear(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - distance)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.75, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


_TAPS = {"bilinear": ((0, 1), _linear), "bicubic": ((-1, 0, 1, 2), _cubic)}


def _cut(image: Decoded, region: Region) -> tuple[Raster, int, int]:
    """Return the region's own pixels, so that none around it bleed in, and its size at full scale."""
    if region.whole:
        return image.pixels, image.width, image.height
    left, top = max(0, region.left), max(0, region.top)
    right, bottom = min(image.width, region.right), min(image.height, region.bottom)
    if left >= right or top >= bottom:
        raise EmptyRegionError(
            f"the box ({region.left}, {region.top}, {region.right}, {region.bottom}) holds no pixel of the "
            f"{image.width} x {image.height} image",
        )
    return cut(image.pixels, (left, top, right, bottom)), right - left, bottom - top
