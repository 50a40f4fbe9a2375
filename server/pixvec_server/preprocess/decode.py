"""From bytes, or raw pixels, to one upright RGB image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

import numpy as np
import simplejpeg
from PIL import Image

from pixvec_server.errors import RequestError, TooLargeError, UndecodableError
from pixvec_server.preprocess import jpeg
from pixvec_server.preprocess.color import converter
from pixvec_server.preprocess.containers import Opened, open_checked
from pixvec_server.preprocess.formats import sniff
from pixvec_server.preprocess.orientation import is_sideways, turn_of
from pixvec_server.preprocess.pixels import ALPHA_MODES, WIDE_MODES, to_rgb
from pixvec_server.preprocess.raster import image_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from pixvec_server.preprocess.budget import PixelBudget
    from pixvec_server.preprocess.limits import ImageLimits
    from pixvec_server.preprocess.raster import Raster
    from pixvec_server.types import U8, Pixels

# What a pixel costs beside one of plain RGB, which takes 4 bytes.
_COSTLY_MODES, _COSTLY, _MEAN = (*ALPHA_MODES, *WIDE_MODES), 2, 4
_REDUCTIONS = (8, 4, 2)
_FAST_OVERSAMPLING = 2
# libjpeg's warnings of a cut scan and of restart intervals that are not there.
_MISSING = ("premature end", "instead of rst")


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """The named choices: `mode` of JPEG, `background` under transparency, `frames` of an animation.

    `color` says what happens to an embedded color profile.
    """

    mode: Literal["exact", "fast"] = "exact"
    background: tuple[int, int, int] = (255, 255, 255)
    frames: Literal["first", "mean"] = "first"
    color: Literal["ignore", "srgb"] = "ignore"


class JpegCodec(Protocol):
    """What turns a JPEG that is not CMYK into pixels, after its header was checked."""

    def __call__(self, data: bytes, height: int, width: int) -> U8:
        """Return (height, width, 4) RGBX, in full or at a libjpeg scale. ValueError: it refuses."""
        ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright image and its full size; `pixels` is smaller after a fast decode."""

    pixels: Raster
    width: int
    height: int
    format: str
    frames: int = 1


class Decoder:
    """Decodes on the caller's thread; the codecs free the GIL.

    Room for a picture's pixels is taken from `budget` between the header check and the decoding, and stays
    taken until the caller closes `held`: as long as it works on the picture.
    """

    def __init__(
        self, limits: ImageLimits, options: DecodeOptions, budget: PixelBudget, codec: JpegCodec | None = None
    ) -> None:
        self._limits = limits
        self._options = options
        self._budget = budget
        self._codec = codec or turbo

    @property
    def reduces(self) -> bool:
        """Whether large JPEGs are decoded smaller, by all that is to be made of them."""
        return self._options.mode != "exact"

    def decode(
        self,
        data: bytes,
        held: ExitStack,
        short_side: int | None = None,
        frames: Literal["first", "mean"] | None = None,
    ) -> Decoded:
        """Decode an image file.

        `short_side` is the length that the shorter side will be resized to; None forbids a reduced decode.
        `frames` is what is taken of an animation; None: what the options say.
        Raises UndecodableError, UnsupportedFormatError or TooLargeError.
        """
        self._limits.check_bytes(len(data), "image")
        kind = sniff(data, self._limits.formats)
        try:
            if kind == "jpeg":
                return self._jpeg(data, held, short_side)
            return self._other(data, kind, held, frames or self._options.frames)
        except (RequestError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 - decoders raise anything on hostile bytes
            _refuse(kind, exc)

    def from_pixels(self, pixels: Pixels, held: ExitStack) -> Decoded:
        """Take decoded pixels. Raises UndecodableError when bytes and shape disagree, or TooLargeError."""
        self._limits.check_bytes(len(pixels.data), "pixels.data")
        if len(pixels.shape) != 3 or pixels.shape[2] not in (1, 3, 4):
            raise UndecodableError(
                f"shape {list(pixels.shape)} is not [height, width, channels] with 1, 3 or 4 channels",
                field="pixels.shape",
            )
        height, width, channels = pixels.shape
        self._limits.check_size(width, height, "pixels.shape")
        if len(pixels.data) != height * width * channels:
            raise UndecodableError(
                f"{len(pixels.data)} bytes do not fill shape {list(pixels.shape)}, which takes "
                f"{height * width * channels}",
                field="pixels.data",
            )
        array = np.frombuffer(pixels.data, np.uint8).reshape(pixels.shape)
        held.enter_context(self._budget.hold(width * height * (_COSTLY if channels == 4 else 1)))
        if channels == 3:
            return Decoded(array, width, height, "pixels")
        image = Image.fromarray(array[:, :, 0] if channels == 1 else array)
        return Decoded(self._to_rgb(image, converter(None)), width, height, "pixels")

    def _jpeg(self, data: bytes, held: ExitStack, short_side: int | None) -> Decoded:
        header = jpeg.read_header(data)
        width, height = header.width, header.height
        self._limits.check_size(width, height, "image")
        if not jpeg.has_all_scans(data, header):
            raise _truncated_jpeg()
        if not header.is_ended:
            # Other decoders add the missing end marker as well; if the last scan is cut, libjpeg-turbo warns.
            data += jpeg.END_OF_IMAGE
        if header.is_cmyk:
            held.enter_context(self._budget.hold(width * height))
            data = jpeg.without_unused(data, header)
            _check_scans(lambda: simplejpeg.decode_jpeg(data, "CMYK"))
            return self._by_pillow(open_checked(data, "jpeg", self._limits))
        factor = self._reduction(min(width, height), short_side)
        held.enter_context(self._budget.hold(width * height // factor**2))
        # A device tells neither rare forms apart nor whether the last scan is whole.
        codec = self._codec if header.is_common and header.is_ended else turbo
        size = -(-height // factor), -(-width // factor)
        array = _check_scans(lambda: codec(data, *size))
        if array is None:
            # libjpeg-turbo tells its first warning alone, which may be of unused bytes.
            if not jpeg.has_all_restarts(data, header):
                raise _truncated_jpeg()
            data = jpeg.without_unused(data, header)
            header = jpeg.read_header(data)
            array = _check_scans(lambda: turbo(data, *size))
        if array is None:
            return self._by_pillow(open_checked(data, "jpeg", self._limits), factor)
        turn, convert = self._jpeg_metadata(data, header)
        if turn is None and convert is None:
            return Decoded(array, width, height, "jpeg")
        image = image_of(array)
        if convert is not None:
            is_gray = len(header.components) == 1
            image = convert(image.getchannel(0)).convert("RGB") if is_gray else convert(image)
        upright = image if turn is None else image.transpose(turn)
        return Decoded(upright, *((height, width) if is_sideways(turn) else (width, height)), "jpeg")

    def _jpeg_metadata(
        self, data: bytes, header: jpeg.JpegHeader
    ) -> tuple[Image.Transpose | None, Callable[[Image.Image], Image.Image] | None]:
        has_profile = header.has_profile and self._options.color == "srgb"
        if not (header.has_metadata or has_profile):
            return None, None
        try:
            with Image.open(io.BytesIO(jpeg.without_unused(data, header)), formats=("JPEG",)) as image:
                convert = self._converter(image) if has_profile else None
                return turn_of(image), convert
        except Exception:  # noqa: BLE001 - broken metadata must not fail a good image
            return None, None

    def _converter(self, image: Image.Image) -> Callable[[Image.Image], Image.Image]:
        return converter(image.info.get("icc_profile") if self._options.color == "srgb" else None)

    def _reduction(self, side: int, short_side: int | None) -> int:
        if self._options.mode == "exact" or short_side is None:
            return 1
        enough = short_side * _FAST_OVERSAMPLING
        return next((factor for factor in _REDUCTIONS if side // factor >= enough), 1)

    def _other(self, data: bytes, kind: str, held: ExitStack, wanted: str) -> Decoded:
        opened = open_checked(data, kind, self._limits)
        image = opened.image
        is_costly = opened.is_costly or image.mode in _COSTLY_MODES or "transparency" in image.info
        is_mean = opened.is_animated and wanted == "mean"
        held.enter_context(
            self._budget.hold(
                image.width * image.height * (_MEAN if is_mean else _COSTLY if is_costly else 1)
            )
        )
        return self._by_pillow(opened, is_mean=is_mean)

    def _by_pillow(self, opened: Opened, factor: int = 1, *, is_mean: bool = False) -> Decoded:
        """Decode what was opened, a JPEG at 1/`factor` of its size."""
        with opened.image as image:
            width, height = image.size
            if factor > 1:
                image.draft("RGB", (width // factor, height // factor))
            opened.load()
            # After the load, for Pillow turns a TIFF by itself and then forgets the tag.
            turn = turn_of(image)
            width, height = (width, height) if factor > 1 else image.size
            rgb = self._mean(opened) if is_mean else self._to_rgb(opened.finished(), self._converter(image))
            upright = rgb if turn is None else rgb.transpose(turn)
            size = (height, width) if is_sideways(turn) else (width, height)
            return Decoded(upright, *size, opened.kind, len(opened.frames))

    def _mean(self, opened: Opened) -> Image.Image:
        frames = (
            self._to_rgb(each.finished(), self._converter(each.image)).convert("RGB")
            for each in opened.each_frame(self._limits)
        )
        first = next(frames)
        total = np.asarray(first, np.uint16).copy()
        for frame in frames:
            total += np.asarray(frame.resize(first.size))
        count = len(opened.frames)
        return Image.fromarray(((total + count // 2) // count).astype(np.uint8))

    def _to_rgb(self, image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
        return to_rgb(image, self._options.background, convert)


def turbo(data: bytes, height: int, width: int) -> U8:
    """Decode in full, or to the libjpeg scale whose size is exactly (height, width): (height, width, 4)."""
    array: U8 = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width, min_factor=1)
    return array


def _check_scans(decode: Callable[[], U8]) -> U8 | None:
    """Return what libjpeg-turbo decodes, None where it warns of what Pillow tolerates.

    Raises UndecodableError when pixels are missing.
    """
    try:
        return decode()
    except ValueError as exc:
        if any(words in str(exc).lower() for words in _MISSING):
            raise _truncated_jpeg() from exc
        return None


def _truncated_jpeg() -> UndecodableError:
    return UndecodableError(
        "the jpeg is truncated: image data are missing; send the whole file", field="image"
    )


def _refuse(kind: str, exc: Exception) -> NoReturn:
    """Say what is wrong in words that hold no address, path or other inside of ours."""
    if isinstance(exc, Image.DecompressionBombError | Image.DecompressionBombWarning):
        raise TooLargeError(f"the {kind}'s header asks for too many pixels", field="image") from exc
    words = str(exc).lower()
    if "truncated" in words or "premature end" in words or isinstance(exc, EOFError):
        raise UndecodableError(f"the {kind} is truncated: send the whole file", field="image") from exc
    raise UndecodableError(f"the {kind} is damaged: its decoder refused it", field="image") from exc
