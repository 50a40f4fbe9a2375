"""Embedded color profiles (ICC), converted to sRGB for those who ask for it: `decode.color = srgb`.

A profile that is damaged, over the bound, or of another color space than the pixels is ignored: it never
fails an image.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Callable

# Of an ICC profile; those of printers with large tables are about 2 MB.
_MAX_PROFILE_BYTES = 4 << 20
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "RGBX": "RGB ", "CMYK": "CMYK", "L": "GRAY"}


def converter(profile: object) -> Callable[[Image.Image], Image.Image]:
    """Return what converts an image of 8 bits from its embedded profile (bytes) to sRGB.

    It returns RGB or, with its alpha as it was, RGBA; an image that is not to be converted comes back as it
    is. `profile` None, or one that cannot be used: nothing is converted.
    """
    source = _parsed(profile)
    if source is None:
        return lambda image: image

    def convert(image: Image.Image) -> Image.Image:
        if _SPACES.get(image.mode) != source.profile.xcolor_space:
            return image
        target = image.mode if image.mode in ("RGBA", "RGBX") else "RGB"
        try:
            changed = ImageCms.profileToProfile(image, source, _srgb(), outputMode=target)
        except (ImageCms.PyCMSError, ValueError, OSError):
            return image
        return image if changed is None else changed

    return convert


def _parsed(profile: object) -> ImageCms.ImageCmsProfile | None:
    if not isinstance(profile, bytes) or not 128 < len(profile) <= _MAX_PROFILE_BYTES:
        return None
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # The target itself: nothing to convert, and most files that have a profile have this one.
        is_srgb = "sRGB" in (parsed.profile.profile_description or "")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return None if is_srgb else parsed


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
