"""One model: its bundle, its backend, its batcher, and what may be asked of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixvec_server import log, vectors
from pixvec_server.batching import Batcher, BatchReport
from pixvec_server.errors import (
    BackendError,
    BadOptionError,
    ModelNotReadyError,
    NonFiniteError,
    PixvecError,
    RequestError,
    SpaceMismatchError,
)
from pixvec_server.preprocess import RESIZE_KERNEL, PreprocessSpec
from pixvec_server.types import Encoding, Origin, State, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pixvec_server.backends.base import Backend, Placement
    from pixvec_server.bundle import Bundle, Manifest, OutputRecord
    from pixvec_server.metrics import Metrics
    from pixvec_server.types import F32, U8, Target

DEFAULT_OUTPUT = "embedding"
_SMOOTHING = 0.2
_log = log.get("engine")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load brings: a verified bundle, where it runs, and the backend that runs it."""

    bundle: Bundle
    placement: Placement
    backend: Backend


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine batches: sizes, seconds, batches in flight; and the decode mode that `build` names."""

    max_batch: int
    max_delay_s: float
    instances: int
    decode_mode: str


@dataclass(frozen=True, slots=True)
class Form:
    """A target, resolved against its model: which output, cut to what, in which form."""

    output: str
    size: int | None
    normalize: bool
    encoding: Encoding
    scale: float | None
    shape: tuple[int, ...]
    origin: Origin

    @property
    def answer_bytes(self) -> int:
        """Bytes of one vector in this form."""
        return vectors.encoded_bytes(self.encoding, self.shape)

    def finish(self, values: F32) -> F32:
        """Cut, then normalise; float32. Raises NonFiniteError when the model answered NaN or infinity."""
        if not np.isfinite(values).all():
            raise NonFiniteError("the model answered NaN or infinity for this image", field=self.output)
        cut = values if self.size is None else values[: self.size]
        return vectors.unit(cut) if self.normalize else cut


@dataclass(slots=True)
class Inference:
    """One image's float32 outputs by name, and what they took in seconds."""

    values: dict[str, F32]
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    pixels: U8
    outputs: tuple[str, ...]
    arrived: float


class Engine:
    """A served model. Its name is known from the start; everything else once it is READY."""

    def __init__(
        self,
        name: str,
        load: Callable[[], Loaded],
        options: Callable[[Placement], EngineOptions],
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.state = State.LOADING
        self.inflight = 0  # items, from admission to answer
        self._load = load
        self._make_options = options
        self._metrics = metrics
        self._item_s = 0.0  # smoothed seconds that one item keeps the device

    async def start(self) -> None:
        """Load and warm up on another thread, then become READY. Raises SetupError, as FAILED."""
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(None, self._load)
            self.options = self._make_options(loaded.placement)
            self._threads = ThreadPoolExecutor(self.options.instances, thread_name_prefix=f"run-{self.name}")
            sizes = sorted({1, self.options.max_batch})
            await loop.run_in_executor(self._threads, loaded.backend.warm_up, sizes, (DEFAULT_OUTPUT,))
            self._open(loaded)
        except Exception as exc:
            self.state = State.FAILED
            if isinstance(exc, PixvecError):
                raise
            raise BackendError(f"model {self.name} could not be loaded: {exc}") from exc

    def _open(self, loaded: Loaded) -> None:
        self._backend = loaded.backend
        self.manifest: Manifest = loaded.bundle.manifest
        self.placement = loaded.placement
        self.spec = PreprocessSpec(**self.manifest.preprocess.model_dump())
        self._batcher: Batcher[_Job, Inference] = Batcher(
            self._run,
            max_batch=self.options.max_batch,
            max_delay=self.options.max_delay_s,
            instances=self.options.instances,
            key=lambda job: job.outputs,
            clock=asyncio.get_running_loop().time,
            on_batch=self._on_batch,
        )
        self._metrics.watch(self._metrics.queue_items, self.name, lambda: self._batcher.queued)
        self._metrics.watch(self._metrics.inflight_items, self.name, lambda: self.inflight)
        self._metrics.model_info.labels(self.name).info(
            {
                "space": self.output(DEFAULT_OUTPUT).space,
                "build": self.build(DEFAULT_OUTPUT),
                "backend": self.placement.kind,
                "device": self.placement.device,
                "precision": self.placement.precision,
            }
        )
        self.state = State.READY

    async def stop(self, grace: float = 10.0) -> bool:
        """Answer what is queued, then release the backend; False when it still runs after `grace` seconds."""
        if self.state is not State.READY:
            return True
        try:
            await asyncio.wait_for(self._batcher.__aexit__(None, None, None), grace)
        except TimeoutError:
            _log.error("the backend hangs", model=self.name, seconds=grace)
            return False
        self.state = State.UNLOADED
        self._threads.shutdown(wait=False)
        self._backend.close()
        return True

    @property
    def queue_s(self) -> float:
        """Seconds until what is queued now has been computed; 0 when nothing waits."""
        return self._batcher.queued * self._item_s

    def require_ready(self) -> None:
        """Raise ModelNotReadyError unless READY."""
        if self.state is not State.READY:
            raise ModelNotReadyError(
                f"model {self.name} is {self.state.name}: try another replica", retry_after=1.0
            )

    def output(self, name: str) -> OutputRecord:
        """Return an output by name. Raises BadOptionError that lists the model's outputs."""
        record = self.manifest.outputs.get(name)
        if record is None:
            known = ", ".join(self.manifest.outputs)
            raise BadOptionError(f"model {self.name} has no output {name!r}; it has {known}", field="output")
        return record

    def build(self, output: str) -> str:
        """Name the recipe of an output's vectors."""
        place = self.placement
        kernel = f"{RESIZE_KERNEL}-{self.manifest.preprocess.interpolation}"
        return (
            f"{self.output(output).space}/{place.kind}-{place.precision}/{self.options.decode_mode}/{kernel}"
        )

    def resolve(self, target: Target) -> Form:
        """Check a target against the model.

        Raises BadOptionError or SpaceMismatchError that names the field, the value and what there is.
        """
        self.require_ready()
        name = target.output or DEFAULT_OUTPUT
        record = self.output(name)
        if target.space and target.space != record.space:
            raise SpaceMismatchError(
                f"{self.name}.{name} is in space {record.space}, not in the pinned {target.space}",
                field="space",
            )
        size = self._size(name, record, target.dimensions)
        normalize = record.normalized if target.normalize is None else target.normalize
        if normalize and len(record.shape) != 1:
            raise BadOptionError(
                f"{name} is a map of shape {list(record.shape)}: unset normalize", field="normalize"
            )
        shape = record.shape if size is None else (size,)
        form = Form(
            output=name,
            size=size,
            normalize=normalize,
            encoding=target.encoding,
            scale=_int8_scale(name, record, target.encoding, size, normalize=normalize),
            shape=shape,
            origin=Origin(self.name, record.space, self.build(name), normalize),
        )
        _ = form.answer_bytes  # refuses a size that BINARY cannot pack
        return form

    async def infer(self, pixels: U8, outputs: Sequence[str], deadline: float) -> Inference:
        """Run one (height, width, 3) uint8 image in the next batch of the same outputs."""
        job = _Job(pixels, tuple(sorted(set(outputs))), asyncio.get_running_loop().time())
        return await self._batcher.submit(job, deadline=deadline)

    def _size(self, name: str, record: OutputRecord, wanted: int | None) -> int | None:
        if wanted is None:
            return record.dimensions[0] if record.dimensions else None
        if wanted not in record.dimensions:
            has = (
                f"has sizes {list(record.dimensions)}" if record.dimensions else "is a map and cannot be cut"
            )
            raise BadOptionError(f"dimensions = {wanted}: {self.name}.{name} {has}", field="dimensions")
        return wanted

    async def _run(self, jobs: Sequence[_Job]) -> Sequence[Inference]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        outputs = jobs[0].outputs
        values = await loop.run_in_executor(self._threads, self._compute, jobs, outputs)
        seconds = loop.time() - started
        self._metrics.compute_seconds.labels(self.name).observe(seconds)
        return [
            Inference({name: values[name][i] for name in outputs}, started - job.arrived, seconds)
            for i, job in enumerate(jobs)
        ]

    def _compute(self, jobs: Sequence[_Job], outputs: tuple[str, ...]) -> dict[str, F32]:
        return dict(self._backend.run(np.stack([job.pixels for job in jobs]), outputs))

    def _on_batch(self, report: BatchReport) -> None:
        self._metrics.batch_size.labels(self.name).observe(report.size)
        for wait in report.waits:
            self._metrics.queue_seconds.labels(self.name).observe(wait)
        self._item_s = smooth(self._item_s, report.seconds / report.size / self.options.instances)


def _int8_scale(
    name: str, record: OutputRecord, encoding: Encoding, size: int | None, *, normalize: bool
) -> float | None:
    if encoding is Encoding.UINT8:
        raise BadOptionError("UINT8 is for pixels; vectors come as INT8 or BINARY", field="encoding")
    if encoding is not Encoding.INT8:
        return None
    if size is None or not record.int8_scales:
        raise BadOptionError(f"{name} has no INT8 scale: ask for FLOAT16", field="encoding")
    if normalize != record.normalized:
        raise BadOptionError(
            f"INT8 is calibrated for normalize = {str(record.normalized).lower()}: unset normalize",
            field="normalize",
        )
    return record.int8_scales[record.dimensions.index(size)]


def smooth(average: float, value: float) -> float:
    """Return an exponentially weighted average; the first value is taken as it is."""
    return average + (value - average) * (_SMOOTHING if average else 1.0)


def finish(values: F32, form: Form) -> Vector | RequestError:
    """Return one answer, or the error of its own."""
    try:
        return vectors.encode(form.finish(values), form.encoding, form.scale)
    except RequestError as exc:
        return exc
