"""One crop and one resize: from a decoded image to the network's uint8 input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from pixvec_server.errors import BadOptionError

if TYPE_CHECKING:
    from pixvec_server.preprocess.decode import Decoded
    from pixvec_server.types import U8, Region

RESIZE_KERNEL = "pillow"
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class EmptyRegionError(BadOptionError):
    """A region that holds no pixel of the image."""


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes a network's input.

    `short_side_crop` is the two-step transform of timm and torchvision: the shorter side to
    floor(side / crop), then the centre; `squash` resizes both sides and keeps no aspect.
    """

    height: int
    width: int
    mode: Literal["short_side_crop", "squash"] = "short_side_crop"
    crop: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"

    @property
    def short_side(self) -> int:
        """Length in pixels that the image's shorter side gets, before the crop."""
        side = min(self.height, self.width)
        return int(side / self.crop) if self.mode == "short_side_crop" else side


def fit(image: Decoded, region: Region, spec: PreprocessSpec) -> U8:
    """Crop a region and resize it, in one antialiased pass: (height, width, 3) uint8 RGB.

    The two-step transform's crop window is mapped back to the source, with that transform's own rounding,
    and resampled directly: the same pixels come out as from resize-then-crop. Raises EmptyRegionError when
    the region, clipped to the image, holds no pixel.
    """
    pixels, width, height = _cut(image, region)
    left, top, right, bottom = crop_window(width, height, spec)
    scale_x, scale_y = pixels.width / width, pixels.height / height
    box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
    resized = pixels.resize((spec.width, spec.height), _FILTERS[spec.interpolation], box=box)
    return np.ascontiguousarray(np.asarray(resized)[:, :, :3])


def crop_window(width: int, height: int, spec: PreprocessSpec) -> tuple[float, float, float, float]:
    """Return the part of a (width, height) image that the network sees: left, top, right, bottom.

    Rounding as in torchvision's `resize` (the longer side is cut to an integer) and `center_crop` (half the
    margin is rounded to even).
    """
    if spec.mode == "squash":
        return 0.0, 0.0, float(width), float(height)
    short, long = sorted((width, height))
    resized_long = int(spec.short_side * long / short)
    resized_w, resized_h = (
        (spec.short_side, resized_long) if width <= height else (resized_long, spec.short_side)
    )
    left, top = round((resized_w - spec.width) / 2.0), round((resized_h - spec.height) / 2.0)
    step_x, step_y = width / resized_w, height / resized_h
    return left * step_x, top * step_y, (left + spec.width) * step_x, (top + spec.height) * step_y


def _cut(image: Decoded, region: Region) -> tuple[Image.Image, int, int]:
    """Return the region's own image, so that no pixel around it bleeds in, and its size at full scale."""
    if region.whole:
        return image.pixels, image.width, image.height
    left, top = max(0, region.left), max(0, region.top)
    right, bottom = min(image.width, region.right), min(image.height, region.bottom)
    if left >= right or top >= bottom:
        raise EmptyRegionError(
            f"the box ({region.left}, {region.top}, {region.right}, {region.bottom}) holds no pixel of the "
            f"{image.width} x {image.height} image",
        )
    return image.pixels.crop((left, top, right, bottom)), right - left, bottom - top
