"""The masks of Supervisely's bitmap objects."""

import base64
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pixvec._errors import InputError
from pixvec.dataset._pictures import Box

from ._shapes import pixel_box

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_PNG_BYTES = 16 << 20
_MOST_PIXELS = 64 << 20


def mask_box(bitmap: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[Box | None, float]:
    """Return the box round a mask's pixels and their number; box None where it has none in the image.

    bitmap: base64 `data` of a zlib-compressed PNG, whose first pixel is at `origin`, (x, y).
    Raises ValueError, KeyError or TypeError for what is no mask, or would unpack to a huge one;
    InputError where Pillow is not installed.
    """
    left, top = bitmap["origin"]
    mask = _mask(_unpacked(base64.b64decode(bitmap["data"], validate=True)))
    found = mask.getbbox()
    if found is None:
        return None, 0.0
    edges = found[0] + left, found[1] + top, found[2] + left, found[3] + top
    return pixel_box(edges, size), float(mask.width * mask.height - mask.histogram()[0])


def _unpacked(packed: bytes) -> bytes:
    unpack = zlib.decompressobj()
    try:
        png = unpack.decompress(packed, _MOST_PNG_BYTES)
    except zlib.error as error:
        raise ValueError(f"a bitmap that zlib cannot unpack: {error}") from error
    if unpack.unconsumed_tail:
        raise ValueError(f"a bitmap that unpacks to more than {_MOST_PNG_BYTES} bytes")
    return png


def _mask(png: bytes) -> "Image":
    try:
        from PIL import Image  # noqa: PLC0415 - only projects with bitmaps need it
    except ImportError as error:
        raise InputError("bitmap objects need Pillow: pip install 'pixvec[cli]'") from error
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    if width * height > _MOST_PIXELS:
        raise ValueError(f"a bitmap of {width}x{height} pixels; {_MOST_PIXELS} are the most")
    try:
        with Image.open(BytesIO(png), formats=["PNG"]) as image:
            if "A" in image.getbands() or "transparency" in image.info:
                return image.convert("RGBA").getchannel("A")
            return image.convert("L")
    except Exception as error:
        raise ValueError(f"a bitmap that is no PNG: {error}") from error
