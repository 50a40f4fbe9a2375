"""From bytes, or raw pixels, to one upright RGB image."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

import numpy as np
import simplejpeg
from PIL import Image

from pixvec_server.errors import RequestError, TooLargeError, UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess.formats import sniff
from pixvec_server.preprocess.raster import image_of
from pixvec_server.preprocess.walk import check_png, gif_layout, jpeg_has_exif

if TYPE_CHECKING:
    from contextlib import ExitStack

    from pixvec_server.preprocess.budget import PixelBudget
    from pixvec_server.preprocess.limits import ImageLimits
    from pixvec_server.preprocess.raster import Raster
    from pixvec_server.types import U8, Pixels

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
_TILE_WIDTH, _TILE_LENGTH, _BMP_RLE = 322, 323, (1, 2)
# Run lengths are decoded in Python, with the GIL held.
_MAX_RLE_PIXELS = 1_000_000
# What a pixel costs beside one of plain RGB, which takes 4 bytes.
_COSTLY_MODES, _COSTLY, _MEAN = ("RGBA", "LA", "PA", "La", "RGBa", "I;16", "I;16B", "I;16L"), 2, 4
_REDUCTIONS = (8, 4, 2)
_FAST_OVERSAMPLING = 2
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """The named choices: `mode` of JPEG, `background` under transparency, `frames` of an animation."""

    mode: Literal["exact", "fast"] = "exact"
    background: tuple[int, int, int] = (255, 255, 255)
    frames: Literal["first", "mean"] = "first"


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
        return Decoded(self._to_rgb(image), width, height, "pixels")

    def _jpeg(self, data: bytes, held: ExitStack, short_side: int | None) -> Decoded:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        self._limits.check_size(width, height, "image")
        has_exif = jpeg_has_exif(data)
        if colours in ("CMYK", "YCCK"):
            return self._other(data, "jpeg", held)
        factor = self._reduction(min(width, height), short_side)
        held.enter_context(self._budget.hold(width * height // factor**2))
        try:
            array = self._codec(data, -(-height // factor), -(-width // factor))
        except ValueError:
            # libjpeg-turbo stops at any warning; Pillow tells harmless ones from a truncated file.
            return self._other(data, "jpeg", None)
        turn = _exif_turn(data) if has_exif else None
        if turn is None:
            return Decoded(array, width, height, "jpeg")
        upright = image_of(array).transpose(turn)
        return Decoded(upright, *((height, width) if turn in _SIDEWAYS else (width, height)), "jpeg")

    def _reduction(self, side: int, short_side: int | None) -> int:
        if self._options.mode == "exact" or short_side is None:
            return 1
        enough = short_side * _FAST_OVERSAMPLING
        return next((factor for factor in _REDUCTIONS if side // factor >= enough), 1)

    def _other(self, data: bytes, kind: str, held: ExitStack | None, wanted: str = "first") -> Decoded:
        """Decode with Pillow; `held` is None when room has been taken already."""
        if kind == "png":
            check_png(data)
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            frames = self._check_header(image, data, kind)
            cost = _COSTLY if image.mode in _COSTLY_MODES or "transparency" in image.info else 1
            mean = frames > 1 and wanted == "mean"
            if held is not None:
                held.enter_context(self._budget.hold(_area(image) * (_MEAN if mean else cost)))
            image.load()
            # After the load, for Pillow turns a TIFF by itself and then forgets the tag.
            turn = _TURNS.get(_orientation(image))
            rgb = self._mean(image, frames) if mean else self._to_rgb(_plain_cmyk(image, kind))
            upright = rgb if turn is None else rgb.transpose(turn)
            return Decoded(upright, upright.width, upright.height, kind, frames)

    def _check_header(self, image: Image.Image, data: bytes, kind: str) -> int:
        """Refuse what is too large in any of its parts; return the frames, counted up to the limit."""
        self._limits.check_size(image.width, image.height, "image")
        if kind == "gif":
            layout = gif_layout(data, self._limits.frames)
            self._limits.check_size(layout.width, layout.height, "image")
            return layout.frames
        if kind == "tiff":
            tags = image.tag_v2  # type: ignore[attr-defined] # a TiffImageFile
            if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
                self._limits.check_size(tags[_TILE_WIDTH], tags[_TILE_LENGTH], "image")
            return _count_pages(image, self._limits.frames)
        if kind == "bmp" and image.info.get("compression") in _BMP_RLE and _area(image) > _MAX_RLE_PIXELS:
            raise UnsupportedFormatError(
                f"a run-length bmp of over {_MAX_RLE_PIXELS} pixels: save it uncompressed", field="image"
            )
        return min(getattr(image, "n_frames", 1), self._limits.frames)

    def _mean(self, image: Image.Image, frames: int) -> Image.Image:
        size = image.size
        total = np.asarray(self._to_rgb(image), np.uint16).copy()
        for frame in range(1, frames):
            image.seek(frame)
            self._limits.check_size(image.width, image.height, "image")
            image.load()
            total += np.asarray(self._to_rgb(image).resize(size))
        return Image.fromarray(((total + frames // 2) // frames).astype(np.uint8))

    def _to_rgb(self, image: Image.Image) -> Image.Image:
        mode = image.mode
        if mode.startswith("I;16"):
            # Pillow's own convert("RGB") clips 16 bits to 8 instead of scaling them.
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if mode in ("I", "F"):
            raise UnsupportedFormatError(
                f"pixels of mode {mode} (32-bit) have no fixed white: convert the image to 8 or 16 bits",
                field="image",
            )
        if mode in _COSTLY_MODES or "transparency" in image.info:
            rgba = image if mode == "RGBA" else image.convert("RGBA")
            ground = Image.new("RGB", image.size, self._options.background)
            ground.paste(rgba, mask=rgba)
            return ground
        return image if mode in ("RGB", "RGBX") else image.convert("RGB")


def turbo(data: bytes, height: int, width: int) -> U8:
    """Decode in full, or to the libjpeg scale whose size is exactly (height, width): (height, width, 4)."""
    array: U8 = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width, min_factor=1)
    return array


def _exif_turn(data: bytes) -> Image.Transpose | None:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return _TURNS.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a broken EXIF block must not fail a good image
        return 1


def _plain_cmyk(image: Image.Image, kind: str) -> Image.Image:
    """Undo, for a CMYK JPEG that is not Adobe's, the inversion that Pillow takes for granted."""
    if kind != "jpeg" or image.mode != "CMYK" or "adobe" in image.info:
        return image
    return Image.fromarray(255 - np.asarray(image), "CMYK")


def _count_pages(image: Image.Image, most: int) -> int:
    pages = 1
    while pages < most:
        try:
            image.seek(pages)
        except (EOFError, OSError, SyntaxError, ValueError):
            break
        pages += 1
    image.seek(0)
    return pages


def _area(image: Image.Image) -> int:
    return image.width * image.height


def _refuse(kind: str, exc: Exception) -> NoReturn:
    """Say what is wrong in words that hold no address, path or other inside of ours."""
    if isinstance(exc, Image.DecompressionBombError | Image.DecompressionBombWarning):
        raise TooLargeError(f"the {kind}'s header asks for too many pixels", field="image") from exc
    if "truncated" in str(exc).lower() or "premature end" in str(exc).lower() or isinstance(exc, EOFError):
        raise UndecodableError(f"the {kind} is truncated: send the whole file", field="image") from exc
    if "too large" in str(exc).lower():
        raise UndecodableError(f"a text or profile chunk of the {kind} is too large", field="image") from exc
    raise UndecodableError(f"the {kind} is damaged: its decoder refused it", field="image") from exc
