"""What counts as a success, and sums that add up."""

from __future__ import annotations

import time
from typing import Any

from support.answers import embedded, vector

from pixvec_server.errors import UndecodableError
from pixvec_server.statistics import CONTRACT, Door, Duration, Statistics
from pixvec_server.types import Cost


def test_a_door_says_what_success_is() -> None:
    good, bad = embedded(vector(1)), UndecodableError("no")
    partly = embedded(vector(1), UndecodableError("no"))
    whole = Door("_pixels", whole=True)
    cases: list[tuple[list[Any], bool, bool]] = [
        ([good, good], True, True),
        ([good, bad], True, False),
        ([good, partly], True, False),
        ([bad, partly], False, False),
        ([bad], False, False),
    ]
    for results, by_contract, by_whole in cases:
        assert CONTRACT.answered(results) is by_contract
        assert whole.answered(results) is by_whole


def test_statistics_add_up() -> None:
    done = Statistics()
    cost = Cost(decode_s=0.001, queue_s=0.002, compute_s=0.003, encode_s=0.004)
    done.request(0.5, cost, ok=True)
    done.request(0.25, cost, ok=True)
    done.request(0.125, cost, ok=False)
    assert done.success == Duration(2, 750_000_000)
    assert done.fail == Duration(1, 125_000_000)
    stages = (done.decode, done.queue, done.compute, done.encode)
    assert [stage.count for stage in stages] == [2, 2, 2, 2]
    assert [stage.ns for stage in stages] == [2_000_000, 4_000_000, 6_000_000, 8_000_000]
    assert abs(done.last_ms - time.time() * 1000) < 60_000
    for size, seconds in ((8, 0.5), (1, 0.25), (8, 0.5)):
        done.batch(size, seconds)
    assert done.batches == 3
    assert done.by_size == {8: Duration(2, 1_000_000_000), 1: Duration(1, 250_000_000)}


def test_a_failure_is_no_last_inference() -> None:
    done = Statistics()
    done.request(1.0, Cost(), ok=False)
    assert (done.last_ms, done.queue.count) == (0, 0)


def test_a_hit_has_no_stage_but_the_queue() -> None:
    done = Statistics()
    hit, mixed = Cost(vectors=2, cached=2, lookup_s=0.001), Cost(vectors=2, cached=1, lookup_s=0.002)
    for cost in (hit, mixed, hit, Cost(lookup_s=0.004)):
        done.request(0.5, cost, ok=True, caches=True)
    done.request(0.5, hit, ok=False, caches=True)
    assert (done.success.count, done.queue.count, done.fail.count) == (4, 4, 1)
    assert (done.hit, done.miss) == (Duration(2, 2_000_000), Duration(2, 6_000_000))
    assert [stage.count for stage in (done.decode, done.compute, done.encode)] == [2, 2, 2]
    done.request(0.5, hit, ok=True)
    assert (done.hit.count, done.miss.count, done.encode.count) == (2, 2, 3)
