"""What front ends and the device process share: slots, records, messages; and one server's metrics."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixvec_server import errors
from pixvec_server.errors import DeadlineError, NonFiniteError, RequestError
from pixvec_server.frontends import link, ports, slots
from pixvec_server.frontends.children import Backoff
from pixvec_server.frontends.control import Control, close_all, pair
from pixvec_server.frontends.merging import Family, Ledger, merge
from pixvec_server.types import State

REASONS = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "reason")]


def _arena(count: int = 4, size: int = 8192) -> slots.Arena:
    return slots.Arena(slots.create("test", count * size), count, size)


def test_a_slot_holds_arrays_of_any_kind_that_fits() -> None:
    arena = _arena()
    arena.table((8, 8, 3), np.uint8)[1] = 7
    arena.table((5,), np.int64)[2] = [1, 2, 3, 4, 5]
    assert arena.read(1, 192) == bytes([7]) * 192
    assert arena.table((5,), np.int64)[2].tolist() == [1, 2, 3, 4, 5]
    assert arena.read(0, 8192) == arena.read(3, 8192) == bytes(8192)
    with pytest.raises(ValueError, match="over a slot"):
        arena.table((8193,), np.uint8)


def test_the_memory_has_no_name_and_cannot_shrink() -> None:
    fd = slots.create("test", 8192)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    assert "test" not in " ".join(map(str, Path("/dev/shm").iterdir()))
    os.close(fd)


async def test_who_finds_no_slot_waits_in_turn() -> None:
    free = slots.Slots(2)
    taken = [await free.take(), await free.take()]
    waiting = [asyncio.create_task(free.take()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    free.give(taken[0])
    assert await waiting[1] == taken[0]
    assert not waiting[2].done()
    free.give(taken[1])
    assert await waiting[2] == taken[1]
    for slot in taken:
        free.give(slot)
    assert free.free == 2


async def test_a_slot_given_to_one_who_has_just_left_is_not_lost() -> None:
    free = slots.Slots(1)
    slot = await free.take()
    task = asyncio.create_task(free.take())
    await asyncio.sleep(0)
    free.give(slot)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert free.free == 1


async def test_those_who_wait_hear_that_the_device_is_gone() -> None:
    free = slots.Slots(1)
    await free.take()
    task = asyncio.create_task(free.take())
    await asyncio.sleep(0)
    free.fail(DeadlineError("gone"))
    with pytest.raises(DeadlineError):
        await task


def test_slots_are_as_many_as_may_be_in_hand_and_bounded_in_bytes() -> None:
    assert slots.slot_count(150_000, 1024) == 1024
    assert slots.slot_count(8 << 20, 1024) == 128
    assert slots.slot_count(64 << 20, 1024) == 64
    assert slots.slot_count(8 << 20, 16) == 16


def test_the_board_tells_all() -> None:
    fd = slots.create("board", slots.Board.bytes_for(2))
    device, front = slots.Board(os.dup(fd), 2), slots.Board(fd, 2)
    assert front.state(1) is State.LOADING
    device.tell(1, State.READY, 0.25)
    assert (front.state(1), front.queue_s(1)) == (State.READY, 0.25)
    assert (front.state(0), front.queue_s(0)) == (State.LOADING, 0.0)


RECORD = st.tuples(
    st.integers(0, 255), st.integers(0, 65535), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)


@given(st.lists(RECORD, max_size=20), st.lists(st.integers(1, 60), max_size=20))
def test_records_arrive_however_they_are_cut(records: list[tuple[int, ...]], cuts: list[int]) -> None:
    data = b"".join(link.ANSWER.pack(*record, 0.0, 0.0) for record in records)
    seen: list[tuple[int, ...]] = []

    def take(arrived: Iterator[tuple[Any, ...]]) -> None:
        seen.extend(record[:4] for record in arrived)

    end = link.Link(link.ANSWER, take, lambda: None)
    for cut in [*cuts, len(data)]:
        end.data_received(data[:cut])
        data = data[cut:]
    assert seen == records


async def test_one_turns_records_leave_in_one_write_and_a_lost_link_is_told_once() -> None:
    ours, theirs = socket.socketpair()
    lost: list[int] = []
    end = link.Link(link.ASK, lambda _: None, lambda: lost.append(1))
    await end.open(ours)
    theirs.setblocking(False)
    for slot in range(100):
        end.send(link.ASK.pack(link.WANTED, 0, 0, slot, 0.0, 1))
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    await asyncio.sleep(0)
    assert [record[3] for record in link.ASK.iter_unpack(theirs.recv(100_000))] == list(range(100))
    theirs.close()
    while not lost:
        await asyncio.sleep(0.001)
    end.send(b"nobody reads this")
    await asyncio.sleep(0)
    assert lost == [1]


@given(
    st.sampled_from(REASONS),
    st.text(max_size=600),
    st.text(max_size=200),
    st.none() | st.floats(0, 10),
)
def test_an_error_keeps_its_kind_and_words(
    kind: type[RequestError], message: str, field: str, retry_after: float | None
) -> None:
    error = kind(message, field=field, retry_after=retry_after)
    packed = link.pack_error(error)
    assert len(packed) <= 8192
    got = link.unpack_error(packed)
    assert type(got) is kind
    readable = [text.encode(errors="replace").decode() for text in (error.message, error.field)]
    assert [got.message, got.field, got.retry_after] == [*readable, retry_after]


def test_an_error_of_a_kind_of_its_own_arrives_as_its_reason() -> None:
    class OddError(NonFiniteError):
        pass

    assert type(link.unpack_error(link.pack_error(OddError("x", field="y")))) is NonFiniteError


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=64, unique=True), st.randoms())
def test_outputs_travel_as_bits(known: list[str], random: Any) -> None:
    wanted = tuple(sorted(random.sample(known, random.randint(1, len(known)))))
    assert link.from_bits(link.to_bits(wanted, tuple(known)), tuple(known)) == wanted
    with pytest.raises(ValueError, match="bits beyond"):
        link.from_bits(1 << len(known), tuple(known))


async def test_messages_bring_their_descriptors_and_large_ones_arrive_whole() -> None:
    ours, theirs = pair()
    one, other = Control(ours), Control(theirs)
    with ExitStack() as files:
        memory = [slots.create(f"m{i}", 8) for i in range(3)]
        for i, fd in enumerate(memory):
            files.callback(os.close, fd)
            os.pwrite(fd, b"%d" % i, 0)
        large = "x" * 3_000_000
        one.send({"text": large})
        one.send({"n": 1}, memory[:1])
        one.send({"n": 2}, memory[1:])
        one.send({"text": large}, memory[:1])
        got = [await other.receive() for _ in range(4)]
    assert [item and item[0].get("n") for item in got] == [None, 1, 2, None]
    assert [item and [os.pread(fd, 1, 0) for fd in item[1]] for item in got] == [
        [], [b"0"], [b"1", b"2"], [b"0"]
    ]  # fmt: skip
    assert not any(os.get_inheritable(fd) for item in got if item for fd in item[1])
    for item in got:
        close_all(item[1] if item else [])
    one.close()
    assert await other.receive() is None


def _counter(value: float, model: str = "a") -> Family:
    return Family("pixvec_items", "counter", "Items.", {("pixvec_items_total", (("model", model),)): value})


def _total(families: list[Family]) -> float:
    return sum(sum(family.samples.values()) for family in families if family.name == "pixvec_items")


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.integers(0, 5), st.booleans()), max_size=40))
def test_no_counter_falls_whoever_dies(events: list[tuple[str, int, bool]]) -> None:
    ledger, counts, last, told = Ledger(), dict.fromkeys("pqr", 0), 0.0, 0
    for process, more, dies in events:
        counts[process] += more
        told += more
        ledger.tell(process, [_counter(counts[process])])
        if dies:
            ledger.leave(process)
            counts[process] = 0
        now = _total(ledger.merged())
        assert now >= last
        assert now == told
        last = now


def test_gauges_and_what_is_of_a_process_end_with_it() -> None:
    def of(value: float) -> list[Family]:
        return [
            _counter(value),
            Family("pixvec_inflight_items", "gauge", "", {("pixvec_inflight_items", ()): value}),
            Family("process_cpu_seconds", "counter", "", {("process_cpu_seconds_total", ()): value}),
            Family("pixvec_model", "info", "", {("pixvec_model_info", (("model", "a"),)): 1.0}),
        ]

    ledger = Ledger()
    ledger.tell("p", of(1))
    ledger.tell("q", of(2))
    merged = {family.name: family.samples for family in ledger.merged()}
    assert merged["pixvec_inflight_items"] == {("pixvec_inflight_items", ()): 3.0}
    assert list(merged["pixvec_model"].values()) == [1.0]
    assert merged["process_cpu_seconds"] == {
        ("process_cpu_seconds_total", (("process", "p"),)): 1,
        ("process_cpu_seconds_total", (("process", "q"),)): 2,
    }
    ledger.leave("q")
    merged = {family.name: family.samples for family in ledger.merged()}
    assert merged["pixvec_inflight_items"] == {("pixvec_inflight_items", ()): 1.0}
    assert list(merged["pixvec_items"].values()) == [3.0]
    assert len(merged["process_cpu_seconds"]) == 1


FAMILY = st.builds(
    lambda value, model: [_counter(value, model)], st.integers(0, 100), st.sampled_from(["a", "b"])
)


@given(st.lists(FAMILY, max_size=6))
def test_merging_is_a_sum_and_survives_the_way(several: list[list[Family]]) -> None:
    whole = merge(several)
    assert _total(whole) == sum(map(_total, several))
    assert merge([merge(several[:2]), merge(several[2:])]) == whole
    assert [Family.of_plain(family.plain()) for family in whole] == whole


def test_a_crash_loop_is_slowed_and_a_long_life_forgives() -> None:
    waits = Backoff()
    assert [waits.next(1.0) for _ in range(9)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert waits.next(3600.0) == 0.0
    assert waits.next(1.0) == 0.5


def test_the_port_is_shared_with_front_ends_and_with_no_other_server() -> None:
    with ports.reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with socket.socket() as front:
            front.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            front.bind(("127.0.0.1", port))
            front.listen()
            with pytest.raises(errors.ConfigError, match=f"127.0.0.1:{port}: Address already in use"):
                ports.reserve("127.0.0.1", port)
