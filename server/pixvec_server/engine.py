"""One model: its bundle, its backend, its batcher, and when it is in memory."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixvec_server import log, memory
from pixvec_server.backends.base import example
from pixvec_server.batching import Batcher, BatchReport
from pixvec_server.errors import (
    BackendError,
    DrainingError,
    ModelNotReadyError,
    PixvecError,
    RequestError,
)
from pixvec_server.served import EngineOptions, Inference, Prepared, Served, Work
from pixvec_server.spec import EMBEDDING
from pixvec_server.statistics import smooth
from pixvec_server.threads import Threads
from pixvec_server.types import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pixvec_server.backends.base import Backend, Placement
    from pixvec_server.metrics import Metrics
    from pixvec_server.types import F32

_MIB = 1 << 20
_LOOK_AGAIN_S = 0.05  # while a call is under way
_GATHER_S = 10.0  # for all threads to begin
_log = log.get("engine")


@dataclass(frozen=True, slots=True)
class Residency:
    """When a model is in memory: from the start or from its first use, and for how long without any.

    `idle_unload_s` 0: for good.
    """

    on_first_use: bool = False
    idle_unload_s: float = 0.0


ALWAYS = Residency()


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work
    outputs: tuple[str, ...]
    arrived: float
    view: str


@dataclass(frozen=True, slots=True)
class _Backends:
    """What runs batches side by side, and what runs one that has the machine to itself: often the same."""

    shared: Backend
    lone: Backend

    @property
    def distinct(self) -> tuple[Backend, ...]:
        return (self.shared,) if self.lone is self.shared else (self.shared, self.lone)

    def close(self) -> None:
        for backend in self.distinct:
            backend.close()


class Engine(Served):
    """A served model that runs in this process."""

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Prepared],
        load: Callable[[Prepared, int], Backend],
        options: Callable[[Placement], EngineOptions],
        metrics: Metrics,
        *,
        residency: Residency = ALWAYS,
        on_state: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name, options, metrics)
        self._state = State.LOADING
        self._on_state = on_state
        self._stopped = False
        self._prepare = prepare
        self._load = load
        self._residency = residency
        self._item_s = 0.0  # smoothed seconds that one item keeps the device
        self._batch_s = 0.0  # smoothed seconds that a batch takes
        self._using = 0  # inferences asked for and not yet answered
        self._used_at = 0.0
        self._turning = asyncio.Lock()  # held while the backend comes or goes
        self._waking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """See `Served.state`."""
        return self._state

    def _become(self, state: State) -> None:
        self._state = state
        self._on_state()

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
            self._become(State.FAILED)
            if isinstance(exc, PixvecError):
                raise
            raise BackendError(f"model {self.name} could not be loaded: {exc}") from exc

    def _open(self, prepared: Prepared) -> None:
        self._source = prepared
        self.know(prepared)
        self._threads = Threads(self.options.instances, f"run-{self.name}")
        self._batcher: Batcher[_Job, Inference] = Batcher(
            self._run,
            max_batch=self.options.max_batch,
            max_delay=self.options.max_delay_s,
            instances=self.options.instances,
            key=lambda job: (job.work.tower, job.outputs),
            wanted=lambda job: not job.work.dropped,
            takes=lambda: self._batch_s,
            clock=asyncio.get_running_loop().time,
            on_batch=self._on_batch,
        )
        self._watch()
        self._become(State.UNLOADED)

    def _watch(self) -> None:
        self._metrics.watch(self._metrics.queue_items, self.name, lambda: self._batcher.queued)
        self._metrics.watch(self._metrics.inflight_items, self.name, lambda: self.inflight)
        self._metrics.watch(self._metrics.model_loaded, self.name, lambda: self.state is State.READY)
        self._metrics.model_info.labels(self.name).info(self.information())

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
            self._backends.close()
        self._become(State.UNLOADED)
        self._threads.close()
        return True

    @property
    def queue_s(self) -> float:
        """See `Served.queue_s`."""
        # What is still being decoded, or is on the device, comes first as well.
        ahead = max(self.inflight, self._using)
        return ahead * self._item_s + self._batch_s if ahead else 0.0

    async def infer(self, work: Work, outputs: Sequence[str], deadline: float, view: str = "") -> Inference:
        """See `Served.infer`."""
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

    def submit(
        self, work: Work, outputs: Sequence[str], deadline: float, view: str = ""
    ) -> asyncio.Future[Inference]:
        """Do as `infer`, without a task where the model is in memory. Raises DrainingError when stopped."""
        if self.state is not State.READY:
            return asyncio.ensure_future(self.infer(work, outputs, deadline, view))
        loop = asyncio.get_running_loop()
        job = _Job(work, tuple(sorted(set(outputs))), loop.time(), view)
        future = self._batcher.enqueue(job, deadline=deadline)
        self._using += 1
        future.add_done_callback(self._served)
        return future

    def _served(self, _future: asyncio.Future[Inference]) -> None:
        self._using -= 1
        self._used_at = asyncio.get_running_loop().time()

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
            self._become(State.LOADING)
            before, started = memory.resident_bytes(), loop.time()
            try:
                backends = await loop.run_in_executor(None, self._make)
                await self._warm_up(backends)
            except Exception as exc:
                self._become(State.UNLOADED)
                if isinstance(exc, PixvecError):
                    raise
                raise BackendError(f"model {self.name} could not be loaded: {exc}") from exc
            self._backends = backends
            self._used_at = loop.time()
            self._become(State.READY)
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

    def _make(self) -> _Backends:
        shared = self._load(self._source, self.options.instances)
        return _Backends(shared, self._load(self._source, 1) if self.placement.lone else shared)

    async def _warm_up(self, backends: _Backends) -> None:
        """Run each tower once for each size in every thread, so that no caller pays for compilation."""
        together = threading.Barrier(self.options.instances)

        def run() -> None:
            together.wait(_GATHER_S)
            for tower in self.manifest.towers:
                for size in sorted({1, self.options.max_batch}):
                    for backend in backends.distinct:
                        backend.run(tower, example(self.manifest, tower, size), (EMBEDDING,))

        await asyncio.gather(*(self._threads.run(run) for _ in range(self.options.instances)))

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
        self._become(State.UNLOADED)
        before = memory.resident_bytes()
        await self._threads.run(self._backends.close)
        del self._backends
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
        alone = max(self._using, self.inflight) <= len(jobs)
        backend = self._backends.lone if alone else self._backends.shared
        values = await self._threads.run(_compute, backend, jobs, outputs)
        seconds = loop.time() - started
        self._metrics.compute_seconds.labels(self.name).observe(seconds)
        self.statistics(jobs[0].view).batch(len(jobs), seconds)
        for job in jobs:
            self.statistics(job.view).items += 1
        return [
            Inference(
                {name: values[name][i] for name in outputs},
                started - job.arrived,
                seconds,
                0 if i else len(jobs),
            )
            for i, job in enumerate(jobs)
        ]

    def _on_batch(self, report: BatchReport) -> None:
        self._metrics.batch_size.labels(self.name).observe(report.size)
        queue_seconds = self._metrics.queue_seconds.labels(self.name)
        for wait in report.waits:
            queue_seconds.observe(wait)
        self._item_s = smooth(self._item_s, report.seconds / report.size / self.options.instances)
        self._batch_s = smooth(self._batch_s, report.seconds)


def _compute(backend: Backend, jobs: Sequence[_Job], outputs: tuple[str, ...]) -> dict[str, F32]:
    batch = np.stack([job.work.array for job in jobs])
    return dict(backend.run(jobs[0].work.tower, batch, outputs))
