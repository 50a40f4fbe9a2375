"""Embedded color profiles (ICC), converted to sRGB for those who ask for it: `decode.color = srgb`.

A profile that is damaged, over the bound, or of another color space than the pixels is ignored: it never
fails an image.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Callable

# Of an ICC profile; those of printers with large tables are about 2 MB.
_MAX_PROFILE_BYTES = 4 << 20
_HEADER_BYTES = 128
# Each keeps its profile.
_MAX_TRANSFORMS = 8
_WITH_FOURTH = ("RGBA", "RGBX")
# Profiles of sRGB differ from each other by this much, in levels of 255; those of other spaces by far more.
_MAX_SRGB_DIFFERENCE = 2
_PROBE_LEVELS = (0, 16, 32, 64, 96, 128, 160, 192, 224, 255)
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "RGBX": "RGB ", "CMYK": "CMYK", "L": "GRAY"}


def converter(profile: object) -> Callable[[Image.Image], Image.Image]:
    """Return what converts an image of 8 bits from its embedded profile (bytes) to sRGB.

    It returns RGB or, with its alpha as it was, RGBA; an image that is not to be converted comes back as it
    is. `profile` None, or one that cannot be used: nothing is converted.
    """
    if not isinstance(profile, bytes) or not _HEADER_BYTES < len(profile) <= _MAX_PROFILE_BYTES:
        return lambda image: image

    def convert(image: Image.Image) -> Image.Image:
        transform = _transform(profile, image.mode) if image.mode in _SPACES else None
        if transform is None:
            return image
        try:
            changed = ImageCms.applyTransform(image, transform)
        except (ImageCms.PyCMSError, ValueError, OSError):
            return image
        return image if changed is None else changed

    return convert


@lru_cache(maxsize=_MAX_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile for images of a mode, None when there is nothing to convert.

    Building one takes as long as decoding many images, and most images of a set have the same profile.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES[mode]:
            return None
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        # Most files that have a profile have the target itself.
        if mode != "CMYK" and _is_srgb(source, target, "L" if mode == "L" else "RGB"):
            return None
        return ImageCms.buildTransform(source, target, mode, mode if mode in _WITH_FOURTH else "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _is_srgb(source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Tell whether a profile leaves colors as they are; a name with sRGB in it may be of another curve."""
    grid = np.stack(np.meshgrid(*[_PROBE_LEVELS] * len(mode)), axis=-1).astype(np.uint8)
    probe = Image.fromarray(grid.reshape(1, -1) if mode == "L" else grid.reshape(1, -1, 3))
    seen = ImageCms.applyTransform(probe, ImageCms.buildTransform(source, target, mode, "RGB"))
    if seen is None:
        return False
    difference = np.asarray(seen, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    return int(np.abs(difference).max()) <= _MAX_SRGB_DIFFERENCE
