"""What a load generator gets wrong when it is wrong: the clock, the percentiles, the bytes, the errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import grpc
import numpy as np
import pytest

from bench import load
from bench.wire import WIRES
from pixvec.v1 import embedding_pb2 as pb

GOOD = np.arange(4, dtype="<f4").tobytes()
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def embedded() -> pb.Embedded:
    tensor = pb.Tensor(encoding=pb.ENCODING_FLOAT32, shape=[4], data=GOOD)
    return pb.Embedded(embeddings=[pb.Embedding(vector=tensor)])


@asynccontextmanager
async def http(handler: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def grpc_server(**methods: Any) -> AsyncIterator[str]:
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("pixvec.v1.EmbeddingService", methods)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    [length] = [row.split(":")[1] for row in head.split("\r\n") if row.startswith("Content-Length")]
    return await reader.readexactly(int(length))


def answered(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    rows = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *fields]
    return "\r\n".join(rows).encode() + b"\r\n\r\n" + body


async def measured(plan: load.Plan, server_pid: int | None = None) -> load.Result:
    return await asyncio.to_thread(load.run, plan, server_pid)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10.0), (50, 50.0), (50.1, 60.0), (90, 90.0), (99, 100.0), (100, 100.0)]
)
def test_a_percentile_is_a_value_that_was_seen(percent: float, expected: float) -> None:
    assert load.percentile([10.0 * i for i in range(1, 11)], percent) == expected


def test_the_percentile_of_nothing_is_no_number() -> None:
    assert np.isnan(load.percentile([], 50))


def test_arrivals_are_seeded_and_come_at_the_rate_asked_for() -> None:
    times = list(load.due(100, 50, seed=7))
    assert times == list(load.due(100, 50, seed=7))
    assert times != list(load.due(100, 50, seed=8))
    assert times == sorted(times)
    assert len(times) == pytest.approx(5000, rel=0.05)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as an exponential distribution's


async def test_an_open_loop_counts_latency_from_the_time_due_and_not_from_the_sending() -> None:
    """One connection's worth of work at a time: what waits behind a stall is charged with the wait."""
    turn = asyncio.Lock()
    stalled = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await request_of(reader)
            except asyncio.IncompleteReadError:
                break
            async with turn:
                if not stalled.is_set():
                    stalled.set()
                    await asyncio.sleep(0.3)
                writer.write(answered(GOOD))
        writer.close()

    async with http(handler) as target:
        plan = load.Plan(target, "http", [b"x"], rate=200, seconds=0.2, warm_up_s=0, seed=3)
        result = await measured(plan)
    expected = len(list(load.due(200, 0.2, seed=3)))
    assert (result.requests, dict(result.errors)) == (expected, {})
    # The last was due by 0.2 s and the stall ended after 0.3 s: a sender that waits for it would see it once.
    assert result.p50 > 100
    assert result.seconds >= 0.3


async def test_a_late_sender_does_not_hide_its_own_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that leave late, the generator being busy, are charged from the time due too."""
    sleep = asyncio.sleep

    async def late(seconds: float) -> None:
        await sleep(seconds + 0.05)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answered(GOOD, "200 OK", "connection: close"))
        writer.close()

    async with http(handler) as target:
        monkeypatch.setattr(load.asyncio, "sleep", late)  # type: ignore[attr-defined]
        plan = load.Plan(target, "http", [b"x"], rate=20, seconds=0.2, warm_up_s=0, seed=5)
        result = await measured(plan)
    assert result.requests
    assert result.latencies_ms[0] >= 50


async def test_http_answers_are_read_to_their_length_and_connections_kept() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(5):
            body = await request_of(reader)
            whole = answered(body * 2)
            writer.write(whole[:20])  # a head in two pieces
            await writer.drain()
            writer.write(whole[20:])
        writer.close()

    async with http(handler) as target:
        bodies = [bytes([i]) * 1000 * (i + 1) for i in range(5)]
        answers = await asyncio.to_thread(load.ask, target, "http", bodies)
    assert answers == [body * 2 for body in bodies]
    assert connections == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answered(b"no", "503 Service Unavailable"), "HTTP 503"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "ValueError"),
        (answered(b"whole")[:-1], "IncompleteReadError"),
        (b"", "IncompleteReadError"),
    ],
)
async def test_http_errors_are_named(said: bytes, error: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(said)
        writer.close()

    async with http(handler) as target:
        with pytest.raises(load.CallError, match=error):
            await asyncio.to_thread(load.ask, target, "http", [b"x"])


async def test_every_request_is_either_answered_or_counted_as_an_error() -> None:
    count = 0

    async def embed(_request: bytes, context: Any) -> bytes:
        nonlocal count
        count += 1
        if count % 3 == 0:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return pb.EmbedResponse(embedded=embedded()).SerializeToString() if count % 3 == 1 else b""

    async with grpc_server(Embed=grpc.unary_unary_rpc_method_handler(embed)) as target:
        plan = load.Plan(target, "embed", [b""], callers=3, calls=60, warm_up_s=0)
        result = await measured(plan, os.getpid())
    assert result.requests + result.failed == 60
    assert result.requests == result.images == len(result.latencies_ms)
    assert result.errors["RESOURCE_EXHAUSTED"] + result.errors["NO VECTOR"] == result.failed
    assert all(18 <= number <= 22 for number in (result.requests, *result.errors.values()))
    assert result.server_cpu_s > 0
    assert result.client_cpu_s > 0


def test_a_server_that_answers_in_bursts_is_seen_at_its_own_rate() -> None:
    """Four callers, all answered every 3 s: 4/3 a second, wherever the window's edges fall."""
    answer = WIRES["http"].encode("m", [GOOD])
    for opens, shuts in ((1.0, 8.0), (2.9, 3.1), (0.0, 9.0)):
        meter = load.Meter(None, marks=[(opens, 0.0, 0.0), (shuts, 1.0, 0.0)])
        meter.seen = [load.Seen(at, at + 3.0, answer) for at in (0.0, 3.0, 6.0) for _ in range(4)]
        result = meter.result(load.Plan("", "http", []))
        assert result.images_s == pytest.approx(4 / 3)
        assert result.p50 == 3000


def test_what_ended_before_the_window_is_not_seen() -> None:
    meter = load.Meter(None, marks=[(1.0, 0.0, 0.0), (2.0, 0.0, 0.0)])
    meter.seen = [load.Seen(0.0, 1.0, GOOD), load.Seen(0.5, 0.9, load.CallError("early"))]
    result = meter.result(load.Plan("", "http", []))
    assert (result.requests, result.images, dict(result.errors)) == (0, 0, {})


async def test_a_timed_window_notes_errors_and_answers() -> None:
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while not reader.at_eof():
            try:
                body = await request_of(reader)
            except asyncio.IncompleteReadError:
                break
            count += 1
            writer.write(answered(GOOD) if body == b"good" else answered(b"", "429 Too Many Requests"))
        writer.close()

    async with http(handler) as target:
        plan = load.Plan(target, "http", [b"good", b"bad"], callers=2, seconds=0.1, warm_up_s=0.02)
        result = await measured(plan)
    assert 0 < result.requests + result.failed <= count
    assert abs(result.requests - result.failed) <= 4
    assert set(result.errors) == {"HTTP 429"}
    assert result.requests - 2 <= result.images <= result.requests


async def test_a_batch_with_one_error_is_an_error() -> None:
    one, other = pb.Result(embedded=embedded()), pb.Result(error=pb.Error(message="bad"))

    async def batch(request: bytes, _context: Any) -> bytes:
        whole = len(pb.EmbedBatchRequest.FromString(request).inputs) == 1
        return pb.EmbedBatchResponse(results=[one, one if whole else other]).SerializeToString()

    bodies = [WIRES["embed_batch"].encode("m", [b"x"] * n) for n in (1, 2)]
    async with grpc_server(EmbedBatch=grpc.unary_unary_rpc_method_handler(batch)) as target:
        plan = load.Plan(target, "embed_batch", bodies, images=2, calls=10, warm_up_s=0)
        result = await measured(plan)
    assert (result.requests, result.images, dict(result.errors)) == (5, 10, {"NO VECTOR": 5})


async def test_a_streams_answers_find_their_requests_in_any_order() -> None:
    async def stream(requests: Any, _context: Any) -> AsyncIterator[bytes]:
        held = [pb.EmbedStreamRequest.FromString(one) async for one in _first(requests, 3)]
        for request in reversed(held):
            image = request.inputs[0].image
            tensor = pb.Tensor(data=image)
            result = pb.Result(embedded=pb.Embedded(embeddings=[pb.Embedding(vector=tensor)]))
            yield pb.EmbedStreamResponse(id=request.id, results=[result]).SerializeToString()

    wire = WIRES["embed_stream"]
    bodies = [wire.encode("m", [bytes([i]) * 4]) for i in range(4)]
    async with (
        grpc_server(EmbedStream=grpc.stream_stream_rpc_method_handler(stream)) as target,
        load.Stream(target, wire.path, 5) as transport,
    ):
        answers = await asyncio.gather(*(transport.call(body) for body in bodies[:3]))
        later = await asyncio.gather(*(transport.call(body) for body in bodies), return_exceptions=True)
    read = [wire.decode(answer)[0] for answer in answers]
    assert [vector.tobytes() for vector in read if vector is not None] == [bytes([i]) * 4 for i in range(3)]
    # The first stream ended with its three answers: what came later is answered on a new one, or told.
    assert all(isinstance(one, bytes | load.CallError) for one in later)


async def _first(requests: Any, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield await anext(requests)


async def test_a_server_that_is_not_there_is_an_error_a_request() -> None:
    async with http(lambda _reader, _writer: asyncio.sleep(0)) as target:
        pass
    plan = load.Plan(target, "http", [b"x"], calls=4, warm_up_s=0)
    result = await measured(plan)
    assert (result.requests, dict(result.errors)) == (0, {"ConnectionRefusedError": 4})
    assert np.isnan(result.p99)
    result = await measured(replace(plan, protocol="embed", timeout_s=5))
    assert dict(result.errors) == {"UNAVAILABLE": 4}


def test_a_trees_cpu_counts_a_child_that_has_gone() -> None:
    before = load.tree_cpu_s(os.getpid())
    subprocess.run([sys.executable, "-S", "-c", "sum(range(10**6))"], check=True)
    assert load.tree_cpu_s(os.getpid()) >= before + 0.01
    assert list(islice(load.due(1, 0, 1), 1)) == []
