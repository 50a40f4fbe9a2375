"""From one input to the networks' outputs: kept from before, joined while another makes them, or made."""

from __future__ import annotations

import asyncio
import contextvars
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from pixvec_server import cache, log
from pixvec_server.errors import InternalError, RequestError
from pixvec_server.reading import Reader
from pixvec_server.statistics import smooth
from pixvec_server.threads import Threads
from pixvec_server.types import Cost

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Mapping, Sequence

    from pixvec_server.cache import Cache
    from pixvec_server.metrics import Metrics
    from pixvec_server.preprocess import Decoder
    from pixvec_server.reading import Read
    from pixvec_server.served import Served, Work
    from pixvec_server.types import F32, Input, Source

# What is hashed on the event loop; the rest is worth a thread's 0.1 ms.
_INLINE_BYTES = 256 << 10
T = TypeVar("T")
_log = log.get("inference")


class Place(NamedTuple):
    """One output that is wanted of an input: of a region, by its index, and a model, by its name."""

    region: int
    model: str
    output: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of each of its inputs: outputs by model, until when, and who asks.

    `view` is the door's; `tenant` says whose kept outputs it may be given; `costs`, by model, grow meanwhile.
    """

    outputs: Mapping[Served, tuple[str, ...]]
    deadline: float
    view: str
    tenant: str
    costs: Mapping[str, Cost]

    def places(self, item: Input) -> dict[Place, Served]:
        """Return all that is wanted of an input, and the model of each."""
        return {
            Place(region, engine.name, output): engine
            for region in range(len(item.regions))
            for engine, outputs in self.outputs.items()
            for output in outputs
        }


@dataclass(frozen=True, slots=True)
class Output:
    """An output as the network gave it, float32, and what it took here in seconds.

    cached: it is of another request, kept or joined.
    """

    values: F32
    queue_s: float = 0.0
    compute_s: float = 0.0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache holds of one output, with what was read of the input that it is of."""

    values: F32
    source: Source


@dataclass(slots=True)
class Inferred:
    """What came of an input. A place without an outcome is an output that its kind of input does not have.

    cut: the models for which words of a text were cut off.
    """

    source: Source
    outcomes: dict[Place, Output | RequestError]
    cost: Cost = field(default_factory=Cost)
    cut: frozenset[str] = frozenset()

    def kept(self, place: Place) -> Kept | RequestError:
        """Return an outcome as the cache holds it: its own numbers, for the batch's would all stay."""
        outcome = self.outcomes[place]
        if isinstance(outcome, RequestError):
            return outcome
        own = np.array(outcome.values)
        own.flags.writeable = False
        return Kept(own, replace(self.source, truncated=place.model in self.cut))


def kept_bytes(kept: Kept) -> int | None:
    """Return the bytes of the numbers; None when they are not finite, which is an error and never kept."""
    return kept.values.nbytes if np.isfinite(kept.values).all() else None


class Inferrer:
    """Reads inputs on decode threads and runs them on the engines, unless a cache has the outputs."""

    def __init__(
        self, decoder: Decoder, metrics: Metrics, *, decode_threads: int, kept: Cache[Kept] | None = None
    ) -> None:
        self._reader = Reader(decoder)
        self._metrics = metrics
        self._cache = kept
        self._threads = Threads(decode_threads, "decode")
        self._decode_threads = decode_threads
        self._decode_s = 0.0  # smoothed seconds that one input keeps a thread
        self._reading = 0  # inputs that wait for a decode thread or are on one

    @property
    def caches(self) -> bool:
        """Whether outputs are kept."""
        return self._cache is not None

    @property
    def wait_s(self) -> float:
        """Seconds until the inputs that wait for a decode thread have been read; 0 when none waits."""
        waiting = max(0, self._reading - self._decode_threads)
        return waiting * self._decode_s / self._decode_threads

    def close(self) -> None:
        """Let the decode threads end when they are done."""
        self._threads.close()

    async def infer(self, item: Input, wish: Wish) -> Inferred:
        """Return the outputs. Raises RequestError when the input as a whole cannot be answered."""
        if self._cache is None:
            return await self._make(item, wish, wish.places(item))
        return await self._recall(item, wish, self._cache)

    async def _recall(self, item: Input, wish: Wish, kept: Cache[Kept]) -> Inferred:
        started = time.monotonic()
        keys = await self._keys(item, wish)
        lookup = Cost(lookup_s=time.monotonic() - started)
        for engine in wish.outputs:
            wish.costs[engine.name].add(lookup)
        made: list[Inferred] = []

        async def make(missing: Sequence[bytes]) -> Mapping[bytes, Kept | RequestError]:
            asked = set(missing)
            left = [place for place, key in keys.items() if key in asked]
            self._metrics.looked_up("miss", (place.model for place in left))
            made.append(await self._make(item, wish, left))
            return {keys[place]: made[-1].kept(place) for place in made[-1].outcomes}

        got = await kept.obtain(keys.values(), make)
        given = {place: got[key] for place, key in keys.items() if key in got}
        for place, one in given.items():
            self._metrics.looked_up("join" if one.joined else "hit", (place.model,))
        return _merged(made, {place: one.value for place, one in given.items()})

    async def _keys(self, item: Input, wish: Wish) -> dict[Place, bytes]:
        """Return the name of each output: of all that decides its numbers, and of the tenant."""
        builds = {place: engine.build(place.output) for place, engine in wish.places(item).items()}
        context = self._reader.context(item, tuple(wish.outputs))
        whole = (await _digest(item), wish.tenant, item.prompt, context)
        # The model's name as well as its build: prompts and tokenizer are the model's own.
        return {
            place: cache.key(whole, item.regions[place.region], place.model, build, place.output)
            for place, build in builds.items()
        }

    async def _make(self, item: Input, wish: Wish, places: Collection[Place]) -> Inferred:
        """Read the input and infer what is wanted of it, the outputs of one region and model together."""
        wanted: dict[tuple[int, str], list[str]] = {}
        for place in places:
            wanted.setdefault((place.region, place.model), []).append(place.output)
        read = await self._read(item, wish, wanted)
        engines = {engine.name: engine for engine in wish.outputs}
        runs = [
            _infer_one(engines[name], _work(read, region, name), outputs, wish)
            for (region, name), outputs in wanted.items()
        ]
        outcomes = {
            Place(region, name, output): outcome
            for (region, name), of_part in zip(wanted, await together(runs), strict=True)
            for output, outcome in of_part.items()
        }
        cost = Cost(decode_s=read.seconds, pixels=read.pixels, tokens=read.tokens)
        return Inferred(read.source, outcomes, cost, read.cut)

    async def _read(self, item: Input, wish: Wish, wanted: Collection[tuple[int, str]]) -> Read:
        engines = tuple(wish.outputs)
        if self._reader.needs_no_thread(item, engines):
            read = self._reader.read(item, engines, wish.deadline, wanted)
        else:
            self._reading += 1
            try:
                # In the request's context, so that what a decoder warns of is logged with the request's id.
                context = contextvars.copy_context()
                read = await self._threads.run(
                    context.run, self._reader.read, item, engines, wish.deadline, wanted
                )
            finally:
                self._reading -= 1
        self._decode_s = smooth(self._decode_s, read.seconds)
        self._metrics.decodes.inc(read.decodes)
        for engine in engines:
            self._metrics.decode_seconds.labels(engine.name).observe(read.seconds)
            wish.costs[engine.name].add(Cost(decode_s=read.seconds))
        return read


def _merged(made: Sequence[Inferred], given: Mapping[Place, Kept]) -> Inferred:
    """Put together what was made here, in at most a few turns, and what was given."""
    sources = [one.source for one in made] or [kept.source for kept in given.values()]
    truncated = any(source.truncated for source in sources)
    merged = Inferred(replace(sources[0], truncated=truncated), {})
    for one in made:
        merged.outcomes |= one.outcomes
        merged.cost.add(one.cost)
    merged.outcomes |= {place: Output(kept.values, cached=True) for place, kept in given.items()}
    return merged


async def _digest(item: Input) -> bytes:
    if item.size <= _INLINE_BYTES:
        return cache.digest(item.content)
    # Not on a decode thread: what is kept need not wait for what is being decoded.
    return await asyncio.to_thread(cache.digest, item.content)


def _work(read: Read, region: int, model: str) -> Work | RequestError:
    part = read.parts[region]
    return part if isinstance(part, RequestError) else part[model]


async def _infer_one(
    engine: Served, work: Work | RequestError, outputs: Sequence[str], wish: Wish
) -> dict[str, Output | RequestError]:
    """Run one region's work on one model; its failure is that of each of the outputs."""
    if isinstance(work, RequestError):
        return dict.fromkeys(outputs, work)
    wanted = [output for output in outputs if engine.has(work.tower, output)]
    if not wanted:
        return {}
    try:
        done = await engine.infer(work, wanted, wish.deadline, wish.view)
        return {name: Output(values, done.queue_s, done.compute_s) for name, values in done.values.items()}
    except RequestError as exc:
        return dict.fromkeys(wanted, exc)
    except Exception:  # noqa: BLE001 - one crop's failure stays its own, and is logged in full
        _log.exception("a batch failed")
        error = InternalError("the model failed on this input; the server's log has the call's x-request-id")
        return dict.fromkeys(wanted, error)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all, in order; one alone needs no task of its own."""
    return [await work[0]] if len(work) == 1 else list(await asyncio.gather(*work))
