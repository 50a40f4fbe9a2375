"""Threads for one event loop: results, errors, cancelling, closing, and nothing kept."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from pixvec_server.threads import Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(2, "test")
    yield made
    made.close()


async def test_each_caller_gets_its_own_result_or_error(threads: Threads) -> None:
    def divide(number: int) -> float:
        return 60 / number

    got = await asyncio.gather(*(threads.run(divide, n % 7) for n in range(5000)), return_exceptions=True)
    for n, outcome in enumerate(got):
        if n % 7:
            assert outcome == 60 / (n % 7)
        else:
            assert isinstance(outcome, ZeroDivisionError)


async def test_as_many_run_at_a_time_as_there_are_threads(threads: Threads) -> None:
    both = threading.Barrier(2)
    names = await asyncio.gather(*(threads.run(_meet, both) for _ in range(2)))
    assert sorted(names) == ["test-0", "test-1"]


def _meet(barrier: threading.Barrier) -> str:
    barrier.wait(5)
    return threading.current_thread().name


async def test_what_is_cancelled_before_its_turn_is_not_begun(threads: Threads) -> None:
    go = threading.Event()
    begun: list[int] = []
    busy = [threads.run(go.wait, 5) for _ in range(2)]
    waiting = threads.run(begun.append, 1)
    waiting.cancel()
    go.set()
    assert await asyncio.gather(*busy) == [True, True]
    await threads.run(int)
    assert begun == []


async def test_what_is_cancelled_in_its_turn_disturbs_nobody(threads: Threads) -> None:
    go = threading.Event()
    running = threads.run(go.wait, 5)
    await asyncio.sleep(0)
    running.cancel()
    go.set()
    assert await asyncio.gather(*(threads.run(int, n) for n in range(10))) == list(range(10))


async def test_closing_cancels_what_waits_and_ends_the_threads() -> None:
    threads, go = Threads(1, "closing"), threading.Event()
    running = threads.run(go.wait, 5)
    await asyncio.sleep(0.05)
    waiting = threads.run(int)
    threads.close()
    assert waiting.cancelled()
    go.set()
    assert await running
    for thread in [t for t in threading.enumerate() if t.name.startswith("closing")]:
        thread.join(5)
        assert not thread.is_alive()


async def test_an_idle_thread_keeps_nothing(threads: Threads) -> None:
    array = np.zeros(10)
    gone = weakref.ref(array)
    await threads.run(np.sum, array)
    del array
    await threads.run(int)
    await threads.run(int)
    gc.collect()
    assert gone() is None


def test_a_closed_loop_harms_no_thread() -> None:
    threads, go = Threads(1, "late"), threading.Event()

    async def leave() -> None:
        threads.run(go.wait, 5)

    asyncio.run(leave())
    go.set()
    while threads._tasks.qsize() or threads._handing_over:
        threading.Event().wait(0.001)

    async def again() -> int:
        return await threads.run(int, 7)

    assert asyncio.run(again()) == 7
    threads.close()
