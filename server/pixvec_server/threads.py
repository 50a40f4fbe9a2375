"""Threads that work for one event loop.

`loop.run_in_executor` costs 40 to 120 µs of processor time a call, most of it in waking the loop. Here what
ends while the loop is busy is handed over at one go: 6 µs a call with 32 in hand; half the executor's with
one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
# A thread that comes back from a codec or a network asks for the interpreter after this long; Python's own
# 5 ms leave a processor idle meanwhile, while the event loop is busy.
_SWITCH_S = 0.0005


class _Task(NamedTuple):
    future: asyncio.Future[Any]
    function: Callable[..., Any]
    arguments: tuple[object, ...]


class Threads:
    """`count` threads, started at once, that end with `close` or with the process.

    The first one sets how soon this process's threads change places.
    """

    def __init__(self, count: int, name: str) -> None:
        sys.setswitchinterval(_SWITCH_S)
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._handing_over = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Have a function called; what it returns or raises is the future's. A cancelled one is not begun."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tasks.put(_Task(future, function, arguments))
        return future

    def close(self) -> None:
        """Cancel what has not begun, and let each thread end when it is done."""
        while not self._tasks.empty():
            task = self._tasks.get()
            if task is not None:
                task.future.cancel()
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not task.future.cancelled():
                self._done.append((task.future, *_outcome(task)))
                self._wake(task.future.get_loop())
            del task  # or an idle thread would keep the last one's pixels

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._handing_over:
            self._handing_over = True
            try:
                loop.call_soon_threadsafe(self._hand_over)
            except RuntimeError:  # the loop is closed: nobody waits
                self._handing_over = False

    def _hand_over(self) -> None:
        # First of all: what is done from here on may wake the loop again.
        self._handing_over = False
        while self._done:
            future, result, error = self._done.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


def _outcome(task: _Task) -> tuple[Any, BaseException | None]:
    try:
        return task.function(*task.arguments), None
    except BaseException as exc:  # noqa: BLE001 - it is raised where the result is awaited
        return None, exc
