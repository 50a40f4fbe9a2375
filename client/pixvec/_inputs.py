"""Turns what a program calls an image into the contract's Input: the only module that reads files."""

import base64
import binascii
import os
import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

import numpy as np

from pixvec.v1 import embedding_pb2 as pb

from ._errors import BadOptionError, InputError, TooLargeError
from ._fetch import fetch
from ._types import Array, Embedded, Embedding, Region, RegionLike, Text

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

URL_TIMEOUT_S = 10.0
URL_MAX_BYTES = 64 << 20
MAX_BYTES = 64 << 20

_CHANNELS = (1, 3, 4)
_SCHEME = re.compile(r"(?i)(https?|file|data):")
# A larger PIL image is sent as a PNG: a camera's 12 megapixels are over a server's usual limit when raw.
_MOST_RAW_BYTES = 16 << 20
# Modes that neither an array of pixels nor a PNG can hold.
_PIL_CONVERSIONS = {
    "CMYK": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
    "La": "LA",
    "PA": "RGBA",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "YCbCr": "RGB",
}
# What Pillow raises for a broken file that it opened lazily.
_PIL_ERRORS = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError)


class SupportsArray(Protocol):
    """Anything that numpy can read as an array, such as a torch tensor on the CPU."""

    def __array__(self) -> Array: ...


ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Array | SupportsArray"
    " | PILImage | pb.Input | Text"
)

OperandsLike: TypeAlias = (
    "ImageLike | Embedding | Embedded | Iterable[ImageLike | Embedding] | Iterable[Embedded]"
)


def to_input(
    image: ImageLike,
    *,
    regions: Sequence[RegionLike] = (),
    prompt: str = "",
    url_timeout_s: float = URL_TIMEOUT_S,
    url_max_bytes: int = URL_MAX_BYTES,
    max_bytes: int = MAX_BYTES,
) -> pb.Input:
    """Return the Input message for an image or a Text.

    image: a path or a file://, http://, https:// or data: URL; encoded bytes; a binary file object; a PIL
        image (turned by its EXIF tag); an Input, which is taken as it is; or an array or tensor: uint8, or
        floats within 0..1, of shape (h, w), (h, w, c) or (c, h, w) with c = 1 (grey), 3 (RGB) or 4 (RGBA).
    regions: boxes as Region or (left, top, right, bottom) in pixels; none: the whole image.
    Raises InputError when it cannot be read, TooLargeError for a file over `max_bytes`.
    """
    if isinstance(image, pb.Input):
        message = image
    elif isinstance(image, Text):
        message = text_input(image.text, image.prompt)
    elif isinstance(image, str | os.PathLike) and (url := _url(image)):
        message = pb.Input(image=_read_url(url, url_timeout_s, url_max_bytes))
    elif isinstance(image, str | os.PathLike):
        message = pb.Input(image=_read_file(os.fspath(image), max_bytes))
    elif isinstance(image, bytes | bytearray | memoryview):
        message = pb.Input(image=bytes(image))
    else:
        message = _from_object(image)
    return with_options(message, regions, prompt)


def text_input(text: str, prompt: str = "") -> pb.Input:
    """Return the Input message for a text."""
    if not isinstance(text, str):
        raise InputError(f"text must be a str, not {type(text).__name__}")
    return pb.Input(text=text, prompt=prompt)


def with_options(message: pb.Input, regions: Sequence[RegionLike], prompt: str) -> pb.Input:
    """Return the message with these regions and prompt in place of its own, or itself when there are none."""
    if len(regions) == 0 and not prompt:
        return message
    own_regions = [_region(region) for region in regions] or message.regions
    changed = pb.Input(regions=own_regions, prompt=prompt or message.prompt)
    kind = message.WhichOneof("content")
    if kind == "pixels":
        changed.pixels.CopyFrom(message.pixels)
    elif kind is not None:
        setattr(changed, kind, getattr(message, kind))
    return changed


def as_many(images: Any) -> Any:  # noqa: ANN401 - any iterable, sync or async
    """Return `images` when it is a collection; raise InputError for what is plainly one image."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, pb.Input, Text)
    one = isinstance(images, kinds) or _is_pil(images)
    if one or hasattr(images, "read"):
        raise InputError("expected many images and got one: use embed(image), or put it in a list")
    if hasattr(images, "__array__") and (ndim := np.ndim(images)) not in {1, 4}:  # 1: of paths
        raise InputError(
            f"expected many images and got one array of {ndim} axes: use embed(array), or stack a batch "
            "of 4 axes"
        )
    return images


def needs_reading(image: object) -> bool:
    """Tell whether turning this into an Input may wait for a disk or a network, or compute."""
    return not isinstance(image, pb.Input | bytes | Text)


def pixels_tensor(array: Array) -> pb.Tensor:
    """Return the UINT8 tensor (h, w, c) for an image array; see `to_input` for what is taken."""
    pixels = _bytes_of_pixels(_channels_last(array))
    return pb.Tensor(encoding=pb.ENCODING_UINT8, shape=pixels.shape, data=pixels.tobytes())


def _region(region: RegionLike) -> pb.Region:
    try:
        if not isinstance(region, Region):
            left, top, right, bottom = region
            region = Region(left, top, right, bottom)
        return pb.Region(
            left=region.left, top=region.top, right=region.right, bottom=region.bottom, whole=region.whole
        )
    except (TypeError, ValueError) as error:
        raise BadOptionError(
            f"a region is a Region, or whole numbers (left, top, right, bottom) in pixels, not {region!r}"
        ) from error


def _url(image: str | os.PathLike[str]) -> str | None:
    return image if isinstance(image, str) and _SCHEME.match(image) else None


def _read_url(url: str, timeout_s: float, max_bytes: int) -> bytes:
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _data_url(url)
    if scheme == "file":
        host, slash, path = url.partition(":")[2].removeprefix("//").partition("/")
        if host not in {"", "localhost"}:
            raise InputError(f"{url}: a file URL names no other host; write file:///path")
        return _read_file(url2pathname(slash + path), max_bytes)
    return fetch(url, timeout_s=timeout_s, max_bytes=max_bytes)


def _data_url(url: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not comma:
        raise InputError(f"{url[:40]}: a data URL needs a comma before its data")
    data = unquote_to_bytes(payload)
    if not head.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise InputError(f"{head}: {error}") from error


def _read_file(name: str, max_bytes: int) -> bytes:
    if not name:
        raise InputError("the path is empty")
    if "://" in name and not Path(name).exists():
        raise InputError(f"{name}: a URL begins with http:, https:, file: or data:")
    try:
        with Path(name).open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: {reason}") from error
    if len(data) > max_bytes:
        raise TooLargeError(f"{name} holds more than {max_bytes} bytes, the client's max_message_bytes")
    return data


def _from_object(image: object) -> pb.Input:
    if _is_pil(image):
        return _from_pil(image)
    if callable(read := getattr(image, "read", None)):
        return pb.Input(image=_read_object(image, read))
    if hasattr(image, "__array__"):
        return pb.Input(pixels=pixels_tensor(_array(image)))
    raise InputError(
        f"an image cannot be a {type(image).__name__}: pass a path, a URL, bytes, a binary file object, "
        "an array or a PIL image"
    )


def _read_object(image: object, read: Any) -> bytes:  # noqa: ANN401 - whatever the object calls read
    try:
        data = read()
    except (OSError, ValueError) as error:
        raise InputError(f"{image!r}: {error}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"{image!r} gave {type(data).__name__}, not bytes: open it in binary mode")
    return bytes(data)


def _array(image: Any) -> Array:  # noqa: ANN401 - whatever has __array__
    try:
        return np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"a {type(image).__name__} that numpy cannot read: {error}") from error


def _channels_last(array: Array) -> Array:
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    elif array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 4:
        raise InputError(f"an array of shape {array.shape} is a batch: pass it to embed_batch")
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or 0 in array.shape:
        raise InputError(
            f"an image array is (h, w), (h, w, c) or (c, h, w) with c = 1, 3 or 4, not {array.shape}"
        )
    return array


def _bytes_of_pixels(array: Array) -> Array:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InputError(
            f"an image array is uint8, or floats within 0..1, not {array.dtype} of shape {array.shape}: "
            "scale it to 0..255 and use .astype(np.uint8)"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(
            f"a float image lies within 0..1; this {array.dtype} of shape {array.shape} lies within "
            f"{low:g}..{high:g}: undo its normalisation, or divide by 255"
        )
    return np.rint(array * 255.0).astype(np.uint8)


def _is_pil(image: object) -> bool:
    # By name: importing Pillow to ask would cost every program that does not use it.
    return any(base.__module__.partition(".")[0] == "PIL" for base in type(image).__mro__)


def _from_pil(image: Any) -> pb.Input:  # noqa: ANN401 - PIL is not imported here
    from PIL import ImageOps  # noqa: PLC0415 - the caller has loaded Pillow already

    try:
        turned = ImageOps.exif_transpose(image)
        if turned.mode in _PIL_CONVERSIONS:
            turned = turned.convert(_PIL_CONVERSIONS[turned.mode])
        raw_bytes = turned.width * turned.height * len(turned.getbands())
        opaque = turned.mode in {"RGB", "L"} and "transparency" not in turned.info
        if opaque and raw_bytes <= _MOST_RAW_BYTES:
            return pb.Input(pixels=pixels_tensor(np.asarray(turned)))
        # Alpha, palettes and 16 bits follow the server's rules: it reads the picture, not our idea of it.
        file = BytesIO()
        turned.save(file, "PNG", compress_level=1)
    except _PIL_ERRORS as error:
        raise InputError(f"a PIL image of mode {image.mode} that cannot be sent: {error}") from error
    return pb.Input(image=file.getvalue())


def is_vector(operand: object) -> TypeGuard[Array]:
    """Tell whether a similarity operand is one vector: an array of one axis."""
    return isinstance(operand, np.ndarray) and operand.ndim == 1


def operands_of(given: Any) -> Iterable[Any]:  # noqa: ANN401 - one image, one vector, or many
    """Return the single operands: rows of a 2-axis float array, items of a collection, or the one given."""
    if isinstance(given, np.ndarray):
        many = given.ndim == 4 or (given.ndim == 2 and given.dtype.kind == "f")
        return list(given) if many else [given]
    if isinstance(given, list | tuple) or (isinstance(given, Iterable) and not _is_one(given)):
        return list(given)
    return [given]


def _is_one(given: object) -> bool:
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Embedded | Text):
        return True
    return hasattr(given, "read") or hasattr(given, "__array__") or _is_pil(given)
