"""What a comparison has seen, as JSON and as Markdown."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.workloads import WORKLOADS
from pixvec_server.cpu import available_cpus, processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bench.load import Result
    from bench.peers.base import System
    from bench.workloads import Kind

_PACKAGES = ("openvino", "onnxruntime", "grpcio", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Load:
    """One window of one system. rate: of an open loop, else None. CPU in seconds for 1,000 images."""

    model: str
    workload: Kind
    callers: int
    system: str
    settings: str
    tuned: bool
    precision: str
    round: int
    rate: float | None
    images_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    server_cpu_s: float
    client_cpu_s: float
    requests: int
    errors: Mapping[str, int]

    @classmethod
    def of(
        cls,
        result: Result,
        system: System,
        model: str,
        workload: Kind,
        *,
        callers: int,
        number: int,
        rate: float | None,
    ) -> Load:
        """Note a result."""
        thousands = max(result.images, 1) / 1000
        return cls(
            model=model,
            workload=workload,
            callers=callers,
            system=system.name,
            settings=system.settings,
            tuned=system.tuned,
            precision=system.width,
            round=number,
            rate=rate,
            images_s=result.images_s,
            p50_ms=result.p50,
            p90_ms=result.p90,
            p99_ms=result.p99,
            server_cpu_s=result.server_cpu_s / thousands,
            client_cpu_s=result.client_cpu_s / thousands,
            requests=result.requests,
            errors=dict(result.errors),
        )

    def __str__(self) -> str:
        load = f"{self.callers} callers" if self.rate is None else f"{self.rate:.1f} a second"
        errors = f"  errors {dict(self.errors)}" if self.errors else ""
        return (
            f"{self.model} {self.workload}, {load}, {self.system}: {self.images_s:.1f}/s  "
            f"p50 {self.p50_ms:.0f} ms  p99 {self.p99_ms:.0f} ms{errors}"
        )


@dataclass(frozen=True, slots=True)
class Bare:
    """One run of the bare loop. lone: each picture is read and run before the next."""

    model: str
    precision: str
    workload: Kind
    round: int
    images_s: float
    lone: bool = False


@dataclass(slots=True)
class Report:
    """Everything that was seen. parts: images a second if decoding and inference took turns, by precision."""

    machine: Mapping[str, str]
    rounds: int
    seconds: float
    loads: list[Load] = field(default_factory=list)
    bare: list[Bare] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    loops: dict[str, str] = field(default_factory=dict)
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)
    reference: Any = None

    @classmethod
    def here(cls, rounds: int, seconds: float) -> Report:
        """Start a report on this machine."""
        return cls(machine(), rounds, seconds)

    def record(self) -> dict[str, Any]:
        """Return what is kept in JSON."""
        kept = asdict(self)
        del kept["reference"]
        return kept

    def capacity(self, model: str, system: str) -> float:
        """Return the most images a second of small pictures that a system answered in a closed loop, or 0."""
        rates: dict[int, list[float]] = {}
        for row in self.loads:
            if (row.model, row.system, row.workload, row.rate) == (model, system, "small", None):
                rates.setdefault(row.callers, []).append(row.images_s)
        return max((median(values) for values in rates.values()), default=0.0)

    def rows(self, *, closed: bool = True) -> dict[tuple[str, Kind, int, float | None, str], list[Load]]:
        """Return the windows of each row, by model, workload, callers, rate and system."""
        rows: dict[tuple[str, Kind, int, float | None, str], list[Load]] = {}
        for one in self.loads:
            if (one.rate is None) == closed:
                rows.setdefault((one.model, one.workload, one.callers, one.rate, one.system), []).append(one)
        return rows

    def best_peer(self, one: Load) -> float | None:
        """Return the most that a peer as its users run it answered in the same round, to the same load."""
        workload, callers = WORKLOADS[one.workload].like
        callers = one.callers if WORKLOADS[one.workload].protocol is None else callers
        rates = [
            other.images_s
            for other in self.loads
            if (other.model, other.workload, other.callers) == (one.model, workload, callers)
            and (other.round, other.rate) == (one.round, None)
            and not (other.tuned or other.system.startswith("pixvec"))
        ]
        return max(rates, default=None)

    def limit(self, one: Load) -> float | None:
        """Return the bare loop's images a second in the same round and precision; one caller's own limit."""
        workload, _ = WORKLOADS[one.workload].like
        wanted = (one.model, one.precision, workload, one.round, one.callers == 1)
        found = [
            loop.images_s
            for loop in self.bare
            if (loop.model, loop.precision, loop.workload, loop.round, loop.lone) == wanted
        ]
        return found[0] if found else None


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": str(processor()),
        "cores": str(available_cpus()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def reference(files: Sequence[bytes]) -> Any:  # noqa: ANN401 - an array of the caller's own shape
    """Return the default model's vectors as its authors' library makes them, in a process that then ends."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_reference, files).result()


def _reference(files: Sequence[bytes]) -> Any:  # noqa: ANN401 - as above
    from support import reference

    return reference.embed(files)


def markdown(seen: Report) -> str:
    """Write the report."""
    words = ", ".join(f"{name} {value}" for name, value in seen.machine.items())
    loops = "; ".join(
        f"{precision}: {text}, sum of the parts {seen.parts[precision]:.0f}/s"
        for precision, text in seen.loops.items()
    )
    about = (
        f"Machine: {words}. {seen.rounds} rounds, windows of {seen.seconds:g} s; medians (lowest-highest). "
        "Systems marked * are tuned beyond what their users run; ratios are medians of those of each round."
    )
    parts = [
        about,
        f"Bare loop: {loops}." if loops else "",
        _table(_CLOSED, _closed(seen)),
        "Open loop: Poisson arrivals at a share of each system's own capacity; latency from the time due.",
        _table(_OPEN, _open(seen)),
    ]
    return "\n\n".join(part for part in parts if part)


_CLOSED = (
    "model", "workload", "callers", "system", "images/s", "/ best peer as its users run it", "/ bare loop",
    "p50 ms", "p99 ms", "core-s / 1,000", "overlap@10", "same nearest", "errors",
)  # fmt: skip
_SHOWN = (1, 4, 8, 32)  # callers of the small ones; the picture and the JSON have the others
_OPEN = ("system", "images/s due", "answered", "p50 ms", "p90 ms", "p99 ms", "errors")


def _closed(seen: Report) -> Iterable[Sequence[str]]:
    order = {name: i for i, name in enumerate(dict.fromkeys(one.model for one in seen.loads))}
    kinds = list(WORKLOADS)
    rows = seen.rows()
    shown = [key for key in rows if key[1] != "small" or key[2] in _SHOWN or key[0] != seen.loads[0].model]
    for key in sorted(shown, key=lambda key: (order[key[0]], kinds.index(key[1]), key[2])):
        model, workload, callers, _, _ = key
        windows = rows[key]
        near = seen.fidelity.get(windows[0].system, {}) if not order[model] else {}
        yield (
            model, WORKLOADS[workload].title, str(callers), _called(windows[0]),
            _spread([one.images_s for one in windows]),
            _ratio(windows, seen.best_peer), _ratio(windows, seen.limit),
            *(f"{median(getattr(one, name) for one in windows):.0f}" for name in ("p50_ms", "p99_ms")),
            f"{median(one.server_cpu_s for one in windows):.1f}",
            *(f"{near[name]:.3f}" if near else "" for name in ("overlap_at_10", "same_nearest")),
            _errors(windows),
        )  # fmt: skip


def _open(seen: Report) -> Iterable[Sequence[str]]:
    for windows in seen.rows(closed=False).values():
        [one] = windows
        latencies = (f"{ms:.0f}" for ms in (one.p50_ms, one.p90_ms, one.p99_ms))
        yield _called(one), f"{one.rate:.1f}", f"{one.images_s:.1f}", *latencies, _errors(windows)


def _called(one: Load) -> str:
    return f"{one.settings}{' *' if one.tuned else ''}"


def _ratio(windows: Sequence[Load], other: Callable[[Load], float | None]) -> str:
    pairs = [(one.images_s, other(one)) for one in windows]
    ratios = [rate / limit for rate, limit in pairs if limit]
    return f"{median(ratios):.2f}" if ratios else ""


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def _errors(windows: Sequence[Load]) -> str:
    totals: dict[str, int] = {}
    for name, count in (pair for one in windows for pair in one.errors.items()):
        totals[name] = totals.get(name, 0) + count
    return ", ".join(f"{count} {name}" for name, count in totals.items()) or "0"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
