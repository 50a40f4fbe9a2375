"""From an image that Pillow has opened to 8-bit RGB: wide samples, transparency, CMYK, the color profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile

from pixvec_server.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pixvec_server.types import U8

    Convert = Callable[[Image.Image], Image.Image]

ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_WIDE_WHITE = (1 << 16) - 1
WIDE_MODES = ("I;16", "I;16B", "I;16L")
# Pillow unpacks one byte of each 16-bit sample: the other byte order gives it the other byte.
_OTHER_BYTE = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if np.little_endian else "RGB;16L",
    **{f"{band};16L": f"{band};16B" for band in "RGB"},
    **{f"{band};16B": f"{band};16L" for band in "RGB"},
}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image, background: tuple[int, int, int], convert: Convert) -> Image.Image:
    """Return RGB (or RGBX) of a loaded image, over the background where it is transparent.

    `convert` turns the image's colors into sRGB. Raises UnsupportedFormatError for 32-bit samples.
    """
    if image.mode in WIDE_MODES:
        image = gray_of(image, _WIDE_WHITE)
    image = image.convert(_PREMULTIPLIED[image.mode]) if image.mode in _PREMULTIPLIED else image
    if image.mode in ("I", "F"):
        raise UnsupportedFormatError(
            f"pixels of mode {image.mode} (32-bit) have no fixed white: convert the image to 8 or 16 bits",
            field="image",
        )
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = _converted_with_alpha(image, convert)
        ground = Image.new("RGB", image.size, background)
        ground.paste(rgba, mask=rgba)
        return ground
    if image.mode in ("1", "P", "PA", "YCbCr", "HSV", "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = convert(image)
    return image if image.mode in ("RGB", "RGBX") else image.convert("RGB")


def _converted_with_alpha(image: Image.Image, convert: Convert) -> Image.Image:
    if image.mode not in ("1", "L", "LA"):
        return convert(image if image.mode == "RGBA" else image.convert("RGBA"))
    # A profile of gray takes gray alone.
    gray, alpha = (image if image.mode == "LA" else image.convert("LA")).split()
    rgba = convert(gray).convert("RGB")
    rgba.putalpha(alpha)
    return rgba


def gray_of(image: Image.Image, white: int, *, is_min_white: bool = False) -> Image.Image:
    """Scale samples (height, width) of more than 8 bits to 8, rounded; mode L.

    `white` is the largest sample; `is_min_white` turns black and white around.
    """
    scaled = scaled_to_8_bits(np.asarray(image), white)
    return Image.fromarray(255 - scaled if is_min_white else scaled)


def scaled_to_8_bits(samples: NDArray[Any], white: int) -> U8:
    """Scale samples of up to 16 bits, rounded; `white` is the largest, all 16 bits where one is larger."""
    if white < samples.max(initial=0):
        white = _WIDE_WHITE
    scaled: U8 = ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    return scaled


def wide_rgb(open_image: Callable[[], ImageFile.ImageFile]) -> NDArray[np.uint16]:
    """Return the 16-bit samples of an RGB image (height, width, 3) that Pillow reads as 8 bits.

    `open_image` opens the file anew. Raises UnsupportedFormatError where the file's layout forbids it.
    """
    high = np.asarray(open_image(), np.uint16)
    image = open_image()
    tiles = []
    for tile in image.tile:
        rawmode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if rawmode not in _OTHER_BYTE:
            raise UnsupportedFormatError(
                f"16-bit RGB in the layout {rawmode} is not decoded: save it with 8 bits", field="image"
            )
        other = _OTHER_BYTE[rawmode]
        tiles.append(tile._replace(args=(other, *rest) if isinstance(tile.args, tuple) else other))
    image.tile = tiles
    return (high << np.uint16(8)) | np.asarray(image, np.uint16)


def with_transparent(rgb: Image.Image, is_clear: NDArray[np.bool_]) -> Image.Image:
    """Return RGBA, or LA of gray, of an image, clear where the mask (height, width) says so."""
    rgba = rgb.convert("LA" if rgb.mode == "L" else "RGBA")
    rgba.putalpha(Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8)))
    return rgba
