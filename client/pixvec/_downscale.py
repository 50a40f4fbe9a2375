"""Makes large images smaller before they are sent, for those who ask: the one place where the client decodes.

It costs fidelity, which docs/sdk.md states; without `max_side` an image is sent as it is.
"""

import math
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec.v1 import embedding_pb2 as pb

from ._complete import has_all_pixels
from ._errors import BadOptionError
from ._orientation import upright

if TYPE_CHECKING:
    from PIL.Image import Image

# A network that looks at N pixels gets at least twice as many to resize from.
_TIMES_THE_INPUT = 2
_QUALITY = 95
# Decoded, four bytes each at most; a camera's 108 megapixels are among them, a bomb is not.
_MOST_PIXELS = 1 << 27
# Those that servers take: Pillow hands others to programs of the system's, such as Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Modes whose numbers can be resized as they are; Pillow weighs colours by their alpha.
_MODES = {"L", "LA", "RGB", "RGBA"}
_LOSSY = {"JPEG", "MPO", "WEBP", "AVIF"}
_TIFF_BITS, _TIFF_SUBFILE, _TIFF_SAMPLE_FORMAT = 258, 254, 339
# Old subfile types, subdirectories and the DNG version: thumbnails in front of other pixels, or alone.
_TIFF_OF_OTHER_PIXELS = (255, 330, 50706)


def check_max_side(max_side: int | None) -> None:
    """Raise BadOptionError for a side that is none, or when Pillow, which does the work, is missing."""
    if max_side is None:
        return
    if not isinstance(max_side, int) or isinstance(max_side, bool) or max_side < 1:
        raise BadOptionError(f"max_side = {max_side!r}: give a whole number of pixels, or None")
    try:
        import PIL.Image  # noqa: F401, PLC0415 - only those who shrink images need it
    except ModuleNotFoundError as error:
        raise BadOptionError("max_side needs Pillow: pip install 'pixvec[cli]'") from error


def downscale(message: pb.Input, max_side: int, least: tuple[int, int]) -> pb.Input:
    """Return the input with its longer side at most `max_side` pixels, or itself when it is that small.

    Antialiased (Lanczos), turned upright, as JPEG of quality 95 without chroma subsampling where it
    was a lossy file, else without loss. No side gets below twice `least` = (height, width), the model's
    input. Animations, and modes other than 8-bit grey and RGB with or without alpha, are sent as they are.
    What cannot be decoded is sent as well: the server says what is wrong with it.
    """
    kind = message.WhichOneof("content")
    if kind == "image":
        smaller = _file(message.image, max_side, least)
        return message if smaller is None else _with(message, pb.Input(image=smaller))
    if kind == "pixels":
        tensor = _pixels(message.pixels, max_side, least)
        return message if tensor is None else _with(message, pb.Input(pixels=tensor))
    return message


def _with(message: pb.Input, content: pb.Input) -> pb.Input:
    if message.regions:
        raise BadOptionError("regions are pixels of the image as it is: use a client without max_side")
    content.prompt = message.prompt
    return content


def _file(data: bytes, max_side: int, least: tuple[int, int]) -> bytes | None:
    from PIL import Image  # noqa: PLC0415 - see check_max_side

    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            odd = not _is_plain(image) or math.prod(image.size) > _MOST_PIXELS
            if odd or getattr(image, "n_frames", 1) > 1 or not _fitted(image.size, max_side, least):
                return None
            lossy, profile = image.format in _LOSSY, image.info.get("icc_profile")
            image.load()
            if not has_all_pixels(data, image):
                return None
            turned = upright(image)
            size = _fitted(turned.size, max_side, least) or turned.size
            smaller = _encoded(_resized(turned, size), lossy=lossy, profile=profile)
    except Exception:  # noqa: BLE001 - a broken file makes Pillow raise anything
        return None
    # A file that was compressed harder than ours may be the shorter one.
    return smaller if len(smaller) < len(data) else None


def _is_plain(image: Any) -> bool:  # noqa: ANN401 - PIL is not imported here
    """Tell whether Pillow's pixels are the server's; of rare forms the server makes other ones."""
    if image.mode not in _MODES or "transparency" in image.info:
        return False
    if image.format == "BMP":  # an alpha that is 0 everywhere
        return bool(image.mode != "RGBA")
    if image.format == "TIFF":  # planes of 16 bits, signed samples, thumbnails
        tags = image.tag_v2
        if any(tag in tags for tag in _TIFF_OF_OTHER_PIXELS):
            return False
        formats = tags.get(_TIFF_SAMPLE_FORMAT, (1,))
        is_unsigned = set(formats if isinstance(formats, tuple) else (formats,)) == {1}
        return set(tags.get(_TIFF_BITS, (1,))) == {8} and is_unsigned and not tags.get(_TIFF_SUBFILE, 0)
    return True


def _encoded(image: "Image", *, lossy: bool, profile: bytes | None) -> bytes:
    out = BytesIO()
    extra: dict[str, Any] = {"icc_profile": profile} if profile else {}
    if lossy and image.mode in {"L", "RGB"}:
        image.save(out, "JPEG", quality=_QUALITY, subsampling=0, **extra)
    else:
        image.save(out, "PNG", compress_level=1, **extra)
    return out.getvalue()


def _pixels(tensor: pb.Tensor, max_side: int, least: tuple[int, int]) -> pb.Tensor | None:
    from PIL import Image  # noqa: PLC0415 - see check_max_side

    if not _is_picture(tensor):
        return None
    height, width, channels = tensor.shape
    size = _fitted((width, height), max_side, least)
    if size is None:
        return None
    array = np.frombuffer(tensor.data, np.uint8).reshape(height, width, channels)
    smaller = np.asarray(_resized(Image.fromarray(array[:, :, 0] if channels == 1 else array), size))
    shape = (size[1], size[0], channels)
    return pb.Tensor(encoding=pb.ENCODING_UINT8, shape=shape, data=smaller.tobytes())


def _is_picture(tensor: pb.Tensor) -> bool:
    shape = tuple(tensor.shape)
    known = tensor.encoding == pb.ENCODING_UINT8 and len(shape) == 3 and shape[2] in {1, 3, 4}
    return known and 0 < len(tensor.data) == math.prod(shape)


def _resized(image: "Image", size: tuple[int, int]) -> "Image":
    from PIL import Image  # noqa: PLC0415 - see check_max_side

    return image.resize(size, Image.Resampling.LANCZOS)


def _fitted(size: tuple[int, int], max_side: int, least: tuple[int, int]) -> tuple[int, int] | None:
    """Return the width and height to shrink to, None when the image stays."""
    width, height = size
    floor = max(_TIMES_THE_INPUT * least[0] / height, _TIMES_THE_INPUT * least[1] / width)
    scale = max(max_side / max(size), floor)
    if scale >= 1:
        return None
    return max(1, round(width * scale)), max(1, round(height * scale))
