"""Dynamic batching and admission in pure asyncio. Knows no image, no gRPC, no numpy."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from pixvec_server.errors import DeadlineError, DrainingError, InternalError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch was: its size, each item's wait before it, and its run time, in seconds."""

    size: int
    waits: tuple[float, ...]
    seconds: float


@dataclass(slots=True)
class _Entry(Generic[T, R]):
    order: int
    item: T
    future: asyncio.Future[R]
    arrived: float
    deadline: float | None


class Batcher(Generic[T, R]):
    """Groups items into batches and runs them, `instances` at a time.

    The rules: an idle instance never waits, unless `max_delay` (seconds from the oldest item's arrival) is
    configured; while all instances are busy the queue grows, so that full batches leave at once; items of
    different `key` never share a batch, and the key whose oldest item waited longest goes first; cancelled,
    expired and no longer `wanted` items are dropped when the batch forms, and with them those that would
    expire before it is done; a failing batch is split in two until only the culprit fails; leaving the
    context answers what is queued first. There is no polling: arrivals, ended batches and one timer drive it.

    `run` takes 1 to `max_batch` items and answers as many results, in order. `clock` is monotonic seconds;
    `takes` is the seconds that a batch takes.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        max_delay: float = 0.0,
        instances: int = 1,
        key: Callable[[T], Hashable] = lambda _item: None,
        wanted: Callable[[T], bool] = lambda _item: True,
        takes: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[BatchReport], None] = lambda _report: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._free = instances
        self._key = key
        self._wanted = wanted
        self._takes = takes
        self._clock = clock
        self._on_batch = on_batch
        self._queues: dict[Hashable, deque[_Entry[T, R]]] = {}
        self._order = itertools.count()
        self._running: set[asyncio.Task[None]] = set()
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queued(self) -> int:
        """Items that wait for a batch, the dead ones that have not been dropped yet included."""
        return sum(map(len, self._queues.values()))

    async def submit(self, item: T, *, deadline: float | None = None) -> R:
        """Queue an item and wait for its result.

        Raises DeadlineError when the batch forms after `deadline` (on `clock`), DrainingError when closed,
        and whatever `run` raised for this item alone.
        """
        return await self.enqueue(item, deadline=deadline)

    def enqueue(self, item: T, *, deadline: float | None = None) -> asyncio.Future[R]:
        """Queue an item; the future is what `submit` waits for, and to cancel it drops the item.

        Raises DrainingError when closed.
        """
        if self._closed:
            raise DrainingError("the model is being unloaded; try another replica")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        entry = _Entry(next(self._order), item, future, self._clock(), deadline)
        self._queues.setdefault(self._key(item), deque()).append(entry)
        self._idle.clear()
        self._wake()
        return future

    async def __aenter__(self) -> Self:
        """Open for submissions."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Refuse new items, answer the queued ones, return when nothing runs."""
        self._closed = True
        self._wake()
        await self._idle.wait()

    def _wake(self) -> None:
        # Deferred to the end of this turn of the loop: items that arrive together share a batch.
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._free:
            return
        self._drop_dead()
        while self._free and (queue := self._due_queue()):
            batch = [queue.popleft() for _ in range(min(self._max_batch, len(queue)))]
            self._free -= 1
            task = asyncio.create_task(self._run_batch(batch))
            self._running.add(task)
        if self._free and self._queues:
            wait = min(map(self._hold, self._queues.values()))
            self._timer = asyncio.get_running_loop().call_later(wait, self._pump)
        if not self._queues and not self._running:
            self._idle.set()

    def _drop_dead(self) -> None:
        now = self._clock()
        for key in list(self._queues):
            alive = deque(entry for entry in self._queues[key] if self._alive(entry, now))
            if alive:
                self._queues[key] = alive
            else:
                del self._queues[key]
        self._drop_hopeless(now + self._takes())

    def _drop_hopeless(self, done: float) -> None:
        """Drop what would expire while its batch runs, unless nothing else is left to run.

        The estimate may be wrong, and only a batch can put it right.
        """
        late = [
            entry
            for entry in itertools.chain.from_iterable(self._queues.values())
            if entry.deadline is not None and entry.deadline < done
        ]
        if not late or len(late) == self.queued:
            return
        for entry in late:
            entry.future.set_exception(DeadlineError("too little time was left for a batch"))
        waiting = {
            key: deque(entry for entry in queue if not entry.future.done())
            for key, queue in self._queues.items()
        }
        self._queues = {key: queue for key, queue in waiting.items() if queue}

    def _alive(self, entry: _Entry[T, R], now: float) -> bool:
        if entry.future.done():
            return False
        if not self._wanted(entry.item):
            entry.future.cancel()
            return False
        if entry.deadline is not None and entry.deadline <= now:
            entry.future.set_exception(DeadlineError("the deadline passed while the item waited for a batch"))
            return False
        return True

    def _due_queue(self) -> deque[_Entry[T, R]] | None:
        """Find the queue that may leave now and whose head arrived first."""
        for key in [key for key, queue in self._queues.items() if not queue]:
            del self._queues[key]
        due = (queue for queue in self._queues.values() if self._hold(queue) <= 0)
        return min(due, key=lambda queue: queue[0].order, default=None)

    def _hold(self, queue: deque[_Entry[T, R]]) -> float:
        if self._closed or len(queue) >= self._max_batch:
            return 0.0
        return queue[0].arrived + self._max_delay - self._clock()

    async def _run_batch(self, batch: Sequence[_Entry[T, R]]) -> None:
        started = self._clock()
        try:
            await self._answer(batch)
        finally:
            waits = tuple(started - entry.arrived for entry in batch)
            self._free += 1
            self._running.discard(asyncio.current_task())
            self._wake()
            self._on_batch(BatchReport(len(batch), waits, self._clock() - started))

    async def _answer(self, batch: Sequence[_Entry[T, R]]) -> None:
        try:
            results = await self._run([entry.item for entry in batch])
        except asyncio.CancelledError:
            _fail(batch, InternalError("the batch was cancelled"))
            raise
        except Exception as exc:  # noqa: BLE001 - whatever the backend raises reaches the waiters, not the loop
            await self._bisect(batch, exc)
            return
        if len(results) != len(batch):
            _fail(batch, InternalError(f"the backend gave {len(results)} results for {len(batch)} items"))
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)

    async def _bisect(self, batch: Sequence[_Entry[T, R]], exc: Exception) -> None:
        if len(batch) == 1:
            _fail(batch, exc)
            return
        middle = len(batch) // 2
        await self._answer(batch[:middle])
        await self._answer(batch[middle:])


def _fail(batch: Sequence[_Entry[T, R]], exc: Exception) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(exc)


class Admission:
    """A bound on work in hand, in items and bytes, on one event loop.

    `take` is all or nothing and never waits; `wait` is for streams, whose own flow control is the window.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.items = 0
        self.bytes = 0
        self._waiters: deque[object] = deque()
        self._freed = asyncio.Event()

    @contextmanager
    def take(self, items: int, size: int) -> Iterator[None]:
        """Hold room for the body's length. Raises OverloadedError at once when there is none."""
        self.check(items, size)
        self.items += items
        self.bytes += size
        try:
            yield
        finally:
            self.items -= items
            self.bytes -= size
            self._freed.set()

    def check(self, items: int, size: int) -> None:
        """Raise OverloadedError when so much does not fit now."""
        if not self._fits(items, size):
            raise OverloadedError(
                f"the server has {self.items} of {self._max_items} items and {self.bytes} of "
                f"{self._max_bytes} bytes in hand; {items} items of {size} bytes do not fit now"
            )

    async def wait(self, items: int, size: int) -> None:
        """Return when `take` of the same would succeed; those who wait are served in their order."""
        ticket = object()
        self._waiters.append(ticket)
        try:
            while self._waiters[0] is not ticket or not self._fits(items, size):
                self._freed.clear()
                await self._freed.wait()
        finally:
            self._waiters.remove(ticket)
            self._freed.set()

    def _fits(self, items: int, size: int) -> bool:
        return self.items + items <= self._max_items and self.bytes + size <= self._max_bytes
