"""The batcher's rules, each in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support import virtual_time

from pixvec_server.batching import Admission, Batcher, BatchReport
from pixvec_server.errors import DeadlineError, DrainingError, InternalError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Device:
    """Takes `seconds` for every batch, and remembers when each started."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.batches: list[list[str]] = []
        self.starts: list[float] = []

    async def run(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        self.starts.append(_now())
        await asyncio.sleep(self.seconds)
        if "poison" in items:
            raise ValueError("poison")
        return [item.upper() for item in items]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _batcher(device: Device, **options: object) -> Batcher[str, str]:
    settings = {"max_batch": 4, "clock": _now, **options}
    return Batcher(device.run, **settings)  # type: ignore[arg-type] # a test's shorthand


async def _later(seconds: float, batcher: Batcher[str, str], item: str, **rest: float) -> str:
    await asyncio.sleep(seconds)
    return await batcher.submit(item, **rest)


def test_an_idle_device_never_waits() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device) as batcher:
            await asyncio.sleep(5)
            assert await batcher.submit("a") == "A"
        assert device.starts == [5.0]

    virtual_time.run(main())


def test_while_the_device_is_busy_the_batch_grows() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device) as batcher:
            await asyncio.gather(*(_later(i / 10, batcher, item) for i, item in enumerate("abcdefg")))
        assert device.batches == [["a"], ["b", "c", "d", "e"], ["f", "g"]]
        assert device.starts == [0.0, 1.0, 2.0]

    virtual_time.run(main())


def test_items_that_arrive_together_share_a_batch() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device) as batcher:
            await asyncio.gather(*(batcher.submit(item) for item in "abc"))
        assert device.batches == [["a", "b", "c"]]

    virtual_time.run(main())


def test_the_delay_runs_from_the_oldest_items_arrival() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device, max_delay=0.5) as batcher:
            await asyncio.gather(_later(1.0, batcher, "a"), _later(1.3, batcher, "b"))
        assert device.batches == [["a", "b"]]
        assert device.starts == [1.5]

    virtual_time.run(main())


def test_a_full_batch_leaves_before_the_delay() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device, max_delay=10.0) as batcher:
            await asyncio.gather(*(batcher.submit(item) for item in "abcd"))
            assert _now() == 1.0

    virtual_time.run(main())


def test_instances_run_at_the_same_time() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device, max_batch=1, instances=2) as batcher:
            await asyncio.gather(*(batcher.submit(item) for item in "abcd"))
            assert _now() == 2.0
        assert device.starts == [0.0, 0.0, 1.0, 1.0]

    virtual_time.run(main())


def test_items_of_different_keys_never_share_a_batch_and_the_oldest_goes_first() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device, key=str.isdigit) as batcher:
            await asyncio.gather(*(_later(i / 100, batcher, item) for i, item in enumerate("a1b2c")))
        assert device.batches == [["a"], ["1", "2"], ["b", "c"]]

    virtual_time.run(main())


def test_a_full_batch_of_another_key_does_not_wait_for_the_oldest_keys_delay() -> None:
    async def main() -> None:
        device = Device(seconds=0.1)
        async with _batcher(device, key=str.isdigit, max_delay=5.0) as batcher:
            await asyncio.gather(*(_later(i / 100, batcher, item) for i, item in enumerate("a1234")))
        assert device.batches == [["1", "2", "3", "4"], ["a"]]
        assert device.starts == pytest.approx([0.04, 5.0])

    virtual_time.run(main())


def test_cancelled_and_expired_items_are_dropped_when_the_batch_forms() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device) as batcher:
            first = asyncio.create_task(batcher.submit("first"))
            await asyncio.sleep(0.1)
            dead = asyncio.create_task(batcher.submit("dead"))
            late = asyncio.create_task(batcher.submit("late", deadline=0.9))
            good = asyncio.create_task(batcher.submit("good", deadline=1.1))
            await asyncio.sleep(0)
            dead.cancel()
            with pytest.raises(DeadlineError):
                await late
            assert [await first, await good] == ["FIRST", "GOOD"]
        assert device.batches == [["first"], ["good"]]

    virtual_time.run(main())


def test_a_failing_batch_is_bisected_until_only_the_culprit_fails() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device) as batcher:
            answers = await asyncio.gather(
                *(batcher.submit(item) for item in ("a", "b", "poison", "d")), return_exceptions=True
            )
            assert await batcher.submit("again") == "AGAIN"
        assert [str(answer) for answer in answers] == ["A", "B", "poison", "D"]
        assert isinstance(answers[2], ValueError)

    virtual_time.run(main())


def test_a_wrong_number_of_results_is_our_error_and_the_loop_lives() -> None:
    async def short(items: Sequence[str]) -> list[str]:
        return ["one"] if len(items) > 1 else ["fine"]

    async def main() -> None:
        async with Batcher(short, max_batch=4, clock=_now) as batcher:
            answers = await asyncio.gather(*(batcher.submit(i) for i in "ab"), return_exceptions=True)
            assert all(isinstance(answer, InternalError) for answer in answers)
            assert await batcher.submit("c") == "fine"

    virtual_time.run(main())


def test_an_item_cancelled_in_its_batch_does_not_hurt_the_others() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device) as batcher:
            gone, stays = (asyncio.create_task(batcher.submit(item)) for item in "ab")
            await asyncio.sleep(0.5)
            gone.cancel()
            assert await stays == "B"

    virtual_time.run(main())


def test_closing_answers_what_is_queued_and_refuses_the_rest() -> None:
    async def main() -> None:
        device = Device()
        batcher = _batcher(device, max_delay=100.0)
        async with batcher:
            queued = asyncio.create_task(batcher.submit("queued"))
            await asyncio.sleep(0)
        assert await queued == "QUEUED"
        assert _now() == 1.0
        with pytest.raises(DrainingError):
            await batcher.submit("late")

    virtual_time.run(main())


def test_a_report_tells_size_waits_and_seconds() -> None:
    async def main() -> None:
        reports: list[BatchReport] = []
        async with _batcher(Device(), on_batch=reports.append) as batcher:
            await asyncio.gather(batcher.submit("a"), _later(0.25, batcher, "b"))
        assert reports == [BatchReport(1, (0.0,), 1.0), BatchReport(1, (0.75,), 1.0)]

    virtual_time.run(main())


def test_admission_is_all_or_nothing_and_never_waits() -> None:
    admission = Admission(max_items=4, max_bytes=100)
    with admission.take(3, 50):
        for items, size in ((2, 1), (1, 51)):
            with pytest.raises(OverloadedError), admission.take(items, size):
                pass
        assert (admission.items, admission.bytes) == (3, 50)
        with admission.take(1, 50):
            assert (admission.items, admission.bytes) == (4, 100)
    assert (admission.items, admission.bytes) == (0, 0)


def test_admission_gives_its_room_back_when_the_body_fails() -> None:
    admission = Admission(max_items=1, max_bytes=1)
    with pytest.raises(ZeroDivisionError), admission.take(1, 1):
        _ = 1 / 0
    assert admission.items == 0


def test_admission_lets_a_stream_wait_for_room() -> None:
    async def main() -> None:
        admission = Admission(max_items=2, max_bytes=100)

        async def hold(seconds: float) -> None:
            await admission.wait(2, 1)
            with admission.take(2, 1):
                await asyncio.sleep(seconds)

        await asyncio.gather(hold(1), hold(2), hold(3))
        assert _now() == 6.0
        with admission.take(2, 1):
            gone = asyncio.create_task(admission.wait(1, 1))
            await asyncio.sleep(1)
            gone.cancel()
        await asyncio.wait_for(admission.wait(2, 1), 1)

    virtual_time.run(main())


def test_what_nobody_wants_any_more_is_dropped_when_the_batch_forms() -> None:
    async def main() -> None:
        device, unwanted = Device(), set[str]()
        async with _batcher(device, wanted=lambda item: item not in unwanted) as batcher:
            running = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(0.5)
            left, stays = batcher.enqueue("b"), batcher.enqueue("c")
            unwanted |= {"a", "b"}
            # What runs already is answered; only what still waits is dropped.
            assert await running == "A"
            assert await stays == "C"
            assert left.cancelled()
        assert device.batches == [["a"], ["c"]]

    virtual_time.run(main())


def test_what_would_expire_in_its_batch_makes_room_for_what_would_not() -> None:
    async def main() -> None:
        device = Device()
        async with _batcher(device, takes=lambda: 1.0) as batcher:
            busy = asyncio.create_task(batcher.submit("a"))
            await asyncio.sleep(0.1)
            late = asyncio.create_task(batcher.submit("late", deadline=1.5))
            good = asyncio.create_task(batcher.submit("good", deadline=2.0))
            with pytest.raises(DeadlineError):
                await late
            assert _now() == 1.0
            assert (await busy, await good) == ("A", "GOOD")
        assert device.batches == [["a"], ["good"]]

    virtual_time.run(main())


def test_a_hopeless_item_runs_when_nothing_else_would() -> None:
    """Else one slow batch could make every later item look hopeless, for good."""

    async def main() -> None:
        device = Device(seconds=0.1)
        async with _batcher(device, takes=lambda: 60.0) as batcher:
            assert await batcher.submit("a", deadline=1.0) == "A"

    virtual_time.run(main())
