"""A stream of messages, read no faster than it is answered: a slow reader costs no memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pixvec_server.errors import DrainingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Q = TypeVar("Q")
A = TypeVar("A")


class Flow(Generic[Q, A]):
    """One stream.

    At most `window` messages are read and not yet written out; the next read waits for a write, and writes
    wait for the caller. A message keeps its place in the window until its answer has left. `ordered`: answers
    leave in the order of their messages, else as they are done.
    """

    def __init__(
        self,
        answer: Callable[[Q], Awaitable[A]],
        write: Callable[[A], Awaitable[None]],
        window: int,
        draining: asyncio.Event,
        *,
        ordered: bool = False,
    ) -> None:
        self._answer = answer
        self._write = write
        self._window = asyncio.Semaphore(window)
        self._draining = draining
        self._ordered = ordered
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, requests: AsyncIterator[Q]) -> None:
        """Answer every message. Raises DrainingError when the server stops, after what was read."""
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        draining = asyncio.ensure_future(self._draining.wait())
        before = _written()
        try:
            while (request := await self._next(requests, draining)) is not None:
                after = asyncio.Event()
                task = asyncio.create_task(self._serve_one(request, before, after))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
                before = after if self._ordered else before
            await asyncio.gather(*self._tasks)
            self._check()
        finally:
            draining.cancel()
            if not self._broken.cancel():
                self._broken.exception()  # was seen: a task has raised the same
            for task in self._tasks:
                task.cancel()
        if self._draining.is_set():
            raise DrainingError("the server is stopping: send what is unanswered to another replica")

    async def _next(self, requests: AsyncIterator[Q], draining: asyncio.Task[Literal[True]]) -> Q | None:
        """Return the next message once there is room for it; None at the end, or when the server stops."""
        await self._window.acquire()
        if draining.done():
            return None
        read = asyncio.ensure_future(anext(requests, None))
        try:
            await asyncio.wait((read, draining, self._broken), return_when=asyncio.FIRST_COMPLETED)
            self._check()
            return read.result() if read.done() else None
        finally:
            read.cancel()

    def _check(self) -> None:
        """Raise what has broken the stream."""
        if self._broken.done():
            self._broken.result()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # is in _broken already

    async def _serve_one(self, request: Q, before: asyncio.Event, after: asyncio.Event) -> None:
        try:
            response = await self._answer(request)
            await before.wait()
            async with self._writing:
                # No hole: after a message that failed none is answered.
                if not self._broken.done():
                    await self._write(response)
        except Exception as exc:
            if not self._broken.done():
                self._broken.set_exception(exc)
            raise
        finally:
            after.set()
            self._window.release()


def _written() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
