"""Measures which engine, precision, instances and batch size suit a model on this machine.

Each way is measured over the whole bare path, with the decoder, the resize and the backend that `serve` has:
decode threads ahead of `instances` engine threads. Rounds go through all ways in turn, so that a machine that
drifts is unfair to none, and only one engine is in memory at a time. A way's figure is that of its best
round, since other work can only slow it; how far its rounds are apart tells whether to believe any of it.
Fidelity is that of the vectors against the model's default placement with exact decoding.

`auto` is given faithful ways only. A precision below the bundle's own is among them when the operator's own
pictures show it to be well over the bar; seeded ones prove nothing about real pictures.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from itertools import cycle
from statistics import median
from typing import TYPE_CHECKING, Any, Final, cast, get_args

import numpy as np

from pixvec_server import memory, tuned
from pixvec_server.agreement import cosines, overlap, same_nearest
from pixvec_server.backends.base import BackendOptions, Kind, Placement, example
from pixvec_server.backends.select import choose, factory, has_lone, installed
from pixvec_server.cpu import available_cpus
from pixvec_server.errors import BackendError, RequestError
from pixvec_server.manifest import Precision
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.preprocess.samples import samples, small_samples
from pixvec_server.spec import EMBEDDING
from pixvec_server.tuned import Entry, Fidelity, Goal, Setting
from pixvec_server.types import WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pixvec_server.backends.base import Backend
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32, U8

Tell = Callable[[int, int, str], None]  # steps done, steps in all, what is measured now
Way = tuple[Kind, Precision, int]  # an engine, its precision, its instances

_INSTANCES = (1, 2, 4)
_BATCHES = {"cpu": (4, 8, 16), "cuda": (8, 16, 32, 64)}
_LEAST, _MOST, _TIMED, _LONE = 54, 512, 16, 8  # pictures
_CHUNK = 8
_LEAST_BATCHES = 3  # of each thread, in one measurement
_PIXELS_IN_HAND = 200_000_000
_GUARD = 1.25  # of the least latency, for `balanced`
_NOISE = 0.03  # a difference below it decides nothing
_STARVED_S, _LOOK_S = 120.0, 0.05
_DIGITS = 7
_BUSY = 0.5  # of the machine's processors
UNSTEADY: Final = 1.5  # a spread beyond it is no basis for a choice


@dataclass(frozen=True, slots=True)
class Bar:
    """What vectors must keep against the default's to be called faithful."""

    cosine_min: float
    overlap_at_10: float
    same_nearest: float

    def kept(self, found: Fidelity) -> bool:
        """Tell whether figures are over it."""
        return (
            found.cosine_min >= self.cosine_min
            and found.overlap_at_10 >= self.overlap_at_10
            and found.same_nearest >= self.same_nearest
        )


BAR: Final = Bar(cosine_min=0.995, overlap_at_10=0.99, same_nearest=0.98)
WELL_OVER: Final = Bar(cosine_min=0.9975, overlap_at_10=0.995, same_nearest=0.99)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: seconds of each run, and rounds through all of them."""

    seconds: float = 1.5
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `skipped` says of an engine, and `failed` of a picture, why it was left out."""

    entry: Entry
    measured: tuple[Setting, ...]
    skipped: dict[str, str]
    failed: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            **self.entry.model_dump(mode="json"),
            "measured": [setting.model_dump(mode="json") for setting in self.measured],
            "skipped": self.skipped,
            "failed": self.failed,
        }


@dataclass(slots=True)
class _Figures:
    """Of one way: milliseconds of a lone image and images a second by batch size, a number each round."""

    latency_ms: list[float] = field(default_factory=list)
    images_per_s: dict[int, list[float]] = field(default_factory=dict)


def tune(
    made: Bundle,
    images: Sequence[Path],
    *,
    goal: Goal = "balanced",
    device: str = "auto",
    effort: Effort | None = None,
    tell: Tell = lambda _done, _all, _what: None,
) -> Report:
    """Measure a bundle on this machine; nothing is written.

    A picture that cannot be read is left out. Raises BackendError when the default itself cannot be run.
    """
    effort = effort or Effort()
    default = choose("auto", device, "auto", stored=made.manifest.precision)
    pictures = _Pictures(made, images)
    ways, skipped = _ways(made, default)
    run = _Run(made, default, pictures, effort, tell)
    figures, vectors = run.through(ways, skipped)
    reference = vectors.get((cast("Kind", default.kind), default.precision))
    if reference is None:
        raise BackendError(f"the default could not be measured: {skipped}")
    fidelities = {key: _fidelity(rows, reference) for key, rows in vectors.items()}
    measured = tuple(_settings(figures, fidelities))
    stored = made.manifest.precision
    entry = Entry(
        machine=tuned.machine(default.device),
        versions=tuned.versions(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        goal=goal,
        given=pictures.given,
        seeded=pictures.seeded,
        spread=_spread(figures),
        auto=for_auto(measured, goal, stored, given=pictures.given),
        settings=tuple(ranked(measured, goal)),
    )
    return Report(entry, measured, skipped, pictures.failed)


def is_busy() -> bool:
    """Tell whether others keep half of the processors at work, by the last minute's load average."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) * _BUSY


def for_auto(measured: Sequence[Setting], goal: Goal, stored: Precision, *, given: int) -> Setting:
    """Return what `auto` takes: the best of the faithful ones.

    `given` is how many pictures were the operator's own; with fewer than 54 of them only `stored`, the
    bundle's own precision, is considered. Raises BackendError when nothing is faithful.
    """
    able = [
        setting
        for setting in measured
        if setting.faithful
        and (setting.precision == stored or (given >= _LEAST and WELL_OVER.kept(setting.fidelity)))
    ]
    if not able:
        raise BackendError("no engine keeps the default's fidelity here")
    return best(able, goal)


def best(settings: Sequence[Setting], goal: Goal) -> Setting:
    """Return the best for a goal; where figures differ by less than noise, the quicker and smaller one.

    `latency`: the least latency of a lone image. `throughput`: the most images a second. `balanced`: the
    most images a second of those whose latency is at most 1.25 times the least.
    """
    least = min(setting.latency_ms for setting in settings)
    guard = {"latency": 1 + _NOISE, "balanced": _GUARD, "throughput": float("inf")}[goal]
    able = [setting for setting in settings if setting.latency_ms <= least * guard]
    most = max(setting.images_per_s for setting in able)
    near = [setting for setting in able if setting.images_per_s >= most * (1 - _NOISE)]
    return min(near, key=lambda setting: (setting.instances, setting.max_batch, setting.latency_ms))


def ranked(measured: Sequence[Setting], goal: Goal) -> Iterator[Setting]:
    """Yield the best of each engine and precision, the best of all first."""
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in measured:
        groups.setdefault((setting.backend, setting.precision), []).append(setting)
    left = [best(group, goal) for group in groups.values()]
    while left:
        chosen = best(left, goal)
        left.remove(chosen)
        yield chosen


def _ways(made: Bundle, default: Placement) -> tuple[list[Way], dict[str, str]]:
    """Return what can be measured here, the default first, and why the rest cannot."""
    ways: list[Way] = []
    skipped: dict[str, str] = {}
    cpus = available_cpus()
    counts = [n for n in _INSTANCES if n <= cpus or default.device != "cpu"]
    pairs = [(kind, precision) for kind in get_args(Kind) for precision in get_args(Precision)]
    for kind, precision in sorted(pairs, key=lambda pair: pair != (default.kind, default.precision)):
        if obstacle := _obstacle(made, kind, precision, default.device):
            skipped[_called(kind, precision)] = obstacle
        else:
            ways += [(kind, precision, count) for count in counts]
    return ways, skipped


def _obstacle(made: Bundle, kind: Kind, precision: Precision, device: str) -> str:
    if not installed(kind):
        return "not installed"
    # Asked before torch is imported: that takes seconds and 700 MB.
    if kind == "torch" and made.manifest.spec is None:
        return f"{made.manifest.name} was made from a graph"
    try:
        place = choose(kind, device, precision, stored=made.manifest.precision)
    except BackendError as exc:
        return str(exc)
    return f"{precision} is emulated on this processor: slower than fp32" if place.emulated else ""


class _Pictures:
    """The operator's pictures, and when they are fewer than 54, seeded ones too; a few are timed as files."""

    def __init__(self, made: Bundle, images: Sequence[Path]) -> None:
        self._spec = spec_of(made.manifest.preprocess)
        self._decoder = Decoder(ImageLimits(), DecodeOptions(), PixelBudget(_PIXELS_IN_HAND))
        self.failed: dict[str, str] = {}
        self.timed: list[bytes] = []
        own = list(self._read(images[:: max(1, -(-len(images) // _MOST))]))
        self.given = len(own)
        varied = [sample.data for sample in samples()] if self.given < _LEAST else []
        extra = [*varied, *(sample.data for sample in small_samples(_LEAST - len(varied)))] if varied else []
        self.seeded = len(extra)
        self.timed = self.timed or varied[:: -(-len(varied) // _TIMED)]
        self.pixels = np.stack([*own, *map(self.decode, extra)])

    def decode(self, data: bytes) -> U8:
        """Decode a file in full and fit it: (height, width, 3) uint8 RGB. Raises RequestError."""
        with ExitStack() as held:
            return fit(self._decoder.decode(data, held, None), WHOLE, self._spec)

    def _read(self, images: Sequence[Path]) -> Iterator[U8]:
        """Yield the pixels of distinct files; keep a few of the files themselves, for timing."""
        seen: set[bytes] = set()
        stride = -(-len(images) // _TIMED)
        for image in images:
            try:
                data = image.read_bytes()
                digest = sha256(data).digest()
                if digest in seen:
                    continue
                yield self.decode(data)
            except OSError as exc:
                self.failed[str(image)] = exc.strerror or "cannot be read"
            except RequestError as exc:
                self.failed[str(image)] = exc.message
            else:
                if len(seen) % stride == 0:
                    self.timed.append(data)
                seen.add(digest)


class _Run:
    """The measuring itself."""

    def __init__(
        self, made: Bundle, default: Placement, pictures: _Pictures, effort: Effort, tell: Tell
    ) -> None:
        self._made, self._default, self._pictures = made, default, pictures
        self._effort, self._tell = effort, tell
        self._threads = available_cpus()
        self._batches = _BATCHES["cpu" if default.device == "cpu" else "cuda"]
        self._figures: dict[Way, _Figures] = {}
        self._vectors: dict[tuple[Kind, Precision], F32] = {}

    def through(
        self, ways: list[Way], skipped: dict[str, str]
    ) -> tuple[dict[Way, _Figures], dict[tuple[Kind, Precision], F32]]:
        """Go through all ways, round by round; one that fails is put among the skipped and left out."""
        left, steps = list(ways), len(ways) * self._effort.rounds
        for turn in range(steps):
            kind, precision, instances = way = ways[turn % len(ways)]
            self._tell(turn, steps, f"{_called(kind, precision)}, {instances} in flight")
            if way not in left:
                continue
            try:
                self._measure(way)
            except Exception as exc:  # noqa: BLE001 - out of memory and the like are that way's own
                skipped[_called(kind, precision, instances)] = str(exc)
                left.remove(way)
                self._figures.pop(way, None)
        self._tell(steps, steps, "")
        kept = {key: rows for key, rows in self._vectors.items() if any(way[:2] == key for way in left)}
        return self._figures, kept

    def _measure(self, way: Way) -> None:
        kind, precision, instances = way
        place = choose(kind, self._default.device, precision, stored=self._made.manifest.precision)
        options = BackendOptions(threads=self._threads, instances=instances)
        backend = factory(kind)(self._made, place, options)
        try:
            for size in (1, *self._batches):
                backend.run("image", example(self._made.manifest, "image", size), (EMBEDDING,))
            if way[:2] not in self._vectors:
                self._vectors[kind, precision] = self._embed(backend)
            figures = self._figures.setdefault(way, _Figures())
            lone = instances > 1 and has_lone(place, self._made.manifest)
            if not lone or (kind, precision, 1) not in self._figures:
                figures.latency_ms.append(self._alone(backend))
            for batch in self._batches:
                rate = self._saturated(backend, instances, batch)
                figures.images_per_s.setdefault(batch, []).append(rate)
        finally:
            backend.close()
            memory.give_back()

    def _embed(self, backend: Backend) -> F32:
        pixels = self._pictures.pixels
        parts = [
            backend.run("image", pixels[at : at + _CHUNK], (EMBEDDING,))[EMBEDDING]
            for at in range(0, len(pixels), _CHUNK)
        ]
        return np.concatenate(parts)

    def _alone(self, backend: Backend) -> float:
        """Return the milliseconds of one image at a time, from the file to the vector: a median."""
        files = self._pictures.timed[:_LONE]
        taken: list[float] = []
        began = time.perf_counter()
        while not taken or time.perf_counter() - began < self._effort.seconds:
            for data in files:
                started = time.perf_counter()
                backend.run("image", np.stack([self._pictures.decode(data)]), (EMBEDDING,))
                taken.append((time.perf_counter() - started) * 1000)
        return median(taken)

    def _saturated(self, backend: Backend, instances: int, batch: int) -> float:
        """Return images a second: decode threads keep a short queue full ahead of the engine's threads.

        Counted from the end of the first batches to the end of the last.
        """
        ready: queue.Queue[U8] = queue.Queue(maxsize=instances * batch)
        files, stop, ends = cycle(self._pictures.timed), threading.Event(), list[float]()
        until = time.perf_counter() + self._effort.seconds

        def decode() -> None:
            while not stop.is_set():
                pixels = self._pictures.decode(next(files))
                while not stop.is_set():
                    try:
                        ready.put(pixels, timeout=_LOOK_S)
                        break
                    except queue.Full:
                        continue

        def compute() -> None:
            done = 0
            while done < _LEAST_BATCHES or time.perf_counter() < until:
                group = np.stack([ready.get(timeout=_STARVED_S) for _ in range(batch)])
                backend.run("image", group, (EMBEDDING,))
                ends.append(time.perf_counter())
                done += 1

        with ThreadPoolExecutor(self._threads) as decoding, ThreadPoolExecutor(instances) as running:
            decoders = [decoding.submit(decode) for _ in range(self._threads)]
            try:
                for engine in [running.submit(compute) for _ in range(instances)]:
                    engine.result()
            finally:
                stop.set()
            for decoder in decoders:
                decoder.result()
        ends.sort()
        return (len(ends) - instances) * batch / (ends[-1] - ends[instances - 1])


def _settings(
    figures: dict[Way, _Figures], fidelities: dict[tuple[Kind, Precision], Fidelity]
) -> Iterator[Setting]:
    for (kind, precision, instances), found in figures.items():
        fidelity = fidelities[kind, precision]
        # A batch that is alone has the one-instance engine, where the server gives it one.
        latency = found.latency_ms or figures[kind, precision, 1].latency_ms
        for batch, rates in found.images_per_s.items():
            yield Setting(
                backend=kind,
                precision=precision,
                instances=instances,
                max_batch=batch,
                threads=available_cpus(),
                latency_ms=round(min(latency), 2),
                images_per_s=round(max(rates), 1),
                fidelity=fidelity,
                faithful=BAR.kept(fidelity),
            )


def _spread(figures: dict[Way, _Figures]) -> float:
    """Return how many times a way's best round is as fast as its worst: the median of all ways."""
    rates = [rates for found in figures.values() for rates in found.images_per_s.values()]
    return round(median(max(rounds) / min(rounds) for rounds in rates), 2)


def _fidelity(ours: F32, default: F32) -> Fidelity:
    angles = cosines(ours, default)
    return Fidelity(
        count=len(ours),
        cosine_mean=round(float(angles.mean()), _DIGITS),
        cosine_min=round(float(angles.min()), _DIGITS),
        overlap_at_10=round(overlap(ours, default), _DIGITS),
        same_nearest=round(same_nearest(ours, default), _DIGITS),
    )


def _called(kind: str, precision: str, instances: int = 0) -> str:
    return f"{kind} {precision}{f', {instances} in flight' if instances else ''}"
