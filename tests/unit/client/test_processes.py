"""Clients in other processes, in other event loops, and copied."""

import asyncio
import copy
import multiprocessing
import pickle
import sys
from typing import Any

import grpc
import numpy as np
import pytest
from unit.client.fake import Running, vector_of

import pixvec
from pixvec import AsyncClient, Client

METHODS = ["spawn", "forkserver", "fork"]


def embed_some(client: Client, count: int) -> bool:
    images = [b"%d" % i for i in range(count)]
    return all(np.array_equal(client.embed(image), vector_of(image)) for image in images)


def embed_in_a_loop(client: AsyncClient) -> str:
    async def use() -> str:
        return str((await client.embed(b"cat")).shape)

    try:
        return asyncio.run(use())
    except pixvec.PixvecError as error:
        return str(error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_client_that_was_used_works_in_another_process(client: Client, method: str) -> None:
    assert embed_some(client, 5)
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        waiting = [pool.apply_async(embed_some, (client, 50)) for _ in range(4)]
        assert embed_some(client, 50)
        assert [answer.get(timeout=30) for answer in waiting] == [True] * 4
    assert embed_some(client, 5)


def test_an_async_client_works_in_another_process(server: Running) -> None:
    client = AsyncClient(server.target, timeout=10)
    assert embed_in_a_loop(client) == "(16,)"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(embed_in_a_loop, (client,)).get(timeout=30) == "(16,)"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_async_client_that_was_used_says_so_after_a_fork(server: Running) -> None:
    client = AsyncClient(server.target, timeout=10)
    assert embed_in_a_loop(client) == "(16,)"
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(embed_in_a_loop(client)))
    child.start()
    assert ours.poll(10)
    assert "start processes with spawn or forkserver" in ours.recv()
    child.join(10)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_new_client_in_a_child_of_a_process_that_used_an_async_one(server: Running, kind: Any) -> None:
    """grpc.aio hangs in the child, whichever client uses it there; grpc does not."""
    assert embed_in_a_loop(AsyncClient(server.target, timeout=10)) == "(16,)"

    def use_new_client() -> None:
        made = kind(server.target, timeout=10)
        theirs.send(embed_in_a_loop(made) if kind is AsyncClient else str(made.embed(b"cat").shape))

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=use_new_client)
    child.start()
    assert ours.poll(10)
    assert ("spawn or forkserver" if kind is AsyncClient else "(16,)") in ours.recv()
    child.join(10)


async def test_an_async_client_that_was_never_used_can_be_closed_anywhere() -> None:
    made = AsyncClient("localhost:1")
    await asyncio.to_thread(asyncio.run, made.close())
    await made.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_has_the_same_settings_and_its_own_connection(kind: Any, clone: Any, tmp_path: Any) -> None:
    made = kind(
        ["127.0.0.1:1", "127.0.0.1:2"],
        model="hash",
        token="secret",
        timeout=3,
        priority="bulk",
        tenant="team",
        max_message_bytes=1 << 20,
        keepalive_s=7,
        url_timeout_s=2,
        url_max_bytes=1000,
    )
    made.note = ["the caller's own"]
    twin = clone(made)
    assert type(twin) is kind
    assert twin._core.settings == made._core.settings
    assert twin.note == made.note
    assert twin._core is not made._core
    assert twin._opening is not made._opening


def test_a_copy_outlives_its_original(client: Client) -> None:
    assert embed_some(client, 1)
    with copy.copy(client) as twin:
        client.close()
        assert embed_some(twin, 1)
    with pickle.loads(pickle.dumps(client)) as reopened:
        assert embed_some(reopened, 1)


def test_credentials_that_cannot_be_pickled_are_named() -> None:
    client = Client("127.0.0.1:1", tls=grpc.ssl_channel_credentials())
    with pytest.raises(TypeError, match=r"tls=grpc.ChannelCredentials cannot be pickled.*tls=True"):
        pickle.dumps(client)


# Event loops


def test_one_client_in_event_loops_one_after_the_other(server: Running) -> None:
    client = AsyncClient(server.target, timeout=10)
    for _ in range(3):
        assert embed_in_a_loop(client) == "(16,)"

    async def close() -> None:
        await client.close()

    asyncio.run(close())
    assert embed_in_a_loop(client) == "the client is closed"


async def test_a_client_of_an_open_event_loop_is_refused_in_another_at_once(aclient: AsyncClient) -> None:
    await aclient.embed(b"cat")

    async def close() -> None:
        await aclient.close()

    async with asyncio.timeout(5):
        said = await asyncio.to_thread(embed_in_a_loop, aclient)
        assert "belongs to another event loop" in said
        with pytest.raises(pixvec.PixvecError, match="make one client for each event loop"):
            await asyncio.to_thread(asyncio.run, close())
    assert (await aclient.embed(b"cat")).shape == (16,)
