"""What a model is, before anything is loaded: its weights, the vector that is taken, the pixels that go in.

A spec is plain data: the catalogue holds one for each name, settings change it, a bundle records it.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
EMBEDDING = "embedding"
_HUBS = ("timm", "open_clip", "hf")
_MOST_DIMENSIONS = 65_536
Triple: TypeAlias = tuple[float, float, float]
Pool: TypeAlias = Literal["own", "avg", "max", "token", "mean"]
Layer: TypeAlias = Literal["pooled", "projected", "fc2", "logits"]
TowerName: TypeAlias = Literal["image", "text"]


class Frozen(BaseModel):
    """Plain data that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Profile(Frozen):
    """How a picture becomes a network's numbers, but for its size; see `preprocess.PreprocessSpec`.

    `mean` and `std` are per channel on a 0 to 1 scale, in the order of `channels`. `crop` is the share of the
    resized image that is kept, `short_side` the resized length in pixels when that is given instead.
    """

    mode: Literal["short_side_crop", "squash"] = "short_side_crop"
    crop: float = Field(1.0, gt=0, le=1)
    short_side: int | None = Field(None, ge=1, le=8192)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    antialias: bool = True
    frames: Literal["first", "mean"] | None = Field(None, description="of an animation; None: the server's")
    channels: Literal["rgb", "bgr"] = "rgb"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _interpolation_is_sampled_as_it_can_be(self) -> Self:
        if self.interpolation == "nearest" and self.antialias:
            raise ValueError("nearest takes single pixels: set antialias = false")
        if self.interpolation == "lanczos" and not self.antialias:
            raise ValueError("lanczos is antialiased: take bilinear or bicubic, or antialias = true")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std = {list(self.std)}: every value must be over 0")
        return self


class Preprocess(Profile):
    """A profile and the size in pixels that the network takes."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)

    @model_validator(mode="after")
    def _crop_is_square_and_inside(self) -> Self:
        if self.mode == "short_side_crop" and self.height != self.width:
            raise ValueError("short_side_crop needs height = width: take squash")
        if self.short_side is not None and self.short_side < self.height:
            raise ValueError(f"short_side = {self.short_side} is under the input's {self.height}")
        return self


class ModelSpec(Frozen):
    """One model. What is empty or None is taken from the source when its bundle is made."""

    name: str = Field(pattern=NAME)
    aliases: tuple[str, ...] = ()
    source: str = Field(pattern=r"^(timm|open_clip|hf|file|wheel):.+")
    architecture: str = Field("", description="timm's name, where the source is weights alone")
    weights: str = Field("pretrained", description="pretrained, none (seeded random), or a checkpoint's path")
    allow_pickle: bool = Field(False, description="read .pt and the like, by the unpickler that runs no code")
    config: dict[str, str | int | float] = Field({}, description="transformers' configuration, for no hub")
    layer: Layer = "pooled"
    pool: Pool = Field("own", description="how `pooled` is made of the map; own: as the network does it")
    projection: str = Field("", description="D: seeded random, untrained; or a checkpoint of weight and bias")
    normalize: bool = True
    preprocess: Preprocess | None = None
    outputs: dict[str, int] = Field({}, description="vectors and their dimensions, as published")
    dimensions: tuple[int, ...] = Field((), description="sizes that the embedding was trained to be cut to")
    towers: tuple[TowerName, ...] = ("image",)
    prompts: dict[str, str] = Field({}, description="name -> template; {} is the text")
    parameters: int | None = Field(None, gt=0)
    licence: str = "unknown"
    note: str = ""

    @model_validator(mode="after")
    def _projection_is_a_size_or_a_path(self) -> Self:
        size = self.projection
        if size.isnumeric() and not (size.isascii() and 1 <= int(size) <= _MOST_DIMENSIONS):
            raise ValueError(f"projection = {size!r}: give 1 to {_MOST_DIMENSIONS} dimensions, or a path")
        return self

    @property
    def trained(self) -> bool:
        """Whether every number of the embedding was learnt."""
        return self.weights != "none" and not self.projection.isdigit()

    @property
    def kind(self) -> str:
        """What the source is of: timm, open_clip, hf, file or wheel."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The source without its kind and its revision."""
        where = self.source.partition(":")[2]
        return where.partition("@")[0] if self.kind in _HUBS else where

    @property
    def revision(self) -> str:
        """The hub's revision that is pinned, or ""."""
        return self.source.partition("@")[2] if self.kind in _HUBS else ""

    def digest(self) -> str:
        """Name what a bundle of this spec would hold; another spec, another name."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
