"""Decoded pixels as they come: an array from the JPEG decoder, an image from Pillow."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from PIL import Image

from pixvec_server.types import U8

# (height, width, 3 or 4) of R, G, B and, of four, one without meaning; or an image of mode RGB or RGBX.
Raster: TypeAlias = U8 | Image.Image


def size_of(pixels: Raster) -> tuple[int, int]:
    """Return width and height."""
    return pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])


def channels_of(pixels: Raster) -> int:
    """Return the bytes of a pixel."""
    return len(pixels.mode) if isinstance(pixels, Image.Image) else pixels.shape[2]


def cut(pixels: Raster, box: tuple[int, int, int, int]) -> Raster:
    """Return the pixels of a box that lies inside: left, top, right, bottom."""
    left, top, right, bottom = box
    return pixels.crop(box) if isinstance(pixels, Image.Image) else pixels[top:bottom, left:right]


def bytes_of(pixels: Raster, first: int, last: int) -> bytes:
    """Return the bytes of the rows from `first` up to `last`."""
    if isinstance(pixels, Image.Image):
        whole = (first, last) == (0, pixels.height)
        return (pixels if whole else pixels.crop((0, first, pixels.width, last))).tobytes()
    return pixels[first:last].tobytes()


def image_of(pixels: Raster) -> Image.Image:
    """Return the pixels as Pillow's image; an array of four channels is not copied."""
    if isinstance(pixels, Image.Image):
        return pixels
    whole = np.ascontiguousarray(pixels)
    mode = "RGBX" if whole.shape[2] == 4 else "RGB"
    return Image.frombuffer(mode, (whole.shape[1], whole.shape[0]), whole, "raw", mode, 0, 1)
