"""Pictures from wherever a text says they are, as easydl.image reads them.

PixvecError
└── InputError
    ├── ImageArgumentError, which is a ValueError too    neither a text nor a picture, or no box
    └── ImageLoadError                                   no picture could be made of it
        ├── NetworkImageError       http://, https://
        ├── FileImageError          a path, file://, data:
        ├── Base64ImageError        base64://
        └── S3ImageError            s3://, which is not read here
"""

import base64
import os
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TypeAlias

import numpy as np

from pixvec._errors import InputError, PixvecError
from pixvec._inputs import to_input
from pixvec._orientation import upright
from pixvec._types import Array
from pixvec._urls import shown as shown_name

# A PIL.Image.Image: Pillow is loaded when it is used, and no earlier.
Picture: TypeAlias = Any

_BACK_OFF_S = 0.1
_SHOWN = 80


class ImageArgumentError(InputError, ValueError):
    """What was passed is neither a text nor a picture, or no box."""


class ImageLoadError(InputError):
    """No picture could be made of what the text leads to; the message names it."""


class NetworkImageError(ImageLoadError):
    """An http(s) URL could not be read, or what it holds is no picture."""


class FileImageError(ImageLoadError):
    """A file could not be read, or is no picture."""


class Base64ImageError(ImageLoadError):
    """What follows base64:// is not base64, or no picture."""


class S3ImageError(ImageLoadError):
    """S3 is not read here."""


_BY_SCHEME: Final[Mapping[str, type[ImageLoadError]]] = {
    "http": NetworkImageError,
    "https": NetworkImageError,
    "base64": Base64ImageError,
    "s3": S3ImageError,
}


def smart_read_image(
    image_str: str | os.PathLike[str] | Picture, auto_retry: int = 0, exif_transpose: bool = False
) -> Picture:
    """Return the picture that a text leads to, as an RGB picture of Pillow's, all of it in memory.

    image_str: a path; a file://, http://, https:// or data: URL; base64:// and the bytes of a file; or a
    picture. auto_retry: tries in all, 0.1 s, then 0.2 s, … apart, for what another try may mend: files and
    URLs. exif_transpose: turn it by its EXIF tag.

    Raises ImageArgumentError for another type, the ImageLoadError of the place for what cannot be read
    there, InputError where Pillow is missing.
    """
    _check_whole(auto_retry, "auto_retry")
    for attempt in range(1, auto_retry):
        try:
            return _read(image_str, turned=exif_transpose)
        except (FileImageError, NetworkImageError):
            time.sleep(_BACK_OFF_S * attempt)
    return _read(image_str, turned=exif_transpose)


def smart_read_image_v2(image_str: str | os.PathLike[str] | Picture, auto_retry: int = 0) -> Picture:
    """Return what `smart_read_image` does, turned by its EXIF tag."""
    return smart_read_image(image_str, auto_retry, exif_transpose=True)


def smart_read_and_crop_image_by_box(
    image_str: str | os.PathLike[str] | Picture,
    box: tuple[float, float, float, float],
    auto_retry: int = 0,
) -> Picture:
    """Return a part of what `smart_read_image` reads; black where the box leads out of the picture.

    box: left, upper, right, lower in pixels; one without an inside gives a picture of no width or no height.
    Raises ImageArgumentError for another box, and as `smart_read_image` does.
    """
    left, upper, right, lower = _edges(box)
    picture = smart_read_image(image_str, auto_retry)
    return picture.crop((left, upper, max(left, right), max(upper, lower)))


def squashed(image: Array | Picture, side: int) -> Array:
    """Return a picture, or an array (h, w, c) uint8, as RGB (side, side, 3), by Pillow's bilinear filter."""
    pillow = _pillow("PIL.Image")
    if isinstance(image, np.ndarray):
        picture = pillow.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    else:
        picture = image
    resized: Array = np.asarray(smart_read_image_v2(picture).resize((side, side), pillow.Resampling.BILINEAR))
    return resized


class Preparation:
    """Stands for a transform of easydl's, which the server does in its place: it refuses to be called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, image: object) -> NoReturn:
        """Raise NotImplementedError with what to call."""
        raise NotImplementedError(
            f"{self._name}: the server resizes and scales images itself; pass them as they are: "
            "model.embed_image(image), model([image, …])"
        )

    def __repr__(self) -> str:
        return self._name


COMMON_IMAGE_PREPROCESSING_FOR_TESTING = Preparation("COMMON_IMAGE_PREPROCESSING_FOR_TESTING")
COMMON_IMAGE_PREPROCESSING_FOR_TRAINING = Preparation("COMMON_IMAGE_PREPROCESSING_FOR_TRAINING")


def _read(source: str | os.PathLike[str] | Picture, *, turned: bool) -> Picture:
    pillow = _pillow("PIL.Image")
    if isinstance(source, pillow.Image):
        return _converted(source, turned, ImageLoadError, f"a picture of mode {source.mode}")
    if not isinstance(source, str | os.PathLike) or not isinstance(where := os.fspath(source), str):
        raise ImageArgumentError(
            f"image_str is a {type(source).__name__}: pass a path, a URL, base64://… or a picture of Pillow's"
        )
    kind = _BY_SCHEME.get(where.partition("://")[0].lower(), FileImageError)
    name = shown_name(where)
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
    try:
        with pillow.open(_content(where)) as opened:
            return _converted(opened, turned, kind, shown)
    except pillow.UnidentifiedImageError as error:
        raise kind(f"{shown}: not a picture of a format that Pillow reads") from error
    except PixvecError as error:
        raise kind(error.message.replace(where, shown).replace(name, shown)) from error
    except Exception as error:
        raise kind(f"{shown}: {getattr(error, 'strerror', None) or error}") from error


def _content(where: str) -> Path | IO[bytes]:
    scheme, mark, rest = where.partition("://")
    if mark and scheme.lower() == "base64":
        return BytesIO(base64.b64decode(rest))
    if mark and scheme.lower() == "s3":
        raise S3ImageError(
            f"{where}: S3 is not read here; pass a presigned https:// URL of the object, or what boto3 "
            "reads: Image.open(BytesIO(body))"
        )
    if mark or where.lower().startswith("data:"):
        return BytesIO(to_input(where).image)
    return Path(where)


def _converted(picture: Picture, turned: bool, kind: type[ImageLoadError], shown: str) -> Picture:
    try:
        return (upright(picture) if turned else picture).convert("RGB")
    except Exception as error:
        raise kind(f"{shown}: {error}") from error


def _edges(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    try:
        left, upper, right, lower = (round(float(edge)) for edge in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageArgumentError(f"box = {box!r}: give (left, upper, right, lower) in pixels") from error
    return left, upper, right, lower


def _check_whole(value: int, field: str) -> None:
    if not isinstance(value, int | np.integer) or value < 0:
        raise ImageArgumentError(f"{field} = {value!r}: give a whole number of 0 or more")


def _pillow(module: str) -> Any:  # noqa: ANN401 - a module
    from pixvec.dataset._scores import library  # noqa: PLC0415 - needs more than the client does

    return library(module)
