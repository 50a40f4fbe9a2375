"""EmbedStream's flow: reads no faster than it answers, so that a slow reader costs no memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import BadOptionError, DrainingError, RequestError
from pixvec_server.rpc.messages import write_result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

_MAX_ID_BYTES = 256


class Stream:
    """One EmbedStream.

    At most `window` messages are read and not yet written out; the next read waits for a write, and writes
    wait for the caller. A message keeps its place in the window until its answer has left.
    """

    def __init__(
        self,
        answer: Callable[[pb.EmbedStreamRequest, Sequence[pb.Target]], Awaitable[pb.EmbedStreamResponse]],
        write: Callable[[pb.EmbedStreamResponse], Awaitable[None]],
        window: int,
        draining: asyncio.Event,
    ) -> None:
        self._answer = answer
        self._write = write
        self._window = asyncio.Semaphore(window)
        self._draining = draining
        self._writing = asyncio.Lock()
        self._open_ids: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: Sequence[pb.Target] | None = None

    async def serve(self, requests: AsyncIterator[pb.EmbedStreamRequest]) -> None:
        """Answer every message. Raises DrainingError when the server stops, after what was read."""
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            while (request := await self._next(requests, draining)) is not None:
                task = asyncio.create_task(self._serve_one(request))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
            await asyncio.gather(*self._tasks)
        finally:
            draining.cancel()
            self._broken.cancel()
            for task in self._tasks:
                task.cancel()
        if self._draining.is_set():
            raise DrainingError("the server is stopping: send the unanswered ids to another replica")

    async def _next(
        self, requests: AsyncIterator[pb.EmbedStreamRequest], draining: asyncio.Task[Literal[True]]
    ) -> pb.EmbedStreamRequest | None:
        """Return the next message once there is room for it; None at the end, or when the server stops."""
        await self._window.acquire()
        if draining.done():
            return None
        read = asyncio.ensure_future(anext(requests, None))
        try:
            await asyncio.wait((read, draining, self._broken), return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                self._broken.result()
            return read.result() if read.done() else None
        finally:
            read.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) and not self._broken.done():
            self._broken.set_exception(failure)

    async def _serve_one(self, request: pb.EmbedStreamRequest) -> None:
        try:
            if self._first is None:
                # A copy: the message itself, images and all, would live as long as the stream.
                self._first = pb.EmbedStreamRequest(targets=request.targets).targets
            response = self._refuse(request)
            if response is None:
                self._open_ids.add(request.id)
                try:
                    response = await self._answer(request, self._first)
                finally:
                    self._open_ids.discard(request.id)
            async with self._writing:
                await self._write(response)
        finally:
            self._window.release()

    def _refuse(self, request: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse | None:
        if len(request.id.encode()) > _MAX_ID_BYTES:
            error = BadOptionError(f"the id is over {_MAX_ID_BYTES} bytes", field="id")
        elif request.id in self._open_ids:
            error = BadOptionError(
                f"id {request.id!r} is still unanswered: give each message its own", field="id"
            )
        else:
            return None
        return refuse(request, error)


def refuse(request: pb.EmbedStreamRequest, error: RequestError) -> pb.EmbedStreamResponse:
    """Answer a message as a whole with one error, for each of its inputs."""
    results = [write_result(error)] * max(1, len(request.inputs))
    return pb.EmbedStreamResponse(id=request.id, results=results)
