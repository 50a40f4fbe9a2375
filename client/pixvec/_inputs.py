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

from ._errors import BadOptionError, InputError, PixvecError, TooLargeError
from ._fetch import fetch
from ._orientation import upright
from ._types import Array, Embedded, Embedding, Region, RegionLike, Text
from ._urls import shown

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
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANAR = 258, 262, 284
_TIFF_WHITES = (281, 341)  # MaxSampleValue and SMaxSampleValue
_MIN_IS_WHITE, _SEPARATE_PLANES, _WIDE_WHITE = 0, 2, 65_535
# How images begin in base64: JPEG, PNG, GIF, WebP, BMP, TIFF, and the boxes of AVIF, HEIC and JPEG XL.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0A", "AAAA")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-][A-Za-z0-9+/_\s-]*={0,2}\s*")
_MIN_BASE64 = 40
_FOREIGN_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Of Linux, in bytes.
_MAX_PATH = 4095


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
        image (turned upright by its EXIF or XMP); an Input, which is taken as it is; or an array or tensor:
        uint8, or floats within 0..1, of shape (h, w), (h, w, c) or (c, h, w) with c = 1 (gray), 3 (RGB) or
        4 (RGBA).
    regions: boxes as Region or (left, top, right, bottom) in pixels; none: the whole image.
    Raises InputError, whatever is raised while it is read (the cause is its `__cause__`), TooLargeError for
    a file over `max_bytes`, BadOptionError for regions and a prompt that are none. Only exceptions that are
    not of the class Exception, such as KeyboardInterrupt, pass.
    """
    try:
        message = _message(image, url_timeout_s, url_max_bytes, max_bytes)
    except PixvecError:
        raise
    except Exception as error:
        raise InputError(f"{_described(image)}: {cause_of(error)}") from error
    return with_options(message, regions, prompt)


def _message(image: ImageLike, url_timeout_s: float, url_max_bytes: int, max_bytes: int) -> pb.Input:
    if isinstance(image, pb.Input):
        return image
    if isinstance(image, Text):
        return text_input(image.text, image.prompt)
    if isinstance(image, str | os.PathLike) and (url := _url(image)):
        return pb.Input(image=_read_url(url, url_timeout_s, url_max_bytes))
    if isinstance(image, str | os.PathLike):
        return pb.Input(image=_read_file(os.fsdecode(image), max_bytes))
    if isinstance(image, bytes | bytearray | memoryview):
        return pb.Input(image=bytes(image))
    return _from_object(image)


def text_input(text: str, prompt: str = "") -> pb.Input:
    """Return the Input message for a text; raises InputError for what is not a str of valid Unicode."""
    _check_text("text", text, InputError)
    _check_text("prompt", prompt, InputError)
    return pb.Input(text=text, prompt=prompt)


def with_options(message: pb.Input, regions: Iterable[RegionLike | pb.Region], prompt: str) -> pb.Input:
    """Return the message with these regions and prompt in place of its own, or itself when there are none.

    Raises BadOptionError for a region or a prompt that is none.
    """
    own_regions = region_messages(regions)
    if not own_regions and not prompt:
        return message
    _check_text("prompt", prompt or "", BadOptionError)
    changed = pb.Input(regions=own_regions or message.regions, prompt=prompt or message.prompt)
    kind = message.WhichOneof("content")
    if kind == "pixels":
        changed.pixels.CopyFrom(message.pixels)
    elif kind is not None:
        setattr(changed, kind, getattr(message, kind))
    return changed


def region_messages(regions: Iterable[RegionLike | pb.Region]) -> list[pb.Region]:
    """Return the messages for regions; raises BadOptionError that names the one that is none."""
    try:
        given = list(regions)
    except Exception as error:
        raise BadOptionError(
            f"regions is a list of regions for each image, not {_described(regions)}"
        ) from error
    return [_region(region) for region in given]


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


def cause_of(error: Exception) -> str:
    """Return what an exception says, after the name of its type unless that adds nothing."""
    said = _message_of(error)
    if said and (isinstance(error, OSError) or type(error) is ValueError):
        return said
    return raised(error)


def raised(error: Exception) -> str:
    """Return the name of an exception's type, and what it says if it says anything."""
    said = _message_of(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _message_of(error: Exception) -> str:
    try:
        return shown(str(error))
    except Exception:  # noqa: BLE001 - the caller's own code
        return ""


def _check_text(name: str, text: object, kind: type[PixvecError]) -> None:
    if not isinstance(text, str):
        raise kind(f"{name} must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise kind(
            f"{name} is not valid Unicode: a lone surrogate {text[error.start]!a} at position {error.start}; "
            "remove it, or read the text with errors='replace'"
        ) from error


def _region(region: RegionLike | pb.Region) -> pb.Region:
    if isinstance(region, pb.Region):
        return region
    try:
        if not isinstance(region, Region):
            left, top, right, bottom = region
            region = Region(left, top, right, bottom)
        return pb.Region(
            left=region.left, top=region.top, right=region.right, bottom=region.bottom, whole=region.whole
        )
    except Exception as error:
        raise BadOptionError(
            "a region is a Region, or whole numbers (left, top, right, bottom) in pixels, not "
            f"{_described(region)}"
        ) from error


def _described(given: object) -> str:
    """Return a short repr, or the name of the type where there is none: whatever was given may raise here."""
    if isinstance(given, str):
        return shown(given)
    try:
        return shown(repr(given))
    except Exception:  # noqa: BLE001 - the caller's own code
        return f"a {type(given).__name__}"


def _url(image: str | os.PathLike[str]) -> str | None:
    if not isinstance(image, str):
        return None
    stripped = image.strip() if image[:1].isspace() else image
    return stripped.rstrip() if _SCHEME.match(stripped) else None


def _read_url(url: str, timeout_s: float, max_bytes: int) -> bytes:
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _data_url(url)
    if scheme == "file":
        rest = url.partition(":")[2]
        if not rest.startswith("/"):
            raise InputError(
                f"{shown(url)}: a file URL is written file:///path; for a file of that name write "
                f"./{shown(url)}, or pass a pathlib.Path"
            )
        host, slash, path = rest.removeprefix("//").partition("/")
        if host not in {"", "localhost"}:
            raise InputError(f"{shown(url)}: a file URL names no other host; write file:///path")
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
        # As browsers do: white space between the letters, and no padding at the end.
        letters = b"".join(data.split()).rstrip(b"=")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise InputError(f"{shown(head)}: {error}") from error


def _read_file(name: str, max_bytes: int) -> bytes:
    if not name:
        raise InputError("the path is empty")
    try:
        with Path(name).open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = _not_a_path(name) or getattr(error, "strerror", None) or error
        raise InputError(f"{shown(name)}: {reason}") from error
    if len(data) > max_bytes:
        raise TooLargeError(
            f"{shown(name)} holds more than {max_bytes} bytes, the client's max_message_bytes"
        )
    return data


def _shown_path(name: str | bytes) -> str:
    return shown(os.fsdecode(name))


def _not_a_path(text: str) -> str | None:
    """Tell what a str is that names no file, where it is plainly something else than a path."""
    if foreign := _FOREIGN_SCHEME.match(text):
        return (
            f"a URL begins with http:, https:, file: or data:, and {foreign[1]}:// is not read here; open it "
            "with its own library and pass the file object or the bytes"
        )
    if text.startswith(("b'", 'b"')):
        return "a str is a path or a URL, and this looks like the repr of bytes: pass the bytes themselves"
    if _is_base64_of_image(text):
        return (
            f"a str is a path or a URL, and this one of {len(text)} characters looks like base64: pass "
            "base64.b64decode(text), or 'data:;base64,' before it"
        )
    if len(text) > _MAX_PATH:
        return (
            f"a str is a path or a URL, and this one of {len(text)} characters is neither: pass the encoded "
            "image as bytes, a sentence as pixvec.Text"
        )
    return None


def _is_base64_of_image(text: str) -> bool:
    start = "".join(text[:64].split()).replace("-", "+").replace("_", "/")
    return len(text) >= _MIN_BASE64 and start.startswith(_BASE64_STARTS) and bool(_BASE64.fullmatch(text))


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
    data = read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"{_described(image)} gave {type(data).__name__}, not bytes: open it in binary mode")
    return bytes(data)


def _array(image: Any) -> Array:  # noqa: ANN401 - whatever has __array__
    if isinstance(image, np.ma.MaskedArray) and np.ma.is_masked(image):
        raise InputError("a masked array has no value under its mask: fill it first, as in array.filled(0)")
    try:
        return np.asarray(image)
    except Exception as error:
        raise InputError(f"a {type(image).__name__} that numpy cannot read: {cause_of(error)}") from error


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
    form = _misread_form(getattr(image, "tag_v2", {}))
    if form:
        raise InputError(f"a PIL image of a TIFF {form}, which Pillow reads wrongly: pass the path or bytes")
    try:
        turned = upright(image)
        if turned.mode in _PIL_CONVERSIONS:
            turned = turned.convert(_PIL_CONVERSIONS[turned.mode])
        raw_bytes = turned.width * turned.height * len(turned.getbands())
        opaque = turned.mode in {"RGB", "L"} and "transparency" not in turned.info
        if opaque and raw_bytes <= _MOST_RAW_BYTES:
            return pb.Input(pixels=pixels_tensor(np.asarray(turned)))
        # Alpha, palettes and 16 bits follow the server's rules: it reads the picture, not our idea of it.
        file = BytesIO()
        turned.save(file, "PNG", compress_level=1)
    except Exception as error:
        mode = getattr(image, "mode", "?")
        raise InputError(f"a PIL image of mode {mode} that cannot be sent: {cause_of(error)}") from error
    return pb.Input(image=file.getvalue())


def _misread_form(tags: Any) -> str:  # noqa: ANN401 - Pillow's directory of a TIFF
    """Return what makes Pillow's samples other than the file's, which the server reads; "" for nothing."""
    if max(_values(tags, _TIFF_BITS, 1)) <= 8:
        return ""
    if _values(tags, _TIFF_PHOTOMETRIC, 1) == (_MIN_IS_WHITE,):
        return "whose 0 is white, of more than 8 bits"
    if _values(tags, _TIFF_PLANAR, 1) == (_SEPARATE_PLANES,) and len(_values(tags, _TIFF_BITS, 1)) > 1:
        return "in planes of more than 8 bits"
    if any(white != _WIDE_WHITE for tag in _TIFF_WHITES for white in _values(tags, tag, _WIDE_WHITE)):
        return "whose white is below 65,535"
    return ""


def _values(tags: Any, tag: int, default: int) -> tuple[int, ...]:  # noqa: ANN401 - as above
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) and value else (value,)


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
