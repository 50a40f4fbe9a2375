"""What anyone must know of a served model, wherever it runs: what it is, can answer and has done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixvec_server import forms
from pixvec_server.errors import ModelNotReadyError
from pixvec_server.forms import Projection
from pixvec_server.preprocess import RESIZE_KERNEL, PreprocessSpec, spec_of
from pixvec_server.spec import EMBEDDING
from pixvec_server.statistics import Statistics
from pixvec_server.tokenizer import TextTokenizer
from pixvec_server.types import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pixvec_server.backends.base import Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.forms import Form
    from pixvec_server.manifest import Manifest
    from pixvec_server.metrics import Metrics
    from pixvec_server.types import F32, Target


# Targets that are remembered as resolved: what callers ask for is mostly the same.
_MOST_FORMS = 256


@dataclass(frozen=True, slots=True)
class Prepared:
    """A verified bundle, and where it will run."""

    bundle: Bundle
    placement: Placement


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine batches: sizes, seconds, batches in flight; and the decode mode that `build` names."""

    max_batch: int
    max_delay_s: float
    instances: int
    decode_mode: str


@dataclass(slots=True)
class Work:
    """One item for a tower: (height, width, 3) uint8 for `image`, (context,) int64 for `text`.

    dropped: nobody waits for it any more; it need not be computed.
    """

    tower: str
    array: Batch
    dropped: bool = False


@dataclass(slots=True)
class Inference:
    """One item's float32 outputs by name, and what they took in seconds.

    batch: how many items its batch had, told by the batch's first item alone; 0 by the others.
    """

    values: dict[str, F32]
    queue_s: float
    compute_s: float
    batch: int = 0


class Served(ABC):
    """A served model. Its name is known from the start, its manifest once it is prepared.

    LOADING until the bundle is there and the backend warm; UNLOADED while it is not in memory and may come
    back at the next use; READY; FAILED.
    """

    folder: Path
    manifest: Manifest
    placement: Placement
    options: EngineOptions
    spec: PreprocessSpec
    tokenizer: TextTokenizer | None

    def __init__(self, name: str, options: Callable[[Placement], EngineOptions], metrics: Metrics) -> None:
        self.name = name
        self.prepared = False
        self.inflight = 0  # items, from admission to answer
        self._make_options = options
        self._metrics = metrics
        self._statistics: dict[str, Statistics] = {}
        self._projections: dict[str, Projection] = {}
        self._forms: dict[Target, Form] = {}

    @property
    @abstractmethod
    def state(self) -> State:
        """Whether the model can answer now."""

    @property
    @abstractmethod
    def queue_s(self) -> float:
        """Seconds until what is queued now has been computed; 0 when nothing waits."""

    @abstractmethod
    async def infer(self, work: Work, outputs: Sequence[str], deadline: float, view: str = "") -> Inference:
        """Run one item in the next batch of the same tower and outputs, loading the model if need be.

        `deadline` is on the event loop's clock. Raises RequestError, or what the backend raised for the item.
        """

    def know(self, prepared: Prepared) -> None:
        """Take the bundle in: from here on the model can be described and asked."""
        self.folder = prepared.bundle.folder
        self.manifest = prepared.bundle.manifest
        self.placement = prepared.placement
        self.options = self._make_options(prepared.placement)
        self.spec = spec_of(self.manifest.preprocess)
        self.tokenizer = _tokenizer(prepared.bundle)
        self._projections = _projections(prepared.bundle)
        self._forms.clear()
        self.prepared = True

    def build(self, output: str) -> str:
        """Name the recipe of an output's vectors."""
        space = forms.output_of(self.manifest, output).space
        return build_id(space, self.placement, self.options.decode_mode, self.spec)

    def resolve(self, target: Target) -> Form:
        """Check a target against the model. Raises ModelNotReadyError, and what `forms.resolve` raises."""
        if not self.prepared or self.state is State.FAILED:
            raise ModelNotReadyError(
                f"model {self.name} is {self.state.name}: try another replica", retry_after=1.0
            )
        form = self._forms.get(target)
        if form is None:
            form = forms.resolve(self.manifest, target, self.build, self._projections)
            if len(self._forms) < _MOST_FORMS:
                self._forms[target] = form
        return form

    def statistics(self, view: str = "") -> Statistics:
        """Return what the model has done for those who reach it by its name and this ending."""
        return self._statistics.setdefault(view, Statistics())

    def has(self, tower: str, output: str) -> bool:
        """Tell whether a tower computes one of the model's outputs."""
        return tower == "image" or (self.manifest.text is not None and output in self.manifest.text.outputs)

    def information(self) -> dict[str, str]:
        """Return what `pixvec_model_info` tells."""
        return {
            "space": forms.output_of(self.manifest, EMBEDDING).space,
            "build": self.build(EMBEDDING),
            "backend": self.placement.kind,
            "device": self.placement.device,
            "precision": self.placement.precision,
        }


def build_id(space: str, place: Placement, decode_mode: str, spec: PreprocessSpec) -> str:
    """Name the recipe of vectors: their space, the engine and its precision, decoding, resizing."""
    kernel = f"{RESIZE_KERNEL}-{spec.interpolation}{'' if spec.antialias else '-plain'}"
    decoding = decode_mode if spec.antialias else decode_mode.replace("fast", "exact")
    return f"{space}/{place.engine}-{place.precision}/{decoding}/{kernel}"


def _tokenizer(bundle: Bundle) -> TextTokenizer | None:
    text = bundle.manifest.text
    return None if text is None else TextTokenizer(bundle.read(text.tokenizer.file), text.tokenizer)


def _projections(bundle: Bundle) -> dict[str, Projection]:
    found = {}
    for name, record in bundle.manifest.outputs.items():
        if record.derived is not None:
            mean, components = bundle.components(record.derived)
            of = record.derived.of
            found[name] = Projection(of, bundle.manifest.outputs[of].normalized, mean, components)
    return found
