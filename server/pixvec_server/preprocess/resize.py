"""The resize of a box: along the rows first, then down the columns, as a whole image's resize goes.

Each direction ends in whole grey levels. Two kernels do it, a grey level apart in less than 1 % of the
values: that of cykooz.resizer, several times faster and equal to torchvision's, and Pillow's, where the first
has no wheel. A vector's `build` names the one that was used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pixvec_server.preprocess.raster import bytes_of, channels_of, image_of, size_of

try:
    import cykooz_resizer as cykooz
except ImportError:
    cykooz = None

if TYPE_CHECKING:
    from pixvec_server.preprocess.raster import Raster
    from pixvec_server.types import U8

RESIZE_KERNEL = "pillow" if cykooz is None else "cykooz"
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# The same functions by another library's names; Keys' cubic with a = -0.5 is Catmull and Rom's.
_CYKOOZ = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
# Of a filter, in pixels of the larger grid.
_REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
# Rows are narrowed a strip at a time: what a processor's cache holds, and no second copy of a large picture.
_STRIP_BYTES = 1 << 19

Box = tuple[float, float, float, float]


def resize(pixels: Raster, box: Box, size: tuple[int, int], interpolation: str) -> U8:
    """Resize a part of an image to (width, height): (height, width, 3) uint8, C order.

    `box` is left, top, right, bottom in pixels, and may fall between them.
    """
    if size == size_of(pixels) and box == (0, 0, *size):
        return np.ascontiguousarray(np.asarray(pixels)[:, :, :3])
    if interpolation == "nearest":
        nearest = image_of(pixels).resize(size, Image.Resampling.NEAREST, box=box)
        return np.ascontiguousarray(np.asarray(nearest)[:, :, :3])
    _, top, _, bottom = box
    reach = _REACH[interpolation] * max(1.0, (bottom - top) / size[1]) + 1
    rows = max(0, math.floor(top - reach)), min(size_of(pixels)[1], math.ceil(bottom + reach))
    through = _by_pillow if cykooz is None else _by_cykooz
    return through(pixels, box, size, interpolation, rows)


def _by_pillow(
    pixels: Raster, box: Box, size: tuple[int, int], interpolation: str, rows: tuple[int, int]
) -> U8:
    """Left to itself, Pillow takes a box's cheaper direction first."""
    image, how, (left, top, right, bottom) = image_of(pixels), _FILTERS[interpolation], box
    (width, height), (first, last) = size, rows
    part = image if last - first == image.height else image.crop((0, first, image.width, last))
    narrow = part.resize((width, part.height), how, box=(left, 0, right, part.height))
    small = narrow.resize((width, height), how, box=(0, top - first, width, bottom - first))
    return np.ascontiguousarray(np.asarray(small)[:, :, :3])


def _by_cykooz(
    pixels: Raster, box: Box, size: tuple[int, int], interpolation: str, rows: tuple[int, int]
) -> U8:
    (left, top, right, bottom), (width, height), (first, last) = box, size, rows
    across, channels = size_of(pixels)[0], channels_of(pixels)
    how = cykooz.ResizeAlg.convolution(getattr(cykooz.FilterType, _CYKOOZ[interpolation]))
    kind = cykooz.PixelType.U8x4 if channels == 4 else cykooz.PixelType.U8x3
    resizer = cykooz.Resizer()

    def part(data: bytes | None, source: tuple[int, int], crop: Box, target: tuple[int, int]) -> bytes:
        crop_box = cykooz.CropBox(crop[0], crop[1], crop[2] - crop[0], crop[3] - crop[1])
        options = cykooz.ResizeOptions(resize_alg=how, crop_box=crop_box, use_alpha=False)
        made = cykooz.ImageData(*target, kind)
        resizer.resize(cykooz.ImageData(*source, kind, data), made, options)
        return bytes(made.get_buffer())

    step = max(1, _STRIP_BYTES // (across * channels))
    strips = []
    for start in range(first, last, step):
        count = min(step, last - start)
        data = bytes_of(pixels, start, start + count)
        strips.append(part(data, (across, count), (left, 0, right, count), (width, count)))
    crop = (0, top - first, width, bottom - first)
    small = part(b"".join(strips), (width, last - first), crop, (width, height))
    return np.ascontiguousarray(np.frombuffer(small, np.uint8).reshape(height, width, channels)[:, :, :3])
