"""Pictures to check models on, as files; and files opened as the libraries that publish models open them."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from pixvec_server.probes import pictures

# Height and width in pixels: landscape and portrait, under and far over what networks take, odd and even.
_SIZES = ((480, 640), (600, 401), (96, 128), (131, 89), (640, 960), (720, 480), (333, 500), (512, 224))
_EACH = 3
_WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture's file, and what it is called in a report."""

    name: str
    data: bytes


def samples() -> list[Sample]:
    """Return 24 seeded pictures of eight sizes: JPEG with and without colour subsampling, and PNG.

    The same pixels on every machine; the JPEG files are those of the Pillow that wrote them.
    """
    return [
        _encoded(f"{width}x{height}-{i}", Image.fromarray(pixels), i)
        for height, width in _SIZES
        for i, pixels in enumerate(pictures(height, width, _EACH))
    ]


def small_samples(count: int) -> list[Sample]:
    """Return seeded pictures of 288 x 224 as JPEG, which take a tenth of the time to make."""
    return [
        _encoded(f"small-{i}", Image.fromarray(pixels), 1)
        for i, pixels in enumerate(pictures(224, 288, count))
    ]


def opened(data: bytes) -> Image.Image:
    """Open a file with Pillow alone, upright, in RGB, over white where it is transparent.

    Shares nothing with `Decoder`, which it stands against. Raises what Pillow raises.
    """
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("RGBA", "LA", "PA") and "transparency" not in upright.info:
        return upright.convert("RGB")
    seen = upright.convert("RGBA")
    ground = Image.new("RGBA", seen.size, (*_WHITE, 255))
    return Image.alpha_composite(ground, seen).convert("RGB")


def _encoded(name: str, picture: Image.Image, i: int) -> Sample:
    buffer = io.BytesIO()
    if i == 0:
        picture.save(buffer, "PNG", compress_level=1)
        return Sample(f"{name}.png", buffer.getvalue())
    picture.save(buffer, "JPEG", quality=92, subsampling="4:2:0" if i == 1 else "4:4:4")
    return Sample(f"{name}.jpg", buffer.getvalue())
