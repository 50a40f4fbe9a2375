"""Which way up an image is: one rule for every format, that of Pillow's `ImageOps.exif_transpose`.

The EXIF orientation tag decides where there is one, whatever its value. Without it, XMP's `tiff:Orientation`
does. Values other than 2 to 8 leave the image as it is, as does metadata that cannot be read. An AVIF is
turned by its `irot` and `imir` properties, which Pillow hands on as the EXIF tag.
"""

from __future__ import annotations

from PIL import Image

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[value] for value in (5, 6, 7, 8)}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an opened image upright, None when it is."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return _TURNS.get(int(value))
    except Exception:  # noqa: BLE001 - a broken EXIF block must not fail a good image
        return None


def is_sideways(turn: Image.Transpose | None) -> bool:
    """Tell whether a turn swaps width and height."""
    return turn in _SIDEWAYS
