"""A stream of messages in virtual time: order, window, failures, stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import virtual_time

from pixvec_server.errors import DrainingError
from pixvec_server.rpc.flow import Flow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Caller:
    """Sends numbers as fast as they are read, and takes answers every `pace` seconds."""

    def __init__(self, count: int, pace: float = 0.0, *, silent_after: bool = False) -> None:
        self.count = count
        self.pace = pace
        self.silent_after = silent_after
        self.read = 0
        self.most_ahead = 0
        self.got: list[int] = []

    async def requests(self) -> AsyncIterator[int]:
        for i in range(self.count):
            self.read += 1
            self.most_ahead = max(self.most_ahead, self.read - len(self.got))
            yield i
        if self.silent_after:
            await asyncio.Event().wait()

    async def write(self, response: int) -> None:
        await asyncio.sleep(self.pace)
        self.got.append(response)


async def _later_ones_first(message: int) -> int:
    await asyncio.sleep(10 - message % 10)
    return message


def test_ordered_answers_leave_in_the_order_of_their_messages() -> None:
    caller = Caller(30)
    done: list[int] = []

    async def answer(message: int) -> int:
        await _later_ones_first(message)
        done.append(message)
        return message

    flow = Flow(answer, caller.write, 10, asyncio.Event(), ordered=True)
    virtual_time.run(flow.serve(caller.requests()))
    assert caller.got == list(range(30))
    assert done[:10] == list(reversed(range(10)))


def test_unordered_answers_leave_as_they_are_done() -> None:
    caller = Caller(10)
    flow = Flow(_later_ones_first, caller.write, 10, asyncio.Event())
    virtual_time.run(flow.serve(caller.requests()))
    assert caller.got == list(reversed(range(10)))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_reader_is_read_no_further_than_the_window(ordered: bool) -> None:
    caller = Caller(60, pace=5.0)
    flow = Flow(_later_ones_first, caller.write, 4, asyncio.Event(), ordered=ordered)
    virtual_time.run(flow.serve(caller.requests()))
    assert sorted(caller.got) == list(range(60))
    assert caller.most_ahead == 4


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("silent_after", [True, False])
@pytest.mark.parametrize("pace", [0.0, 3.0])
def test_a_failing_write_ends_the_stream_and_is_the_last(
    ordered: bool, silent_after: bool, pace: float
) -> None:
    class Gone(Caller):
        tries = 0

        async def write(self, response: int) -> None:
            self.tries += 1
            await super().write(response)
            if len(self.got) == 3:
                raise ConnectionError(response)

    async def main() -> None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        caller = Gone(20, pace, silent_after=silent_after)
        flow = Flow(_later_ones_first, caller.write, 5, asyncio.Event(), ordered=ordered)
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(flow.serve(caller.requests()), 100)
        for _ in range(10):
            await asyncio.sleep(0)
        assert (len(caller.got), caller.tries) == (3, 3)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        assert complaints == []

    virtual_time.run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_a_fault_of_ours_leaves_no_hole_before_a_later_answer(ordered: bool) -> None:
    async def answer(message: int) -> int:
        if message == 1:
            raise ZeroDivisionError
        return await _later_ones_first(message)

    caller = Caller(4)
    flow = Flow(answer, caller.write, 4, asyncio.Event(), ordered=ordered)
    with pytest.raises(ZeroDivisionError):
        virtual_time.run(flow.serve(caller.requests()))
    assert caller.got == []


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stop_answers_what_was_read_in_its_order(ordered: bool) -> None:
    async def main() -> None:
        caller, stop = Caller(1000), asyncio.Event()
        asyncio.get_running_loop().call_later(31.5, stop.set)
        flow = Flow(_later_ones_first, caller.write, 4, stop, ordered=ordered)
        with pytest.raises(DrainingError):
            await flow.serve(caller.requests())
        assert 0 < len(caller.got) < 1000
        assert caller.read - len(caller.got) <= 1
        if ordered:
            assert caller.got == list(range(len(caller.got)))

    virtual_time.run(main())


def test_a_failure_during_a_stop_is_no_orderly_stop() -> None:
    """The message that failed was read and is unanswered: a stop must not hide that."""

    async def main() -> None:
        stop = asyncio.Event()

        async def answer(message: int) -> int:
            await asyncio.sleep(1)
            stop.set()
            raise ZeroDivisionError(message)

        flow = Flow(answer, Caller(0).write, 1, stop, ordered=True)
        with pytest.raises(ZeroDivisionError):
            await flow.serve(Caller(3).requests())

    virtual_time.run(main())
