"""The values that travel through the server. Nothing here knows gRPC, images' formats or engines."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pixvec_server.errors import RequestError

U8: TypeAlias = NDArray[np.uint8]
F32: TypeAlias = NDArray[np.float32]


class Encoding(enum.Enum):
    """The forms of a tensor's numbers; the values are those of `pixvec.v1.Encoding`."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT8 = 4
    UINT8 = 5
    BINARY = 6


class Metric(enum.Enum):
    """How two vectors are compared; the values are those of `pixvec.v1.Metric`."""

    COSINE = 1
    DOT = 2
    EUCLIDEAN = 3


class State(enum.Enum):
    """Whether a model can answer; the values are those of `pixvec.v1.State`."""

    READY = 1
    LOADING = 2
    UNLOADED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Region:
    """A box in pixels after the EXIF turn; `right` and `bottom` are exclusive, edges may lie outside."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    whole: bool = False


WHOLE = Region(whole=True)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file's bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded image: `data` holds `shape` = (height, width, channels) uint8 values in C order."""

    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence."""

    text: str


Content: TypeAlias = Encoded | Pixels | Text


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to embed; `regions` is never empty."""

    content: Content
    regions: tuple[Region, ...] = (WHOLE,)
    prompt: str = ""

    @property
    def size(self) -> int:
        """Bytes that the input holds."""
        content = self.content
        return len(content.text.encode()) if isinstance(content, Text) else len(content.data)


@dataclass(frozen=True, slots=True)
class Target:
    """Which vector is wanted, and in which form; None and "" leave it to the model."""

    model: str = ""
    output: str = ""
    dimensions: int | None = None
    normalize: bool | None = None
    encoding: Encoding = Encoding.FLOAT32
    space: str = ""


@dataclass(frozen=True, slots=True)
class Vector:
    """Encoded numbers: little-endian, C order. `scale` is set for INT8 alone."""

    encoding: Encoding
    shape: tuple[int, ...]
    data: bytes
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What was read of an input; sizes after the EXIF turn; `truncated` when words of a text were cut off."""

    width: int
    height: int
    format: str
    frames: int = 1
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Embedding:
    """The answer for one region and one target, by their indexes in the request."""

    region: int
    target: int
    outcome: Vector | RequestError


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to one input."""

    embeddings: tuple[Embedding, ...]
    source: Source


Result: TypeAlias = Embedded | RequestError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a vector comes from."""

    model: str
    space: str
    build: str
    normalized: bool


@dataclass(slots=True)
class Cost:
    """What a request took: the largest of each time over its items, in seconds, and sums of work.

    encode_s, the making of vectors, is a sum too: the items' vectors are made one after the other. `cached`
    counts those of the vectors whose numbers another request computed; lookup_s is the search for them.
    """

    decode_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    encode_s: float = 0.0
    lookup_s: float = 0.0
    vectors: int = 0
    cached: int = 0
    pixels: int = 0
    tokens: int = 0

    def add(self, other: Cost) -> None:
        """Fold another item's cost into this one."""
        self.decode_s = max(self.decode_s, other.decode_s)
        self.queue_s = max(self.queue_s, other.queue_s)
        self.compute_s = max(self.compute_s, other.compute_s)
        self.encode_s += other.encode_s
        self.lookup_s = max(self.lookup_s, other.lookup_s)
        self.vectors += other.vectors
        self.cached += other.cached
        self.pixels += other.pixels
        self.tokens += other.tokens


@dataclass(slots=True)
class Answer:
    """What a request gets: a result for each input, an origin for each target, and the cost."""

    results: list[Result]
    origins: tuple[Origin, ...]
    cost: Cost = field(default_factory=Cost)
