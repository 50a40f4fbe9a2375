"""Real photographs that installed packages carry, and re-encodings of them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import skimage
import sklearn
from PIL import Image

_FOLDERS = (
    Path(skimage.__file__).parent / "data",
    Path(sklearn.__file__).parent / "datasets" / "images",
)
NAMES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "china.jpg",
    "coffee.png",
    "coins.png",
    "flower.jpg",
    "grass.png",
    "gravel.png",
    "horse.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)


def path(name: str) -> Path:
    """Return where a photograph lies."""
    return next(folder / name for folder in _FOLDERS if (folder / name).is_file())


@cache
def data(name: str) -> bytes:
    """Return a photograph's file."""
    return path(name).read_bytes()


def image(name: str) -> Image.Image:
    """Return a photograph in RGB."""
    return Image.open(io.BytesIO(data(name))).convert("RGB")


@cache
def jpeg(name: str, scale: int = 1, quality: int = 92) -> bytes:
    """Return a photograph re-encoded as JPEG, enlarged `scale` times."""
    picture = image(name)
    if scale != 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    return encode(picture, "JPEG", quality=quality)


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    """Return a picture's file in one of Pillow's formats."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
