"""From bytes, or raw pixels, to one upright RGB image."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
import simplejpeg
from PIL import Image

from pixvec_server.errors import RequestError, TooLargeError, UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess.formats import sniff

if TYPE_CHECKING:
    from pixvec_server.preprocess.budget import PixelBudget
    from pixvec_server.preprocess.limits import ImageLimits
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
# A progressive JPEG of a few kilobytes can ask for thousands of passes over the whole picture.
_MAX_JPEG_SCANS = 100
_REDUCTIONS = (8, 4, 2)
_FAST_OVERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """The named choices: `mode` of JPEG, `background` under transparency, `frames` of an animation."""

    mode: Literal["exact", "fast"] = "exact"
    background: tuple[int, int, int] = (255, 255, 255)
    frames: Literal["first", "mean"] = "first"


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright image of mode RGB or RGBX, and its full size; `pixels` is smaller after a fast decode."""

    pixels: Image.Image
    width: int
    height: int
    format: str
    frames: int = 1


class Decoder:
    """Decodes on the caller's thread; the codecs free the GIL.

    A frame's pixels are held in `budget` from the header check to the end of its decoding.
    """

    def __init__(self, limits: ImageLimits, options: DecodeOptions, budget: PixelBudget) -> None:
        self._limits = limits
        self._options = options
        self._budget = budget

    def decode(self, data: bytes, short_side: int | None = None) -> Decoded:
        """Decode an image file.

        `short_side` is the length that the shorter side will be resized to; None forbids a reduced decode.
        Raises UndecodableError, UnsupportedFormatError or TooLargeError.
        """
        self._limits.check_bytes(len(data), "image")
        kind = sniff(data, self._limits.formats)
        try:
            if kind == "jpeg":
                return self._jpeg(data, short_side)
            return self._other(data, kind)
        except (RequestError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 - decoders raise anything on hostile bytes
            _refuse(kind, exc)

    def from_pixels(self, pixels: Pixels) -> Decoded:
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
        with self._budget.hold(width * height):
            image = Image.fromarray(array[:, :, 0] if channels == 1 else array)
            return Decoded(self._to_rgb(image), width, height, "pixels")

    def _jpeg(self, data: bytes, short_side: int | None) -> Decoded:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        self._limits.check_size(width, height, "image")
        if data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
            raise TooLargeError(
                f"the JPEG has more than {_MAX_JPEG_SCANS} scans: re-encode it", field="image"
            )
        if colours in ("CMYK", "YCCK"):
            return self._other(data, "jpeg")
        factor = self._reduction(min(width, height), short_side)
        with self._budget.hold(width * height // factor**2):
            try:
                array = _turbo(data, -(-height // factor), -(-width // factor))
            except ValueError:
                # libjpeg-turbo stops at any warning; Pillow tells harmless ones from a truncated file.
                return self._other(data, "jpeg", held=True)
        view = Image.frombuffer("RGBX", (array.shape[1], array.shape[0]), array, "raw", "RGBX", 0, 1)
        turn = _exif_turn(data)
        if turn is None:
            return Decoded(view, width, height, "jpeg")
        turned = view.transpose(turn)
        if turn in (
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.FLIP_TOP_BOTTOM,
        ):
            return Decoded(turned, width, height, "jpeg")
        return Decoded(turned, height, width, "jpeg")

    def _reduction(self, side: int, short_side: int | None) -> int:
        if self._options.mode == "exact" or short_side is None:
            return 1
        enough = short_side * _FAST_OVERSAMPLING
        return next((factor for factor in _REDUCTIONS if side // factor >= enough), 1)

    def _other(self, data: bytes, kind: str, *, held: bool = False) -> Decoded:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            self._limits.check_size(image.width, image.height, "image")
            with nullcontext() if held else self._budget.hold(image.width * image.height):
                turn = _TURNS.get(_orientation(image))
                rgb, frames = self._frames(image, kind)
                upright = rgb if turn is None else rgb.transpose(turn)
                return Decoded(upright, upright.width, upright.height, kind, frames)

    def _frames(self, image: Image.Image, kind: str) -> tuple[Image.Image, int]:
        if not getattr(image, "is_animated", False):
            return self._to_rgb(_loaded(image, kind)), 1
        # A copy: seeking changes the pixels of the frame at hand.
        first = self._to_rgb(_loaded(image, kind)).copy()
        if self._options.frames == "first":
            return first, _count_frames(image, self._limits.frames)
        total = np.asarray(first, np.uint32).copy()
        frames = 1
        while frames < self._limits.frames and _seek(image, frames):
            self._limits.check_size(image.width, image.height, "image")
            frame = self._to_rgb(_loaded(image, kind)).resize(first.size)
            total += np.asarray(frame)
            frames += 1
        mean = (total + frames // 2) // frames
        return Image.fromarray(mean.astype(np.uint8)), frames

    def _to_rgb(self, image: Image.Image) -> Image.Image:
        mode = image.mode
        if mode in ("RGB", "RGBX"):
            return image if "transparency" not in image.info else self._flatten(image.convert("RGBA"))
        if mode.startswith("I;16"):
            return _from_16_bit(image)
        if mode in ("I", "F"):
            raise UnsupportedFormatError(
                f"pixels of mode {mode} (32-bit) have no fixed white: convert the image to 8 or 16 bits",
                field="image",
            )
        if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            return self._flatten(image.convert("RGBA"))
        return image.convert("RGB")

    def _flatten(self, image: Image.Image) -> Image.Image:
        ground = Image.new("RGBA", image.size, (*self._options.background, 255))
        ground.alpha_composite(image)
        return ground.convert("RGB")


def _turbo(data: bytes, height: int, width: int) -> U8:
    """Decode in full, or to the libjpeg scale whose size is exactly (height, width): (height, width, 4)."""
    array: U8 = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width, min_factor=1)
    return array


def _exif_turn(data: bytes) -> Image.Transpose | None:
    if b"Exif\x00\x00" not in data[:65536]:
        return None
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return _TURNS.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a broken EXIF block must not fail a good image
        return 1


def _loaded(image: Image.Image, kind: str) -> Image.Image:
    image.load()
    if kind == "jpeg" and image.mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's, which stores it inverted.
        inverted = 255 - np.asarray(image)
        return Image.fromarray(inverted, "CMYK")
    return image


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own convert("RGB") clips 16 bits to 8 instead of scaling them.
    wide = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _count_frames(image: Image.Image, most: int) -> int:
    """Count up to `most` frames: a GIF has no count, and walking all of a long one takes seconds."""
    frames = 1
    while frames < most and _seek(image, frames):
        frames += 1
    return frames


def _seek(image: Image.Image, frame: int) -> bool:
    try:
        image.seek(frame)
    except (EOFError, OSError, SyntaxError, ValueError):
        return False
    return True


def _refuse(kind: str, exc: Exception) -> NoReturn:
    """Say what is wrong in words that hold no address, path or other inside of ours."""
    if isinstance(exc, Image.DecompressionBombError | Image.DecompressionBombWarning):
        raise TooLargeError(f"the {kind}'s header asks for too many pixels", field="image") from exc
    if "truncated" in str(exc).lower() or "premature end" in str(exc).lower() or isinstance(exc, EOFError):
        raise UndecodableError(f"the {kind} is truncated: send the whole file", field="image") from exc
    if "too large" in str(exc).lower():
        raise UndecodableError(f"a text or profile chunk of the {kind} is too large", field="image") from exc
    raise UndecodableError(f"the {kind} is damaged: its decoder refused it", field="image") from exc
