"""Turns images of Pillow's upright, by the rule that the server follows (docs/images.md, "Orientation")."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
# By the tag's value, the members of PIL.Image.Transpose that undo it.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_SIDEWAYS = {5, 6, 7, 8}
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def upright(image: "Image") -> "Image":
    """Return an image turned by its EXIF tag or, without one, by its XMP; broken metadata does not count.

    Raises what Pillow raises for pixels that cannot be decoded.
    """
    from PIL.Image import Transpose  # noqa: PLC0415 - the caller has loaded Pillow already

    image.load()  # first, for Pillow turns a TIFF while it loads it
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(Transpose[turn])
    for key in _METADATA:  # lest it be turned again
        turned.info.pop(key, None)
    return turned


def upright_size(image: "Image") -> tuple[int, int]:
    """Return an image's width and height once it is upright, without decoding it."""
    tags = getattr(image, "tag_v2", {})
    # Pillow swaps a TIFF's sides by its tag before it has turned the pixels.
    is_swapped = _ORIENTATION in tags or _orientation(image) not in _SIDEWAYS
    return image.size if is_swapped else (image.height, image.width)


def _orientation(image: "Image") -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a broken EXIF block makes Pillow raise anything
        return 1
