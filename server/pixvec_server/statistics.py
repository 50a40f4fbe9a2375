"""What a model has done so far, in the Open Inference Protocol's own terms: requests, items and batches."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixvec_server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixvec_server.types import Cost, Result

_NANO, _MILLI = 1_000_000_000, 1_000_000
_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class Door:
    """The name by which requests reach a model, and what counts as one answered.

    view: what that name has after the model's own ("_pixels"); the contract's calls have none.
    whole: one failed item fails the request, as the protocol has no errors of single items.
    """

    view: str = ""
    whole: bool = False

    def answered(self, results: Sequence[Result]) -> bool:
        """Tell whether a request with these results has succeeded."""
        good = [_good(result) for result in results]
        return all(good) if self.whole else any(good)


CONTRACT = Door()


@dataclass(slots=True)
class Duration:
    """How often something happened, and the nanoseconds that it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count it once more."""
        self.count += 1
        self.ns += int(seconds * _NANO)


@dataclass(slots=True)
class Statistics:
    """Cumulative numbers of one model behind one door.

    success, fail and the four stages are of requests, each stage that of a request's slowest item.
    hit, miss: requests that found all their vectors in the cache, or not; a hit has no stage but the queue.
    items: inferences. batches, by_size: batches on the device, a mixed one counted for its first item's door.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    decode: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    hit: Duration = field(default_factory=Duration)
    miss: Duration = field(default_factory=Duration)
    items: int = 0
    batches: int = 0
    by_size: dict[int, Duration] = field(default_factory=dict)
    last_ms: int = 0

    def request(self, seconds: float, cost: Cost, *, ok: bool, caches: bool = False) -> None:
        """Count a request that has ended; `caches`: its vectors were looked for in a cache."""
        if not ok:
            self.fail.add(seconds)
            return
        self.success.add(seconds)
        self.queue.add(cost.queue_s)
        self.last_ms = time.time_ns() // _MILLI
        if caches and 0 < cost.vectors == cost.cached:
            self.hit.add(cost.lookup_s)
            return
        self.decode.add(cost.decode_s)
        self.compute.add(cost.compute_s)
        self.encode.add(cost.encode_s)
        if caches:
            self.miss.add(cost.lookup_s)

    def batch(self, size: int, seconds: float) -> None:
        """Count a batch that the device has computed."""
        self.batches += 1
        self.by_size.setdefault(size, Duration()).add(seconds)


def _good(result: Result) -> bool:
    return not isinstance(result, RequestError) and not any(
        isinstance(embedding.outcome, RequestError) for embedding in result.embeddings
    )


def smooth(average: float, value: float) -> float:
    """Return an exponentially weighted average; the first value is taken as it is."""
    return average + (value - average) * (_SMOOTHING if average else 1.0)
