"""The asyncio client: the same answers as the blocking one, and what only asyncio can get wrong."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from unit.client.fake import SIZE, Running, abort, error, vector_of

import pixvec
from pixvec import AsyncClient, Client, Region, Target
from pixvec.v1 import embedding_pb2 as pb


async def test_same_answers_as_the_blocking_client(
    aclient: AsyncClient, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "cat").write_bytes(b"cat")
    images: list[Any] = [b"a", tmp_path / "cat", np.zeros((4, 5, 3), np.uint8)]
    np.testing.assert_array_equal(await aclient.embed(b"a"), client.embed(b"a"))
    np.testing.assert_array_equal(await aclient.embed_text("a"), client.embed_text("a"))
    np.testing.assert_array_equal(await aclient.embed_batch(images), client.embed_batch(images))
    np.testing.assert_array_equal(await aclient.similarity(b"a", images), client.similarity(b"a", images))
    assert await aclient.models() == client.models()
    assert await aclient.model("prod") == client.model("prod")
    assert await aclient.limits() == client.limits()
    assert await aclient.health_state() == client.health_state()
    assert (await aclient.embed_batch([])).shape == (0, SIZE)


async def test_same_methods_as_the_blocking_client() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(AsyncClient) == public(Client)


async def test_full_answers(aclient: AsyncClient) -> None:
    answer = await aclient.embed_full(b"cat", targets=[Target(), Target(dimensions=8)])
    assert answer.embeddings[0][1].vector.shape == (8,)
    got = await aclient.embed_batch_full([b"a", b"bad"], regions=[[(1, 2, 3, 4)], [Region.whole_image()]])
    assert isinstance(got[0], pixvec.Embedded)
    np.testing.assert_array_equal(got[0].vector, vector_of(b"a1,2"))
    assert isinstance(got[1], pixvec.UndecodableError)


async def test_errors_stand_in_their_place_or_raise(aclient: AsyncClient) -> None:
    got = await aclient.embed_batch([b"a", b"bad", "/no/such/file"], on_error="return")
    assert [type(item).__name__ for item in got] == ["Vectors", "UndecodableError", "InputError"]
    with pytest.raises(pixvec.UndecodableError, match=r"images\[1\]"):
        await aclient.embed_batch([b"a", b"bad"])
    with pytest.raises(pixvec.OverloadedError) as caught:
        await aclient.embed(b"busy")
    assert (caught.value.retry_after, caught.value.request_id) == (1.5, "request-7")


async def test_iter_takes_async_iterables_in_order_and_bounded(aclient: AsyncClient, server: Running) -> None:
    server.service.delay_s = 0.01
    read = 0

    async def images() -> AsyncIterator[bytes]:
        nonlocal read
        for i in range(40):
            read += 1
            yield b"%d" % i

    done = furthest = 0
    async for vector in aclient.embed_iter(images(), batch_size=4, in_flight=2):
        np.testing.assert_array_equal(vector, vector_of(b"%d" % done))
        furthest = max(furthest, read - done)
        done += 1
    assert done == 40
    assert furthest <= 2 * 4
    assert server.service.most_under_way == 2


async def test_leaving_an_iteration_cancels_what_is_under_way(aclient: AsyncClient, server: Running) -> None:
    vectors = aclient.embed_iter([b"cat", b"slow", b"slower"], batch_size=1, in_flight=3)
    await anext(vectors)
    await asyncio.sleep(0.1)
    await vectors.aclose()
    await asyncio.sleep(0.4)
    assert server.service.cancelled == 2
    assert (await aclient.embed(b"cat")).shape == (SIZE,)


async def test_cancelling_a_caller_ends_its_call(aclient: AsyncClient, server: Running) -> None:
    server.service.delay_s = 1.0
    await aclient.limits()
    task = asyncio.create_task(aclient.embed_batch([b"cat"]))
    await asyncio.sleep(0.1)
    task.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 0.5


async def test_reading_a_file_does_not_hold_the_loop(aclient: AsyncClient) -> None:
    class Slow:
        def read(self) -> bytes:
            time.sleep(0.3)
            return b"cat"

    async def longest_pause(done: asyncio.Event) -> float:
        longest, last = 0.0, time.monotonic()
        while not done.is_set():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        return longest

    await aclient.embed(b"warm")
    done = asyncio.Event()
    watch = asyncio.create_task(longest_pause(done))
    await asyncio.sleep(0.05)
    slow: Any = Slow()
    np.testing.assert_array_equal(await aclient.embed(slow), vector_of(b"cat"))
    done.set()
    assert await watch < 0.25


async def test_many_calls_at_once(aclient: AsyncClient) -> None:
    vectors = await asyncio.gather(*(aclient.embed(b"%d" % i) for i in range(50)))
    for i, vector in enumerate(vectors):
        np.testing.assert_array_equal(vector, vector_of(b"%d" % i))


async def test_a_fault_of_the_server_is_tried_once_more(aclient: AsyncClient, server: Running) -> None:
    fault = error(pb.REASON_NON_FINITE, grpc.StatusCode.INTERNAL, "nan")
    server.service.next_failures.append(lambda context: abort(context, fault))
    assert (await aclient.embed_batch([b"cat"])).shape == (1, SIZE)
    assert len(server.service.of("EmbedBatch")) == 2


async def test_wait_ready_and_health(aclient: AsyncClient, server: Running) -> None:
    server.set_serving("NOT_SERVING")
    assert not await aclient.health()
    waiting = asyncio.create_task(aclient.wait_ready(10))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    server.set_serving("SERVING")
    await waiting


async def test_no_server_and_closed_client() -> None:
    client = AsyncClient("127.0.0.1:1", timeout=5)
    with pytest.raises(pixvec.ConnectionFailedError, match=r"no server at 127.0.0.1:1"):
        await client.embed(b"cat")
    await client.close()
    with pytest.raises(pixvec.PixvecError, match="closed"):
        await client.embed(b"cat")


def test_it_can_be_made_outside_a_loop(server: Running) -> None:
    made = AsyncClient(server.target)

    async def use() -> Any:
        async with made:
            return await made.embed(b"cat")

    np.testing.assert_array_equal(asyncio.run(use()), vector_of(b"cat"))


async def test_closing_fails_the_calls_under_way(server: Running) -> None:
    server.service.delay_s = 2.0
    client = pixvec.AsyncClient(server.target)
    task = asyncio.create_task(client.embed_batch([b"x"]))
    while not server.service.under_way:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(pixvec.PixvecError, match="the client is closed"):
        await task
