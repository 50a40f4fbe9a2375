"""EmbedStream as calls: each message is answered by its id, and a broken stream fails those unanswered.

One class for each transport, of the same three verbs: `send` a call's message and get its Pending, tell
whether the stream is `broken`, `close` it.
"""

import asyncio
import queue
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import Lock, Thread
from typing import Any

import grpc

from ._effects import Rpc
from ._errors import DeadlineError, PixvecError, UnavailableError, from_rpc

_LATE = "{} did not answer a message within the timeout"


def _closed(target: str) -> PixvecError:
    return PixvecError(f"the stream to {target} was closed by this client", code="CANCELLED")


class _Answer:
    """The answer to one message, for a thread that waits until its deadline."""

    def __init__(self, rpc: Rpc, target: str) -> None:
        self._deadline = rpc.deadline
        self._target = target
        self.future: Future[Any] = Future()

    def result(self) -> Any:  # noqa: ANN401 - the response's own type
        try:
            return self.future.result(max(self._deadline - time.monotonic(), 0.001))
        except FutureTimeoutError as error:
            self.future.cancel()
            raise DeadlineError(_LATE.format(self._target)) from error

    def cancel(self) -> bool:
        return self.future.cancel()

    def done(self) -> bool:
        return self.future.done()


class ThreadStream:
    """An EmbedStream of a grpc.Channel; a thread of its own takes the answers."""

    def __init__(self, method: Any, rpc: Rpc, target: str) -> None:  # noqa: ANN401 - grpc ships no types
        self._target = target
        self._sending: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._lock = Lock()
        self._failure: PixvecError | None = None
        self._closed = False
        self._call = method(iter(self._sending.get, None), metadata=rpc.metadata)
        Thread(target=self._receive, name="pixvec-stream", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether it can carry nothing more."""
        return self._failure is not None

    def send(self, rpc: Rpc) -> _Answer:
        """Send a message; its answer fails when the stream does."""
        answer = _Answer(rpc, self._target)
        with self._lock:
            if self._failure is None:
                self._waiting[rpc.request.id] = answer.future
                answer.future.add_done_callback(lambda _: self._waiting.pop(rpc.request.id, None))
                self._sending.put(rpc.request)
            else:
                answer.future.set_exception(self._failure)
        return answer

    def close(self) -> None:
        """End it without an error when everything is answered; else cancel what is under way."""
        self._closed = True
        self._sending.put(None)
        if self._waiting:
            self._call.cancel()

    def _receive(self) -> None:
        failure: PixvecError = UnavailableError(f"{self._target} ended the stream")
        try:
            for response in self._call:
                future = self._waiting.pop(response.id, None)
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_result(response)
        except grpc.RpcError as error:
            failure = from_rpc(error, self._target)
        finally:
            self._fail(_closed(self._target) if self._closed else failure)

    def _fail(self, failure: PixvecError) -> None:
        with self._lock:
            self._failure = failure
            left = list(self._waiting.values())
        # A thread of gRPC's waits for the next message.
        self._sending.put(None)
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)


class TaskStream:
    """An EmbedStream of a grpc.aio.Channel; a task takes the answers."""

    def __init__(self, method: Any, rpc: Rpc, target: str) -> None:  # noqa: ANN401 - grpc ships no types
        self._target = target
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._writing = asyncio.Lock()
        self._failure: PixvecError | None = None
        self._closed = False
        self._call = method(metadata=rpc.metadata)
        self._receiving = asyncio.create_task(self._receive())

    @property
    def broken(self) -> bool:
        """Whether it can carry nothing more."""
        return self._failure is not None

    def send(self, rpc: Rpc) -> "asyncio.Task[Any]":
        """Send a message; its answer fails when the stream does."""
        task = asyncio.create_task(self._exchange(rpc))
        # A run that was given up asks for no outcome: asyncio would report the failure as forgotten.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return task

    def close(self) -> None:
        """End it without an error when everything is answered; else cancel what is under way."""
        self._closed = True
        if self._waiting or self.broken:
            self._call.cancel()
            self._receiving.cancel()
        else:
            self._ending = asyncio.create_task(self._call.done_writing())

    async def _exchange(self, rpc: Rpc) -> Any:  # noqa: ANN401 - the response's own type
        if self._failure is not None:
            raise self._failure
        self._waiting[rpc.request.id] = future = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(max(rpc.deadline - time.monotonic(), 0.001)):
                async with self._writing:
                    await self._write(rpc)
                return await future
        except TimeoutError as error:
            raise DeadlineError(_LATE.format(self._target)) from error
        finally:
            self._waiting.pop(rpc.request.id, None)
            future.cancel()

    async def _write(self, rpc: Rpc) -> None:
        try:
            await self._call.write(rpc.request)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            # Why it broke is the reading side's to say.
            await asyncio.wait((self._receiving,))
            raise self._failure or UnavailableError(f"{self._target} ended the stream") from error

    async def _receive(self) -> None:
        failure: PixvecError = UnavailableError(f"{self._target} ended the stream")
        try:
            async for response in self._call:
                future = self._waiting.get(response.id)
                if future is not None and not future.done():
                    future.set_result(response)
        except grpc.RpcError as error:
            failure = from_rpc(error, self._target)
        finally:
            # Cancelled it is by a closed channel, and by gRPC when a message's time runs out half written.
            self._fail(_closed(self._target) if self._closed else failure)

    def _fail(self, failure: PixvecError) -> None:
        self._failure = failure
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(failure)
