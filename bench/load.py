"""One load generator for every protocol, in a process of its own: its CPU is told from the server's.

Requests are serialised ahead and answers are read after the clock has stopped. In a closed loop each of some
callers sends its next request when the last is answered, through a warm-up and a window. In an open loop
requests leave at seeded random times whatever the server does, and latency counts from the time at which a
request was due, so that a server which stalls is not asked less.

    result = load.measure(load.Plan(target, "embed", bodies, callers=32, seconds=5), server_pid)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Protocol, Self

import grpc
import numpy as np
import psutil

from bench.wire import WIRES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench import wire

CHANNELS = 4
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent to a server, and how.

    requests: bodies of the protocol, sent in turn, of `images` pictures each. `callers` makes a closed loop,
    `rate` (requests a second) an open one in its place. `calls`: of a closed loop, so many instead of
    `seconds`.
    """

    target: str
    protocol: wire.Protocol
    requests: Sequence[bytes]
    images: int = 1
    callers: int = 1
    rate: float | None = None
    seconds: float = 5.0
    calls: int | None = None
    warm_up_s: float = 1.0
    timeout_s: float = 60.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen in the window.

    requests: answered well. images: in them, less the share of a request that lies outside of a timed window.
    errors: the other requests, by status. latencies_ms: of the requests answered well, ascending.
    server_cpu_s: of the server's whole process tree.
    """

    requests: int
    images: float
    errors: Mapping[str, int]
    seconds: float
    latencies_ms: Sequence[float]
    client_cpu_s: float
    server_cpu_s: float

    @property
    def images_s(self) -> float:
        """Images answered a second."""
        return self.images / self.seconds

    @property
    def failed(self) -> int:
        """Requests that were not answered well."""
        return sum(self.errors.values())

    @property
    def p50(self) -> float:
        """Milliseconds in which half of the requests were answered."""
        return percentile(self.latencies_ms, 50)

    @property
    def p90(self) -> float:
        """Milliseconds in which nine of ten requests were answered."""
        return percentile(self.latencies_ms, 90)

    @property
    def p99(self) -> float:
        """Milliseconds in which 99 of 100 requests were answered."""
        return percentile(self.latencies_ms, 99)


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the least value that `percent` of all do not exceed (nearest rank); NaN of none."""
    if not ascending:
        return math.nan
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def measure(plan: Plan, server_pid: int | None = None) -> Result:
    """Run a plan in a process of its own; `server_pid` is the root of the tree whose CPU is counted."""
    with generator() as send:
        return send(plan, server_pid)


@contextmanager
def generator() -> Iterator[Callable[[Plan, int | None], Result]]:
    """Keep one such process for many plans."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda plan, server_pid: pool.submit(run, plan, server_pid).result()


def run(plan: Plan, server_pid: int | None = None) -> Result:
    """Run a plan in this process."""
    return asyncio.run(_run(plan, server_pid))


def ask(
    target: str, protocol: wire.Protocol, requests: Sequence[bytes], timeout_s: float = 60.0
) -> list[bytes]:
    """Send each request once, one after the other, and return the answers. Raises CallError."""

    async def one_by_one() -> list[bytes]:
        async with _transport(target, protocol, 1, timeout_s) as transport:
            return [await transport.call(request) for request in requests]

    return asyncio.run(one_by_one())


class CallError(Exception):
    """A request that was not answered; its words are the status."""


def due(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Yield the times, in seconds from the start, of a Poisson process's events."""
    random = np.random.default_rng(seed)
    at = random.exponential(1 / rate)
    while at < seconds:
        yield float(at)
        at += random.exponential(1 / rate)


def tree_cpu_s(root: int) -> float:
    """Return the CPU seconds of a process, its descendants, and those of them that have come and gone."""
    process = psutil.Process(root)
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:4])  # user and system, and those of the children it has waited for
        except psutil.NoSuchProcess:
            continue
    return total


class Transport(Protocol):
    """A way to a server; `call` raises CallError."""

    async def call(self, body: bytes) -> bytes:
        """Send a request and return its answer."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


class Unary:
    """gRPC calls that know their messages as bytes only, spread over a few connections."""

    def __init__(self, target: str, method: str, channels: int, timeout_s: float) -> None:
        self._channels = [grpc.aio.insecure_channel(target, options=_OPTIONS) for _ in range(channels)]
        self._calls = cycle([channel.unary_unary(method) for channel in self._channels])
        self._timeout_s = timeout_s

    async def call(self, body: bytes) -> bytes:
        """See `Transport.call`."""
        try:
            answer: bytes = await next(self._calls)(body, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise CallError(exc.code().name) from exc
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()


class Stream:
    """One stream of messages with an id, which is the first field of both request and answer."""

    def __init__(self, target: str, method: str, timeout_s: float) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._open = self._channel.stream_stream(method)
        self._timeout_s = timeout_s
        self._stream: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._sent = 0

    async def call(self, body: bytes) -> bytes:
        """See `Transport.call`."""
        self._sent += 1
        name = b"%d" % self._sent
        answer = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._writing:
                    await self._connected().write(b"\x0a" + bytes([len(name)]) + name + body)
                return bytes(await answer)
        except TimeoutError as exc:
            raise CallError("DEADLINE_EXCEEDED") from exc
        except grpc.aio.AioRpcError as exc:
            raise CallError(exc.code().name) from exc
        except asyncio.InvalidStateError as exc:  # the stream ended while this was being written
            raise CallError("UNAVAILABLE") from exc
        finally:
            self._waiting.pop(name, None)

    def _connected(self) -> Any:  # noqa: ANN401 - grpc ships no types
        if self._reading is None or self._reading.done():
            self._stream = self._open()
            self._reading = asyncio.create_task(self._read(self._stream))
        return self._stream

    async def _read(self, stream: Any) -> None:  # noqa: ANN401 - as above
        status = "UNAVAILABLE"
        try:
            async for answer in stream:
                waiting = self._waiting.get(answer[2 : 2 + answer[1]])
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except grpc.aio.AioRpcError as exc:
            status = exc.code().name
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(CallError(status))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
        await self._channel.close()


class Http:
    """HTTP/1.1 POSTs over connections that are kept: as many as there are requests at once."""

    def __init__(self, target: str, path: str, timeout_s: float) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/octet-stream\r\n"
        self._timeout_s = timeout_s
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()

    async def call(self, body: bytes) -> bytes:
        """See `Transport.call`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, answer = await self._post(body)
        except TimeoutError as exc:
            raise CallError("TIMEOUT") from exc
        except (OSError, EOFError, ValueError) as exc:
            raise CallError(type(exc).__name__) from exc
        if status != 200:
            raise CallError(f"HTTP {status}")
        return answer

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connection()
        keep = False
        try:
            writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()
            status, keep, answer = await read_answer(reader)
        finally:
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()
        return status, answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection[1].close()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bool, bytes]:
    """Read an answer: status, whether the connection may be used again, body.

    Raises ValueError for one without a length, EOFError for one that is cut.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, status = head[0].split(" ")[:2]
    fields = {
        name.strip().lower(): value.strip().lower()
        for name, _, value in (row.partition(":") for row in head[1:])
    }
    if "content-length" not in fields:
        raise ValueError("an answer without a length")
    body = await reader.readexactly(int(fields["content-length"]))
    return int(status), version == "HTTP/1.1" and fields.get("connection") != "close", body


def _transport(target: str, protocol: wire.Protocol, callers: int, timeout_s: float) -> Transport:
    way = WIRES[protocol]
    if way.transport == "unary":
        return Unary(target, way.path, min(CHANNELS, callers), timeout_s)
    if way.transport == "stream":
        return Stream(target, way.path, timeout_s)
    return Http(target, way.path, timeout_s)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request from the time that its latency counts from to its answer."""

    since: float
    until: float
    answer: bytes | CallError

    def share(self, opens: float, shuts: float) -> float:
        """Return the part of it that lies within a window."""
        inside = min(self.until, shuts) - max(self.since, opens)
        return max(0.0, inside) / max(self.until - self.since, 1e-9)


@dataclass(slots=True)
class Meter:
    """Notes requests, and reads the clocks where the window opens and shuts."""

    server_pid: int | None
    seen: list[Seen] = field(default_factory=list)
    marks: list[tuple[float, float, float]] = field(default_factory=list)

    def mark(self) -> None:
        """Read the clocks: the wall's, this process's, the server's."""
        server = tree_cpu_s(self.server_pid) if self.server_pid else 0.0
        self.marks.append((time.perf_counter(), time.process_time(), server))

    def note(self, since: float, answer: bytes | CallError) -> None:
        """Keep a request that has been answered now."""
        self.seen.append(Seen(since, time.perf_counter(), answer))

    def result(self, plan: Plan) -> Result:
        """Read the answers of the requests that touch the window.

        Of a request across an edge of a timed window, the share within counts: counted whole or not at all,
        servers that answer a batch at once would seem faster or slower by a batch.
        """
        opens, shuts = self.marks[0][0], self.marks[-1][0]
        timed = plan.rate is None and plan.calls is None
        images, latencies, errors = 0.0, [], Counter[str]()
        for one in self.seen:
            share = one.share(opens, shuts) if timed else 1.0
            fault = _fault(plan, one.answer) if share else None
            if fault:
                errors[fault] += 1
            elif share:
                images += share * plan.images
                latencies.append((one.until - one.since) * 1000)
        seconds, client, server = np.subtract(self.marks[-1], self.marks[0]).tolist()
        return Result(len(latencies), images, dict(errors), seconds, sorted(latencies), client, server)


def _fault(plan: Plan, answer: bytes | CallError) -> str | None:
    if isinstance(answer, CallError):
        return str(answer)
    vectors = WIRES[plan.protocol].decode(answer)
    whole = len(vectors) == plan.images and all(vector is not None for vector in vectors)
    return None if whole else "NO VECTOR"


async def _run(plan: Plan, server_pid: int | None) -> Result:
    meter = Meter(server_pid)
    async with AsyncExitStack() as stack:
        callers = plan.callers if plan.rate is None else CHANNELS
        transport = await stack.enter_async_context(
            _transport(plan.target, plan.protocol, callers, plan.timeout_s)
        )
        closed = _timed if plan.calls is None else _counted
        await (closed if plan.rate is None else _open)(plan, transport, meter)
    return meter.result(plan)


async def _answer(transport: Transport, body: bytes) -> bytes | CallError:
    try:
        return await transport.call(body)
    except CallError as exc:
        return exc


async def _timed(plan: Plan, transport: Transport, meter: Meter) -> None:
    """Keep every caller busy through warm-up and window, and until all that was sent by then is answered."""
    bodies, loop = cycle(plan.requests), asyncio.get_running_loop()
    shuts = time.perf_counter() + plan.warm_up_s + plan.seconds
    loop.call_later(plan.warm_up_s, meter.mark)
    shutting = loop.call_later(plan.warm_up_s + plan.seconds, meter.mark)
    unanswered = 0

    async def caller() -> None:
        nonlocal unanswered
        while (sent := time.perf_counter()) < shuts or unanswered:
            counts = sent < shuts
            unanswered += counts
            answer = await _answer(transport, next(bodies))
            unanswered -= counts
            if counts:
                meter.note(sent, answer)

    await asyncio.gather(*(caller() for _ in range(plan.callers)))
    if len(meter.marks) < 2:
        shutting.cancel()
        meter.mark()


async def _counted(plan: Plan, transport: Transport, meter: Meter) -> None:
    """Send so many requests, the warm-up's not counted, from the first to the last answer."""
    bodies, warm = cycle(plan.requests), time.perf_counter() + plan.warm_up_s

    async def warm_up() -> None:
        while time.perf_counter() < warm:
            await _answer(transport, next(bodies))

    async def caller(turns: Iterator[int]) -> None:
        for _ in turns:
            sent = time.perf_counter()
            meter.note(sent, await _answer(transport, next(bodies)))

    await asyncio.gather(*(warm_up() for _ in range(plan.callers)))
    turns = iter(range(plan.calls or 0))
    meter.mark()
    await asyncio.gather(*(caller(turns) for _ in range(plan.callers)))
    meter.mark()


async def _open(plan: Plan, transport: Transport, meter: Meter) -> None:
    """Send when requests are due, and note those due after the warm-up, however late their answer.

    The window shuts with the last of these answers: a server that falls behind is not seen as keeping up.
    """
    assert plan.rate is not None
    bodies, ends = cycle(plan.requests), plan.warm_up_s + plan.seconds
    started = time.perf_counter()
    asyncio.get_running_loop().call_later(plan.warm_up_s, meter.mark)

    async def one(at: float, body: bytes) -> None:
        answer = await _answer(transport, body)
        if at >= plan.warm_up_s:
            meter.note(started + at, answer)

    async with asyncio.TaskGroup() as sending:
        for at in due(plan.rate, ends, plan.seed):
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            sending.create_task(one(at, next(bodies)))
        await asyncio.sleep(max(0.0, started + ends - time.perf_counter()))
    meter.mark()
