"""Around every call: request id, token, clock, log, metrics, and the mapping of whatever goes wrong.

One interceptor for every service on the port, so that no method can be forgotten. A failure is sent
trailers-only: nothing is sent before the outcome is known.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from pixvec_server import log
from pixvec_server.errors import (
    BadOptionError,
    DrainingError,
    InternalError,
    OverloadedError,
    RequestError,
)
from pixvec_server.rpc import call as calls
from pixvec_server.rpc.messages import write_error
from pixvec_server.rpc.status import UnauthenticatedError, code_of, trailers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from pixvec_server.metrics import Metrics
    from pixvec_server.rpc.auth import TokenAuth
    from pixvec_server.rpc.call import Call
    from pixvec_server.rpc.drain import Drain

# Services whose streams end by themselves when the server drains.
_OURS = ("/pixvec.", "/inference.")
_Parse: TypeAlias = "Callable[[bytes], Any] | None"
_log = log.get("rpc")


class Observer(grpc.aio.ServerInterceptor):  # type: ignore[misc] # grpc ships no types
    """Wraps every handler. `open_streams` holds the tasks of health's Watch and of reflection.

    `turn_away` raises RequestError for a call of one message that need not be read. Messages are parsed here,
    after that: grpc itself would answer what is no message with our exception's text.
    """

    def __init__(
        self,
        metrics: Metrics,
        auth: TokenAuth,
        version: str,
        turn_away: Callable[[Call], None],
        drain: Drain,
    ) -> None:
        self._metrics = metrics
        self._auth = auth
        self._server_id = f"{version}/{socket.gethostname()}"
        self._turn_away = turn_away
        self._drain = drain
        self._refusals = log.Sparse()
        self.open_streams: set[asyncio.Task[None]] = set()
        self._ending = False

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        """Return the handler, wrapped."""
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method
        try:
            self._auth.check(method, dict(details.invocation_metadata))
        except UnauthenticatedError as exc:
            # As a stream, so that the body of a call without a token is never read.
            return grpc.stream_stream_rpc_method_handler(self._deny(method, str(exc)))
        parse, answer = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            wrapped = self._unary(method, handler.unary_unary, parse)
            return grpc.unary_unary_rpc_method_handler(wrapped, None, answer)
        if handler.unary_stream:
            wrapped = self._stream(method, handler.unary_stream, parse)
            return grpc.unary_stream_rpc_method_handler(wrapped, None, answer)
        wrapped = self._stream(method, handler.stream_stream, parse)
        return grpc.stream_stream_rpc_method_handler(wrapped, None, answer)

    def end_open_streams(self) -> None:
        """End the streams that have no end of their own: they would use up the whole grace of a stop."""
        self._ending = True
        for task in self.open_streams:
            task.cancel()

    def _unary(
        self, method: str, inner: Callable[..., Awaitable[Any]], parse: _Parse
    ) -> Callable[..., Awaitable[Any]]:
        async def handle(request: bytes, context: Any) -> Any:
            async with _Guard(self, method, context) as call:
                self._drain.accept(context)
                call.check()
                self._turn_away(call)
                return await inner(_parsed(request, parse), context)

        return handle

    def _stream(
        self, method: str, inner: Callable[..., Any], parse: _Parse
    ) -> Callable[..., Awaitable[None]]:
        endless = not method.startswith(_OURS)

        async def handle(request: Any, context: Any) -> None:
            async with _Guard(self, method, context) as call:
                self._drain.accept(context)
                call.check()
                many = hasattr(request, "__aiter__")
                incoming = _each(request, parse) if many else _parsed(request, parse)
                answering = _forward(inner(incoming, context), context)
                await (self._until_the_end(answering) if endless else answering)

        return handle

    async def _until_the_end(self, answering: Coroutine[Any, Any, None]) -> None:
        if self._ending:
            answering.close()
            raise DrainingError("the server is stopping; ask another replica")
        task = asyncio.ensure_future(answering)
        self.open_streams.add(task)
        try:
            await task
        except asyncio.CancelledError:
            # Left as it is, a cancelled handler sends no status, and the call stays open.
            if self._ending:
                raise DrainingError("the server is stopping; ask another replica") from None
            raise
        finally:
            self.open_streams.discard(task)

    def _deny(self, method: str, why: str) -> Callable[..., Awaitable[None]]:
        async def handle(_requests: Any, context: Any) -> None:
            call = self.begin(method, context)
            self.end(call, grpc.StatusCode.UNAUTHENTICATED, why)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, why, self.metadata(call))

        return handle

    def begin(self, method: str, context: Any) -> Call:
        """Read the call's metadata, and bind its request id to the log."""
        metadata = {
            key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        call = calls.read(method, metadata, context.time_remaining())
        calls.current.set(call)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=call.request_id, method=method)
        self._metrics.lanes.labels(call.lane if call.lane in calls.LANES else "unknown").inc()
        self._metrics.retries.inc(call.attempts)
        return call

    def end(self, call: Call, code: grpc.StatusCode, why: str, *, sparse: bool = False) -> None:
        """Count and log a call that has ended; of those that are `sparse`, one a second and method."""
        seconds = asyncio.get_running_loop().time() - call.arrived
        self._metrics.requests.labels(call.method, code.name).inc()
        words = {"code": code.name, "seconds": round(seconds, 6), "lane": call.lane, "tenant": call.tenant}
        unsaid = self._refusals.due(call.method) if sparse else 0
        if code is grpc.StatusCode.OK:
            _log.debug("call", **words)
        elif unsaid is None:
            _log.debug("call failed", **words, why=why)
        else:
            _log.warning("call failed", **words, why=why, **({"unsaid": unsaid} if unsaid else {}))

    def metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        """Return the trailing metadata of every call."""
        return (("x-request-id", call.request_id), ("pixvec-server", self._server_id))


class _Guard:
    """The body of one call: maps what it raises and never lets an inside of ours out."""

    def __init__(self, observer: Observer, method: str, context: Any) -> None:
        self._observer = observer
        self._method = method
        self._context = context

    async def __aenter__(self) -> Call:
        self._call = self._observer.begin(self._method, self._context)
        self._context.set_trailing_metadata(self._observer.metadata(self._call))
        return self._call

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if exc is None:
            self._observer.end(self._call, self._context.code() or grpc.StatusCode.OK, "")
        elif isinstance(exc, asyncio.CancelledError):
            self._observer.end(
                self._call, grpc.StatusCode.CANCELLED, "the caller went away, or the server stops"
            )
        elif isinstance(exc, grpc.aio.AbortError):
            self._observer.end(self._call, self._context.code() or grpc.StatusCode.UNKNOWN, "refused")
        elif isinstance(exc, RequestError):
            await self._fail(exc)
        elif isinstance(exc, NotImplementedError) and self._context.code() is grpc.StatusCode.UNIMPLEMENTED:
            # A generated base class answers a method that its service does not have.
            self._observer.end(self._call, grpc.StatusCode.UNIMPLEMENTED, "the method is not implemented")
            await self._context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"{self._method} is not implemented by this server"
            )
        elif isinstance(exc, Exception):
            _log.error("a call failed for a reason of ours", exc_info=exc)
            await self._fail(InternalError("the server failed on this call"))

    async def _fail(self, error: RequestError) -> None:
        if isinstance(error, InternalError):
            error.message += f" (request id {self._call.request_id})"
        message, code = write_error(error), code_of(error, self._method)
        message.code = code.value[0]
        # A line for each refusal would cost more than the refusal.
        sparse = isinstance(error, OverloadedError | DrainingError)
        self._observer.end(self._call, code, message.message, sparse=sparse)
        metadata = (*self._observer.metadata(self._call), *trailers(error, message))
        await self._context.abort(code, message.message, metadata)


def _parsed(data: bytes, parse: _Parse) -> Any:
    try:
        return data if parse is None else parse(data)
    except DecodeError:
        raise BadOptionError("the bytes are not a message of this method's request type") from None


async def _forward(outgoing: Any, context: Any) -> None:
    """Send what a handler yields, or let one that writes for itself run."""
    if hasattr(outgoing, "__aiter__"):
        async for response in outgoing:
            await context.write(response)
    else:
        await outgoing


async def _each(requests: AsyncIterator[bytes], parse: _Parse) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request, parse)
