"""The cache's rules: bytes, order of leaving, and one maker at a time. In virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support import virtual_time

from pixvec_server.cache import ENTRY_BYTES, Cache, Got, digest, key
from pixvec_server.errors import DeadlineError, InternalError, RequestError, UndecodableError
from pixvec_server.types import Encoded, Pixels, Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.types import Content

A, B, C, D = b"a", b"b", b"c", b"d"


class Maker:
    """Takes a second for a value, and remembers what it was asked; `fail` is raised or given instead."""

    def __init__(self, fail: Exception | None = None, *, give: bool = False) -> None:
        self.fail = fail
        self.give = give
        self.asked: list[list[bytes]] = []

    async def __call__(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | RequestError]:
        self.asked.append(list(keys))
        await asyncio.sleep(1)
        if self.fail is None:
            return {one: one.upper() for one in keys}
        if self.give:
            assert isinstance(self.fail, RequestError)
            return dict.fromkeys(keys, self.fail)
        raise self.fail


def _cache(entries: int = 100) -> Cache[bytes]:
    """Return a cache with room for so many values of one byte."""
    return Cache(entries * (ENTRY_BYTES + 1), len)


def _fill(cache: Cache[bytes], *keys: bytes) -> None:
    virtual_time.run(cache.obtain(keys, Maker()))


def _made_again(cache: Cache[bytes], *keys: bytes) -> list[bytes]:
    """Ask for keys; return those that are no longer kept."""
    maker = Maker()
    virtual_time.run(cache.obtain(keys, maker))
    return [one for asked in maker.asked for one in asked]


def test_a_value_is_made_once_and_then_given() -> None:
    cache = _cache()
    _fill(cache, A)
    maker = Maker()
    got = virtual_time.run(cache.obtain([A, B, A, B], maker))
    assert got == {A: Got(b"A", joined=False)}
    assert maker.asked == [[B]]


def test_the_least_recently_used_leaves_first() -> None:
    gone: list[None] = []
    cache: Cache[bytes] = Cache(3 * (ENTRY_BYTES + 1), len, lambda: gone.append(None))
    _fill(cache, A, B, C)
    _fill(cache, A)
    _fill(cache, D)
    assert (len(cache), cache.bytes, len(gone)) == (3, 3 * (ENTRY_BYTES + 1), 1)
    assert _made_again(cache, A, C, D) == []
    assert _made_again(cache, B) == [B]
    assert (len(cache), len(gone)) == (3, 2)


def test_bytes_are_what_bounds_it() -> None:
    cache: Cache[bytes] = Cache(3 * ENTRY_BYTES, lambda value: len(value) * ENTRY_BYTES // 2)
    _fill(cache, A, b"bb")
    assert (len(cache), cache.bytes) == (1, 2 * ENTRY_BYTES)
    assert _made_again(cache, b"bb") == []
    _fill(cache, b"longer than all of it")
    assert _made_again(cache, b"bb") == []
    assert cache.bytes == 2 * ENTRY_BYTES


def test_what_has_no_size_is_not_kept_but_shared() -> None:
    cache: Cache[bytes] = Cache(1 << 20, lambda _value: None)

    async def main() -> None:
        maker = Maker()
        got = await asyncio.gather(*(cache.obtain([A], maker) for _ in range(3)))
        assert maker.asked == [[A]]
        assert got == [{}, {A: Got(b"A", joined=True)}, {A: Got(b"A", joined=True)}]
        assert len(cache) == 0

    virtual_time.run(main())


def test_those_who_come_meanwhile_wait_for_the_first() -> None:
    async def main() -> None:
        cache, maker = _cache(), Maker()
        first = asyncio.create_task(cache.obtain([A, B], maker))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(cache.obtain([B, C], maker))
        assert await first == {}
        assert maker.asked == [[A, B], [C]]
        assert await second == {B: Got(b"B", joined=True)}
        assert asyncio.get_running_loop().time() == 1.5

    virtual_time.run(main())


def test_two_who_want_each_others_keys_do_not_wait_for_ever() -> None:
    async def main() -> None:
        cache, maker = _cache(), Maker()
        one = asyncio.create_task(cache.obtain([A, B], maker))
        other = asyncio.create_task(cache.obtain([C, B, A], maker))
        third = asyncio.create_task(cache.obtain([C, A], maker))
        await asyncio.gather(one, other, third)
        assert maker.asked == [[A, B], [C]]

    virtual_time.run(main())


async def _after_a_lost_leader(
    cache: Cache[bytes], leader: Maker, waiters: int
) -> tuple[Maker, list[object]]:
    """Let a leader fail with others waiting; return who made what after it, and what all got."""
    first = asyncio.create_task(cache.obtain([A], leader))
    await asyncio.sleep(0)
    makers = Maker()
    others = [asyncio.create_task(cache.obtain([A], makers)) for _ in range(waiters)]
    await asyncio.sleep(0.5)
    if leader.fail is None:
        first.cancel()
    return makers, await asyncio.gather(first, *others, return_exceptions=True)


@pytest.mark.parametrize(
    "leader", [Maker(), Maker(DeadlineError("too late")), Maker(DeadlineError("too late"), give=True)]
)
def test_one_takes_over_from_a_leader_that_leaves(leader: Maker) -> None:
    cache = _cache()
    takers, outcomes = virtual_time.run(_after_a_lost_leader(cache, leader, 5))
    assert takers.asked == [[A]]
    assert outcomes[1:].count({A: Got(b"A", joined=True)}) == 4
    assert _made_again(cache, A) == []


@pytest.mark.parametrize("give", [False, True])
@pytest.mark.parametrize("fail", [UndecodableError("no"), InternalError("ours")])
def test_a_failure_is_neither_shared_nor_kept(fail: RequestError, *, give: bool) -> None:
    cache = _cache()
    takers, outcomes = virtual_time.run(_after_a_lost_leader(cache, Maker(fail, give=give), 3))
    assert takers.asked == [[A]] * 3
    assert outcomes == [{} if give else fail, {}, {}, {}]
    _, outcomes = virtual_time.run(_after_a_lost_leader(_cache(), Maker(RuntimeError("bug")), 2))
    assert [type(one) for one in outcomes] == [RuntimeError, dict, dict]


def test_what_fails_for_all_is_tried_by_each_and_once() -> None:
    async def main() -> None:
        cache, maker = _cache(), Maker(UndecodableError("no"))
        calls = (cache.obtain([A], maker) for _ in range(4))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [UndecodableError] * 4
        assert maker.asked == [[A]] * 4
        assert asyncio.get_running_loop().time() == 2.0
        assert len(cache) == 0

    virtual_time.run(main())


def test_a_waiters_own_deadline_holds_and_harms_nobody() -> None:
    async def main() -> None:
        cache, maker = _cache(), Maker()
        first = asyncio.create_task(cache.obtain([A], maker))
        await asyncio.sleep(0.25)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await cache.obtain([A], maker)
        assert asyncio.get_running_loop().time() == 0.75
        assert await first == {}
        assert maker.asked == [[A]]

    virtual_time.run(main())


def test_a_part_that_is_not_made_is_left_to_its_waiters() -> None:
    async def main() -> None:
        cache = _cache()

        async def half(keys: Sequence[bytes]) -> Mapping[bytes, bytes | RequestError]:
            return {one: value for one, value in (await Maker()(keys)).items() if one == A}

        maker = Maker()
        got = await asyncio.gather(cache.obtain([A, B], half), cache.obtain([A, B], maker))
        assert list(got) == [{}, {A: Got(b"A", joined=True)}]
        assert maker.asked == [[B]]

    virtual_time.run(main())


def test_what_is_sent_has_one_name_and_no_other_has_it() -> None:
    contents: list[Content] = [
        Encoded(b"ab"),
        Encoded(b"a"),
        Pixels((1, 2, 1), b"ab"),
        Pixels((2, 1, 1), b"ab"),
        Text("ab"),
        Encoded(b""),
        Text(""),
    ]
    assert len({digest(content) for content in contents}) == len(contents)
    assert digest(Encoded(b"ab")) == digest(Encoded(bytes([97, 98])))
    assert len({key("a", "b"), key("ab", ""), key("a', 'b"), key(b"a", "b"), key("b", "a")}) == 5
