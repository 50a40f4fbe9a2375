"""One model: its bundle, its backend, its batcher, and when it is in memory."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixvec_server import forms, log, memory
from pixvec_server.backends.base import example
from pixvec_server.batching import Batcher, BatchReport
from pixvec_server.errors import (
    BackendError,
    DrainingError,
    ModelNotReadyError,
    PixvecError,
    RequestError,
)
from pixvec_server.forms import Projection
from pixvec_server.preprocess import RESIZE_KERNEL, PreprocessSpec, spec_of
from pixvec_server.spec import EMBEDDING
from pixvec_server.statistics import Statistics
from pixvec_server.tokenizer import TextTokenizer
from pixvec_server.types import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pixvec_server.backends.base import Backend, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.forms import Form
    from pixvec_server.manifest import Manifest
    from pixvec_server.metrics import Metrics
    from pixvec_server.types import F32, Target

_SMOOTHING = 0.2
_MIB = 1 << 20
_LOOK_AGAIN_S = 0.05  # while a call is under way
_log = log.get("engine")


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


@dataclass(frozen=True, slots=True)
class Residency:
    """When a model is in memory: from the start or from its first use, and for how long without any.

    `idle_unload_s` 0: for good.
    """

    on_first_use: bool = False
    idle_unload_s: float = 0.0


ALWAYS = Residency()


@dataclass(frozen=True, slots=True)
class Work:
    """One item for a tower: (height, width, 3) uint8 for `image`, (context,) int64 for `text`."""

    tower: str
    array: Batch


@dataclass(slots=True)
class Inference:
    """One item's float32 outputs by name, and what they took in seconds."""

    values: dict[str, F32]
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    outputs: tuple[str, ...]
    arrived: float
    view: str


class Engine:
    """A served model. Its name is known from the start, its manifest once it is prepared.

    LOADING until the bundle is there and the backend warm; UNLOADED while it is not in memory and may come
    back at the next use; READY; FAILED.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Prepared],
        load: Callable[[Prepared], Backend],
        options: Callable[[Placement], EngineOptions],
        metrics: Metrics,
        *,
        residency: Residency = ALWAYS,
    ) -> None:
        self.name = name
        self.state = State.LOADING
        self.prepared = False
        self._stopped = False
        self.inflight = 0  # items, from admission to answer
        self._statistics: dict[str, Statistics] = {}
        self._prepare = prepare
        self._load = load
        self._make_options = options
        self._metrics = metrics
        self._residency = residency
        self._item_s = 0.0  # smoothed seconds that one item keeps the device
        self._using = 0  # inferences asked for and not yet answered
        self._used_at = 0.0
        self._turning = asyncio.Lock()  # held while the backend comes or goes
        self._waking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Prepare, and unless it waits for its first use, load. Raises SetupError, as FAILED."""
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(None, self._prepare)
            self._open(prepared)
            if self._residency.on_first_use:
                _log.info("model waits for its first use", model=self.name, why=self.placement.why)
            else:
                await self._bring()
        except Exception as exc:
            self.state = State.FAILED
            if isinstance(exc, PixvecError):
                raise
            raise BackendError(f"model {self.name} could not be loaded: {exc}") from exc

    def _open(self, prepared: Prepared) -> None:
        self._source = prepared
        self.manifest: Manifest = prepared.bundle.manifest
        self.placement = prepared.placement
        self.options = self._make_options(prepared.placement)
        self.spec = spec_of(self.manifest.preprocess)
        self.tokenizer = _tokenizer(prepared.bundle)
        self._projections = _projections(prepared.bundle)
        self._threads = ThreadPoolExecutor(self.options.instances, thread_name_prefix=f"run-{self.name}")
        self._batcher: Batcher[_Job, Inference] = Batcher(
            self._run,
            max_batch=self.options.max_batch,
            max_delay=self.options.max_delay_s,
            instances=self.options.instances,
            key=lambda job: (job.work.tower, job.outputs),
            clock=asyncio.get_running_loop().time,
            on_batch=self._on_batch,
        )
        self._watch()
        self.prepared = True
        self.state = State.UNLOADED

    def _watch(self) -> None:
        self._metrics.watch(self._metrics.queue_items, self.name, lambda: self._batcher.queued)
        self._metrics.watch(self._metrics.inflight_items, self.name, lambda: self.inflight)
        self._metrics.watch(self._metrics.model_loaded, self.name, lambda: self.state is State.READY)
        self._metrics.model_info.labels(self.name).info(
            {
                "space": forms.output_of(self.manifest, EMBEDDING).space,
                "build": self.build(EMBEDDING),
                "backend": self.placement.kind,
                "device": self.placement.device,
                "precision": self.placement.precision,
            }
        )

    async def stop(self, grace: float = 10.0) -> bool:
        """Answer what is queued, then release the backend; False when it still runs after `grace` seconds."""
        self._stopped = True
        if not self.prepared:
            return True
        if self._watching is not None:
            self._watching.cancel()
        try:
            await asyncio.wait_for(self._batcher.__aexit__(None, None, None), grace)
        except TimeoutError:
            _log.error("the backend hangs", model=self.name, seconds=grace)
            return False
        if self.state is State.READY:
            self._backend.close()
        self.state = State.UNLOADED
        self._threads.shutdown(wait=False)
        return True

    @property
    def queue_s(self) -> float:
        """Seconds until what is queued now has been computed; 0 when nothing waits."""
        return self._batcher.queued * self._item_s

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
        return forms.resolve(self.manifest, target, self.build, self._projections)

    def statistics(self, view: str = "") -> Statistics:
        """Return what the model has done for those who reach it by its name and this ending."""
        return self._statistics.setdefault(view, Statistics())

    async def infer(self, work: Work, outputs: Sequence[str], deadline: float, view: str = "") -> Inference:
        """Run one item in the next batch of the same tower and outputs, loading the model if need be."""
        loop = asyncio.get_running_loop()
        self._using += 1
        try:
            if self.state is not State.READY:
                await self._wake()
            job = _Job(work, tuple(sorted(set(outputs))), loop.time(), view)
            return await self._batcher.submit(job, deadline=deadline)
        finally:
            self._using -= 1
            self._used_at = loop.time()

    def has(self, tower: str, output: str) -> bool:
        """Tell whether a tower computes one of the model's outputs."""
        return tower == "image" or (self.manifest.text is not None and output in self.manifest.text.outputs)

    async def _wake(self) -> None:
        """Wait for the backend; one load serves all who wait, and outlives those who give up."""
        if self._stopped:
            raise DrainingError("the server is stopping; try another replica")
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._bring())
        try:
            await asyncio.shield(self._waking)
        except PixvecError as exc:
            if isinstance(exc, RequestError):
                raise
            _log.error("a model could not be loaded", model=self.name, error=str(exc))
            raise ModelNotReadyError(
                f"model {self.name} could not be loaded: see the server's log", retry_after=5.0
            ) from exc

    async def _bring(self) -> None:
        """Load the backend and warm it up. Raises SetupError, and stays UNLOADED."""
        loop = asyncio.get_running_loop()
        async with self._turning:
            if self.state is State.READY:
                return
            self.state = State.LOADING
            before, started = memory.resident_bytes(), loop.time()
            try:
                backend = await loop.run_in_executor(None, self._load, self._source)
                await loop.run_in_executor(self._threads, self._warm_up, backend)
            except Exception as exc:
                self.state = State.UNLOADED
                if isinstance(exc, PixvecError):
                    raise
                raise BackendError(f"model {self.name} could not be loaded: {exc}") from exc
            self._backend = backend
            self._used_at = loop.time()
            self.state = State.READY
        _log.info(
            "model ready",
            model=self.name,
            build=self.build(EMBEDDING),
            why=self.placement.why,
            trained=self.manifest.trained,
            seconds=round(loop.time() - started, 2),
            memory_mib=(memory.resident_bytes() - before) // _MIB,
        )
        if self._residency.idle_unload_s:
            self._watching = asyncio.create_task(self._unload_when_idle())

    def _warm_up(self, backend: Backend) -> None:
        """Run each tower once for each size, so that no caller pays for compilation."""
        for tower in self.manifest.towers:
            for size in sorted({1, self.options.max_batch}):
                backend.run(tower, example(self.manifest, tower, size), (EMBEDDING,))

    async def _unload_when_idle(self) -> None:
        """Sleep until the model has been idle for long enough, then release it."""
        loop = asyncio.get_running_loop()
        idle = self._residency.idle_unload_s
        while self.state is State.READY:
            left = self._used_at + idle - loop.time()
            if self._using or left > 0:
                await asyncio.sleep(max(left, _LOOK_AGAIN_S))
                continue
            async with self._turning:
                if not self._using:
                    await self._release()

    async def _release(self) -> None:
        loop = asyncio.get_running_loop()
        self.state = State.UNLOADED
        before = memory.resident_bytes()
        await loop.run_in_executor(self._threads, self._backend.close)
        del self._backend
        await loop.run_in_executor(None, memory.give_back)
        after = memory.resident_bytes()
        _log.info(
            "model unloaded",
            model=self.name,
            idle_s=self._residency.idle_unload_s,
            memory_mib=after // _MIB,
            returned_mib=(before - after) // _MIB,
        )

    async def _run(self, jobs: Sequence[_Job]) -> Sequence[Inference]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        outputs = jobs[0].outputs
        values = await loop.run_in_executor(self._threads, self._compute, jobs, outputs)
        seconds = loop.time() - started
        self._metrics.compute_seconds.labels(self.name).observe(seconds)
        self.statistics(jobs[0].view).batch(len(jobs), seconds)
        for job in jobs:
            self.statistics(job.view).items += 1
        return [
            Inference({name: values[name][i] for name in outputs}, started - job.arrived, seconds)
            for i, job in enumerate(jobs)
        ]

    def _compute(self, jobs: Sequence[_Job], outputs: tuple[str, ...]) -> dict[str, F32]:
        batch = np.stack([job.work.array for job in jobs])
        return dict(self._backend.run(jobs[0].work.tower, batch, outputs))

    def _on_batch(self, report: BatchReport) -> None:
        self._metrics.batch_size.labels(self.name).observe(report.size)
        for wait in report.waits:
            self._metrics.queue_seconds.labels(self.name).observe(wait)
        self._item_s = smooth(self._item_s, report.seconds / report.size / self.options.instances)


def build_id(space: str, place: Placement, decode_mode: str, spec: PreprocessSpec) -> str:
    """Name the recipe of vectors: their space, the engine and its precision, decoding, resizing."""
    kernel = f"{RESIZE_KERNEL}-{spec.interpolation}{'' if spec.antialias else '-plain'}"
    return f"{space}/{place.kind}-{place.precision}/{decode_mode if spec.antialias else 'exact'}/{kernel}"


def smooth(average: float, value: float) -> float:
    """Return an exponentially weighted average; the first value is taken as it is."""
    return average + (value - average) * (_SMOOTHING if average else 1.0)


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
