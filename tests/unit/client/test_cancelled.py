"""CANCELLED: from the server it is UNAVAILABLE and tried again; by the caller it ends the call, once."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
from support.waiting import until
from unit.client.fake import Running, bare, vector_of

import pixvec
from pixvec import AsyncClient, Client

CANCELLED = bare(grpc.StatusCode.CANCELLED)
IMAGES = [b"cat", b"dog"]
VECTORS = np.stack([vector_of(image) for image in IMAGES])

SYNC: dict[str, tuple[str, Callable[[Client], Iterable[Any]]]] = {
    "embed": ("Embed", lambda client: [client.embed(image) for image in IMAGES]),
    "embed_full": ("Embed", lambda client: [client.embed_full(image).vector for image in IMAGES]),
    "embed_batch": ("EmbedBatch", lambda client: client.embed_batch(IMAGES)),
    "embed_batch_full": ("EmbedBatch", lambda client: _vectors(client.embed_batch_full(IMAGES))),
    "embed_iter": ("EmbedBatch", lambda client: list(client.embed_iter(IMAGES))),
    "embed_stream": ("EmbedStream", lambda client: list(client.embed_stream(IMAGES))),
}


def _vectors(answers: Iterable[Any]) -> list[Any]:
    return [answer.vector for answer in answers if isinstance(answer, pixvec.Embedded)]


async def _async_batch(client: AsyncClient) -> Any:
    return await client.embed_batch(IMAGES)


async def _async_full(client: AsyncClient) -> Any:
    return _vectors(await client.embed_batch_full(IMAGES))


async def _async_one(client: AsyncClient) -> Any:
    return [await client.embed(image) for image in IMAGES]


async def _async_iter(client: AsyncClient) -> Any:
    return [vector async for vector in client.embed_iter(IMAGES)]


async def _async_stream(client: AsyncClient) -> Any:
    return [vector async for vector in client.embed_stream(IMAGES)]


ASYNC: dict[str, tuple[str, Callable[[AsyncClient], Any]]] = {
    "embed": ("Embed", _async_one),
    "embed_batch": ("EmbedBatch", _async_batch),
    "embed_batch_full": ("EmbedBatch", _async_full),
    "embed_iter": ("EmbedBatch", _async_iter),
    "embed_stream": ("EmbedStream", _async_stream),
}


@pytest.mark.parametrize("name", SYNC)
def test_a_call_that_the_server_cancels_is_tried_again(client: Client, server: Running, name: str) -> None:
    method, call = SYNC[name]
    client.limits()
    server.service.next_failures.append(CANCELLED)
    np.testing.assert_array_equal(np.stack(list(call(client))), VECTORS)
    calls = len(IMAGES) if method == "Embed" else 1
    assert len(server.service.of(method)) == calls + 1


@pytest.mark.parametrize("name", ASYNC)
async def test_a_call_that_the_server_cancels_is_tried_again_async(
    aclient: AsyncClient, server: Running, name: str
) -> None:
    method, call = ASYNC[name]
    await aclient.limits()
    server.service.next_failures.append(CANCELLED)
    np.testing.assert_array_equal(np.stack(list(await call(aclient))), VECTORS)
    calls = len(IMAGES) if method == "Embed" else 1
    assert len(server.service.of(method)) == calls + 1


def test_similarity_that_the_server_cancels_is_tried_again(client: Client, server: Running) -> None:
    server.service.next_failures.append(CANCELLED)
    assert client.similarity([b"a"], [b"a", b"b"]).shape == (1, 2)
    assert len(server.service.of("Similarity")) == 2


def test_a_stream_that_the_server_cancels_midway_is_opened_anew(client: Client, server: Running) -> None:
    images = [b"%d" % i for i in range(6)]
    client.limits()
    vectors = client.embed_stream(images, batch_size=1, in_flight=1)
    got = [next(vectors)]
    server.service.next_failures.append(CANCELLED)
    got += vectors
    np.testing.assert_array_equal(np.stack(got), np.stack([vector_of(image) for image in images]))


async def test_a_stream_that_the_server_cancels_midway_is_opened_anew_async(
    aclient: AsyncClient, server: Running
) -> None:
    images = [b"%d" % i for i in range(6)]
    await aclient.limits()
    vectors = aclient.embed_stream(images, batch_size=1, in_flight=1)
    got = [await anext(vectors)]
    server.service.next_failures.append(CANCELLED)
    got += [vector async for vector in vectors]
    np.testing.assert_array_equal(np.stack(got), np.stack([vector_of(image) for image in images]))


@pytest.mark.parametrize("name", ["embed", "embed_batch"])
def test_a_server_that_cancels_every_call_is_unavailable(client: Client, server: Running, name: str) -> None:
    method, call = SYNC[name]
    client.limits()
    server.service.always = CANCELLED
    with pytest.raises(pixvec.UnavailableError, match="cancelled the call: bare") as caught:
        call(client)
    assert caught.value.code == "UNAVAILABLE"
    assert len(server.service.of(method)) == 4


async def test_a_server_that_cancels_every_call_is_unavailable_async(
    aclient: AsyncClient, server: Running
) -> None:
    server.service.always = CANCELLED
    with pytest.raises(pixvec.UnavailableError, match="cancelled the call: bare") as caught:
        await aclient.embed(b"cat")
    assert caught.value.code == "UNAVAILABLE"


def test_calls_that_the_server_cancels_spend_the_budget_of_retries(client: Client, server: Running) -> None:
    server.service.always = CANCELLED
    for _ in range(50):
        with pytest.raises(pixvec.UnavailableError):
            client.embed(b"cat")
    assert len(server.service.of("Embed")) <= 60


@pytest.mark.parametrize("name", ["embed_batch", "embed_stream"])
async def test_a_cancelled_task_ends_its_call_and_is_not_tried_again(
    aclient: AsyncClient, server: Running, name: str
) -> None:
    method, call = ASYNC[name]
    await aclient.limits()
    server.service.delay_s = 0.3
    task = asyncio.create_task(call(aclient))
    await asyncio.to_thread(until, lambda: server.service.of(method))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.service.delay_s = 0.0
    assert (await aclient.embed(b"cat")).shape == vector_of(b"cat").shape
    assert len(server.service.of(method)) == 1


@pytest.mark.parametrize("name", ["embed_batch", "embed_iter", "embed_stream"])
def test_a_client_closed_under_a_call_says_so_and_does_not_try_again(server: Running, name: str) -> None:
    method, call = SYNC[name]
    raised: list[BaseException] = []
    client = Client(server.target, timeout=10)
    client.limits()
    server.service.delay_s = 0.5

    def run() -> None:
        try:
            call(client)
        except pixvec.PixvecError as error:
            raised.append(error)

    caller = threading.Thread(target=run)
    caller.start()
    until(lambda: server.service.of(method))
    client.close()
    caller.join(10)
    assert [str(error) for error in raised] == ["the client is closed"]
    assert not isinstance(raised[0], pixvec.UnavailableError)
    assert len(server.service.of(method)) == 1


@pytest.mark.parametrize("name", ["embed_batch", "embed_iter", "embed_stream"])
async def test_an_async_client_closed_under_a_call_says_so_and_does_not_try_again(
    server: Running, name: str
) -> None:
    method, call = ASYNC[name]
    client = AsyncClient(server.target, timeout=10)
    await client.limits()
    server.service.delay_s = 0.5
    task = asyncio.create_task(call(client))
    await asyncio.to_thread(until, lambda: server.service.of(method))
    await client.close()
    with pytest.raises(pixvec.PixvecError, match="the client is closed") as caught:
        await task
    assert not isinstance(caught.value, pixvec.UnavailableError)
    assert len(server.service.of(method)) == 1
