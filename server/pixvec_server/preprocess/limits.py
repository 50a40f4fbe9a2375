"""What is refused from the header alone, before a pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from pixvec_server.errors import TooLargeError, UndecodableError


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds of one image: bytes, pixels of a frame, pixels of the longer side, aspect, frames read."""

    formats: tuple[str, ...] = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
    image_bytes: int = 32 << 20
    pixels: int = 50_000_000
    side: int = 20_000
    aspect: float = 100.0
    frames: int = 64

    def check_bytes(self, size: int, field: str) -> None:
        """Raise TooLargeError when one image has too many bytes."""
        if size > self.image_bytes:
            raise TooLargeError(f"{size} bytes are over image_bytes = {self.image_bytes}", field=field)

    def check_size(self, width: int, height: int, field: str) -> None:
        """Raise TooLargeError, or UndecodableError for an image without pixels."""
        size = f"{width} x {height} pixels"
        if width < 1 or height < 1:
            raise UndecodableError(f"{size}: an image needs at least one", field=field)
        if width * height > self.pixels:
            raise TooLargeError(f"{size} are over image_pixels = {self.pixels}", field=field)
        if max(width, height) > self.side:
            raise TooLargeError(f"{size}: a side is over image_side = {self.side}", field=field)
        if max(width, height) > self.aspect * min(width, height):
            raise TooLargeError(f"{size}: the sides are over image_aspect = {self.aspect:g} : 1", field=field)
