"""What the client takes and gives: plain frozen values, no messages and no transport."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Encoding: TypeAlias = Literal["float32", "float16", "bfloat16", "int8", "binary"]
Metric: TypeAlias = Literal["cosine", "dot", "euclidean"]
OnError: TypeAlias = Literal["raise", "return"]
Priority: TypeAlias = Literal["interactive", "bulk"]


class CallOptions(TypedDict, total=False):
    """Options of one call.

    timeout: seconds for each request to the server; default: the client's.
    request_id: at most 128 printable ASCII characters, for the server's logs and errors; made if absent.
    traceparent, tracestate, baggage: W3C trace context, handed on as it is.
    """

    timeout: float | None
    request_id: str
    traceparent: str
    tracestate: str
    baggage: str


class EmbedOptions(CallOptions, total=False):
    """Which vector is wanted, and in which form; see Target. `prompt` is a name from ModelInfo.prompts."""

    model: str
    output: str
    dimensions: int | None
    normalize: bool | None
    encoding: Encoding | None
    space: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence, wherever an image may stand, for models with a text tower.

    prompt: a name from ModelInfo.prompts, whose template the text is put into; empty: the text as it is.
    """

    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Which vector is wanted, and in which form.

    model: name or alias; empty: the client's, then the server's default.
    output: a name from ModelInfo.outputs; empty: "embedding".
    dimensions: one of OutputInfo.dimensions; None: the full size.
    normalize: scale to unit Euclidean length; None: OutputInfo.normalized.
    encoding: form of the numbers; None: "float32".
    space: answer in this space or fail with SpaceMismatchError; empty: any.
    """

    model: str = ""
    output: str = ""
    dimensions: int | None = None
    normalize: bool | None = None
    encoding: Encoding | None = None
    space: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """A box in pixels after the EXIF turn, right and bottom exclusive; the server clips it to the image."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    whole: bool = False

    @classmethod
    def whole_image(cls) -> Self:
        """Return the region that is the whole image, to ask for beside boxes."""
        return cls(whole=True)

    def expand(self, px: int) -> Self:
        """Return the box grown by `px` pixels on each side (shrunk when negative); the whole image stays."""
        if self.whole:
            return self
        return replace(
            self, left=self.left - px, top=self.top - px, right=self.right + px, bottom=self.bottom + px
        )


RegionLike: TypeAlias = Region | tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a vector comes from, resolved: store it beside the vectors. Equal `space` means comparable."""

    model: str
    space: str
    build: str
    normalized: bool


class Vectors(np.ndarray[Any, np.dtype[Any]]):
    """An array of vectors, or one of them, that knows where its numbers come from.

    `origin` goes along into views and slices, and through pickle; what is computed from the numbers is a
    plain array, since it is no vector of that space any more.
    """

    origin: Origin | None

    @classmethod
    def of(cls, values: Array, origin: Origin | None) -> Self:
        """Return the same numbers, not copied, with their origin."""
        view = values.view(cls)
        view.origin = origin
        return view

    def __array_finalize__(self, source: object) -> None:
        self.origin = getattr(source, "origin", None)

    def __array_wrap__(self, array: Array, context: object = None, return_scalar: bool = False) -> Any:  # noqa: ANN401 - numpy's own signature
        return array[()] if return_scalar else array.view(np.ndarray)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401 - numpy's own signature
        made = super().__array_function__(function, types, args, kwargs)
        return _plain(made) if function in _COMPUTING else made

    def dot(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - numpy's own signature
        """Return the product as a plain array."""
        return _plain(super().dot(*args, **kwargs))

    def argsort(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - numpy's own signature
        """Return the indices as a plain array."""
        return _plain(super().argsort(*args, **kwargs))

    def __reduce__(self) -> Any:  # noqa: ANN401 - pickle's own signature
        return _restore, (np.asarray(self), self.origin)


# What numpy makes of the type of its operand, though it holds other numbers.
_COMPUTING = {np.dot, np.inner, np.argsort, np.argpartition, np.argmax, np.argmin}


def _plain(made: Any) -> Any:  # noqa: ANN401 - an array or a scalar
    return made.view(np.ndarray) if isinstance(made, Vectors) else made


def _restore(values: Array, origin: Origin | None) -> Vectors:
    return Vectors.of(values, origin)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run through many images is. total: None when it is not known beforehand."""

    done: int
    failed: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took: vectors answered, pixels and text tokens read, vectors served from a cache."""

    vectors: int
    pixels: int
    tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds in the server, each the largest over the request's items."""

    decode_ns: int
    queue_ns: int
    compute_ns: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class Source:
    """What was read of an input: pixels after the EXIF turn, format, frames; truncated: text was cut."""

    width: int
    height: int
    format: str
    frames: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Embedding:
    """The answer for one region and one target: numbers, or the error that took their place.

    values: by encoding: float32 and bfloat16 as float32, float16 as float16, int8 as int8 (multiply by
        `scale`), binary as uint8 holding 8 bits each, high bit first.
    scale: value = number x scale; None but for int8.
    """

    values: Array | None
    encoding: Encoding
    scale: float | None = None
    origin: Origin | None = None
    error: Exception | None = None

    @property
    def vector(self) -> Vectors:
        """The numbers, with their origin; raises `error` when there are none."""
        if self.values is None:
            raise self.error or ValueError("neither a vector nor an error")
        return Vectors.of(self.values, self.origin)

    def dequantized(self) -> NDArray[np.float32]:
        """Return the numbers as float32: int8 times its scale, binary as +1 and -1."""
        if self.encoding == "binary":
            return np.unpackbits(self.vector, axis=-1).astype(np.float32) * 2 - 1
        return self.vector.astype(np.float32) * np.float32(1.0 if self.scale is None else self.scale)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer for one input: `embeddings[region][target]`, and what produced it.

    origins: one for each target. usage, timing: of the whole request that carried this input.
    """

    embeddings: tuple[tuple[Embedding, ...], ...]
    source: Source
    origins: tuple[Origin, ...]
    usage: Usage
    timing: Timing

    @property
    def vector(self) -> Vectors:
        """The vector of the first region and target; raises its error when it has one."""
        return self.embeddings[0][0].vector

    @property
    def origin(self) -> Origin:
        """The origin of the first target."""
        return self.origins[0]

    def __iter__(self) -> Iterator[tuple[Embedding, ...]]:
        return iter(self.embeddings)


class TopK(NamedTuple):
    """The nearest candidates of each query, nearest first: `indices` and `scores`, (Q, k)."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """One output of a model: its space, the shape of one vector, and the sizes that it may be cut to."""

    name: str
    space: str
    shape: tuple[int, ...]
    dimensions: tuple[int, ...]
    normalized: bool
    int8_scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that the server serves.

    state: "ready", "loading", "unloaded" or "failed". input_size: height and width in pixels.
    logit_scale, logit_bias: image-text models: score = logit_scale x cosine + logit_bias.
    parity: worst cosine to the fp32 reference, when it was checked at export.
    """

    name: str
    aliases: tuple[str, ...]
    state: str
    build: str
    licence: str
    outputs: tuple[OutputInfo, ...]
    prompts: tuple[str, ...]
    max_text_tokens: int
    logit_scale: float | None
    logit_bias: float | None
    parity: float | None
    backend: str
    device: str
    precision: str
    preprocessing: str
    input_size: tuple[int, ...]
    selection: str

    def output(self, name: str = "") -> OutputInfo | None:
        """Return the named output ("embedding" when empty), or None when the model has no such output."""
        return next((output for output in self.outputs if output.name == (name or "embedding")), None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may hold, in the contract's words and units; 0: no limit was stated."""

    request_bytes: int = 0
    inputs: int = 0
    regions: int = 0
    targets: int = 0
    image_bytes: int = 0
    image_pixels: int = 0
    similarity_cells: int = 0
    formats: tuple[str, ...] = ()
    image_side: int = 0
    image_aspect: float = 0.0
    frames: int = 0
    vectors: int = 0
    response_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a server said of itself: every model, the default first, and its limits."""

    models: tuple[ModelInfo, ...]
    limits: Limits
    server_version: str

    def output(self, target: Target) -> OutputInfo | None:
        """Return the output that a target asks for, or None when this server does not list it."""
        for model in self.models:
            if not target.model or target.model == model.name or target.model in model.aliases:
                return model.output(target.output)
        return None

    def input_size(self, targets: Iterable[Target]) -> tuple[int, int]:
        """Return the largest height and width that the models of some targets look at, in pixels."""
        sizes = [
            model.input_size
            for target in targets
            for model in self.models
            if (not target.model and model is self.models[0])
            or target.model == model.name
            or target.model in model.aliases
        ]
        known = [size for size in sizes if len(size) == 2]
        return max((h for h, _ in known), default=0), max((w for _, w in known), default=0)
