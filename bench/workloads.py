"""What the servers are asked: pictures of several sizes and forms, all from real photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps
from support import photos

if TYPE_CHECKING:
    from bench import wire
    from bench.peers.base import Model

PHOTOGRAPHS = ("rocket.jpg", "china.jpg", "flower.jpg", "coffee.png", "chelsea.png", "astronaut.png")
SMALL, MEDIUM, LARGE = (640, 427), (1280, 853), (3840, 2560)
BATCH = 32
Kind = Literal["small", "medium", "large", "png", "mixture", "pixels", "batch", "stream"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of request. callers: how many of them at once tell the capacity.

    like: the workload of one picture a request that this one is held against; protocol: the only one that
    has it, else each system's own.
    """

    name: Kind
    title: str
    callers: int = 32
    images: int = 1
    protocol: wire.Protocol | None = None

    @property
    def like(self) -> tuple[Kind, int]:
        """The plain workload, and its callers, that the peers' figure is taken from."""
        return (self.name, self.callers) if self.protocol is None else ("small", 32)


WORKLOADS: dict[Kind, Workload] = {
    one.name: one
    for one in (
        Workload("small", "JPEG 640 x 427"),
        Workload("medium", "JPEG 1280 x 853"),
        Workload("large", "JPEG 3840 x 2560", callers=8),
        Workload("png", "PNG with alpha, 640 x 427"),
        Workload("mixture", "6 small, 3 medium, 2 PNG, 1 large", callers=16),
        Workload("pixels", "uint8 tensor of the input's size"),
        Workload("batch", "EmbedBatch of 32 small", callers=4, images=BATCH, protocol="embed_batch"),
        Workload("stream", "EmbedStream, 8 small a message", callers=8, images=8, protocol="embed_stream"),
    )
}


def pictures(kind: Kind, model: Model) -> list[wire.Picture]:
    """Return a workload's pictures, to be sent in turn."""
    if kind == "pixels":
        side = (model.side, model.side)
        return [np.asarray(ImageOps.fit(photos.image(name), side)) for name in PHOTOGRAPHS]
    if kind == "png":
        return list(_pngs())
    if kind == "mixture":
        return [*_jpegs(SMALL), *_jpegs(MEDIUM)[:3], *_pngs()[:2], _jpegs(LARGE)[0]]
    return list(_jpegs({"medium": MEDIUM, "large": LARGE}.get(kind, SMALL)))


def fidelity_pictures() -> list[bytes]:
    """Return 54 distinct pictures: photographs as JPEG, some enlarged, and as PNG."""
    names = photos.NAMES
    made = [photos.jpeg(name) for name in names]
    made += [photos.jpeg(name, scale=3) for name in names if photos.image(name).width < 700]
    return made + [photos.data(name) for name in names if name.endswith("png")]


@cache
def _jpegs(size: tuple[int, int]) -> tuple[bytes, ...]:
    return tuple(photos.encode(_fitted(name, size), "JPEG", quality=92) for name in PHOTOGRAPHS)


@cache
def _pngs() -> tuple[bytes, ...]:
    """Photographs that fade out towards their lower edge."""
    fade = Image.linear_gradient("L").rotate(180).resize(SMALL)
    return tuple(photos.encode(_with_alpha(name, fade), "PNG") for name in PHOTOGRAPHS)


def _with_alpha(name: str, alpha: Image.Image) -> Image.Image:
    picture = _fitted(name, SMALL)
    picture.putalpha(alpha)
    return picture


def _fitted(name: str, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(photos.image(name), size, Image.Resampling.LANCZOS)
