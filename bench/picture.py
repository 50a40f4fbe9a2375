"""A comparison as one picture: throughput, both latencies, picture sizes, the limit, and random arrivals."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.report import Load, Report
    from bench.workloads import Kind

_SIZES: tuple[tuple[Kind, str], ...] = (
    ("small", "640 x 427"),
    ("medium", "1280 x 853"),
    ("large", "3840 x 2560"),
)
# Colours that are told apart without red against green; ours are the blue ones.
_STYLES = {
    "pixvec fp32": ("#0b3c8c", "o"),
    "pixvec bf16": ("#2f7ed8", "o"),
    "triton": ("#e07b00", "s"),
    "mosec": ("#b5459b", "^"),
    "litserve": ("#7a7a7a", "v"),
    "triton tuned fp32": ("#c9a400", "D"),
    "triton tuned bf16": ("#00917c", "D"),
    "mosec tuned bf16": ("#7b5bd6", "P"),
}


def draw(seen: Report, file: Path) -> None:
    """Draw the first model's windows. Each system has the same colour and mark in every panel."""
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(16, 9.6), layout="constrained")
    (rate, p50, p99), (size, limit, arrivals) = figure.subplots(2, 3)
    model = seen.loads[0].model
    for system in dict.fromkeys(one.system for one in seen.loads):
        mine = [one for one in seen.loads if (one.model, one.system) == (model, system)]
        closed = [one for one in mine if one.rate is None]
        style = _style(system, tuned=mine[0].tuned)
        _by_callers(rate, closed, "images_s", style)
        _by_callers(p50, closed, "p50_ms", style)
        _by_callers(p99, closed, "p99_ms", style)
        _by_size(size, closed, style)
        _by_share(
            arrivals, [one for one in mine if one.rate is not None], seen.capacity(model, system), style
        )
    _limits(limit, seen, model)
    rate.set_ylim(bottom=0)
    waits = (p50, p99, arrivals)
    _scales((rate, p50, p99), (size, *waits), seen)
    low, high = p50.get_ylim()[0], p99.get_ylim()[1]
    for axes in (p50, p99):
        axes.set_ylim(low, high)
    _name(rate, "Throughput", "callers, one JPEG of 640 x 427 a call", "images / s")
    _name(p50, "Median latency", "callers", "ms")
    _name(p99, "99th percentile of latency", "callers", "ms")
    _name(size, "Throughput by image size", "pixels of the JPEG", "images / s")
    _name(
        arrivals, "Random arrivals: 99th percentile", "% of the system's own capacity", "ms from the time due"
    )
    handles, labels = rate.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(_title(seen, model), fontsize=12)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _style(system: str, *, tuned: bool) -> dict[str, Any]:
    colour, marker = _STYLES.get(system, ("black", "x"))
    return {"color": colour, "marker": marker, "linestyle": "--" if tuned else "-", "markersize": 5}


def _by_callers(axes: Axes, mine: Sequence[Load], name: str, style: dict[str, Any]) -> None:
    values: dict[int, list[float]] = {}
    for one in mine:
        if one.workload == "small":
            values.setdefault(one.callers, []).append(getattr(one, name))
    callers = sorted(values)
    axes.plot(callers, [median(values[count]) for count in callers], label=_label(mine[0]), **style)
    lowest, highest = ([pick(values[count]) for count in callers] for pick in (min, max))
    axes.fill_between(callers, lowest, highest, color=style["color"], alpha=0.1, lw=0)


def _label(one: Load) -> str:
    return one.system if one.precision in one.system else f"{one.system} {one.precision}"


def _by_size(axes: Axes, mine: Sequence[Load], style: dict[str, Any]) -> None:
    most: dict[int, float] = {}
    for place, (kind, _) in enumerate(_SIZES):
        callers = WORKLOADS[kind].callers
        rates = [one.images_s for one in mine if (one.workload, one.callers) == (kind, callers)]
        if rates:
            most[place] = median(rates)
    axes.plot(list(most), list(most.values()), **style)
    axes.set_xticks(range(len(_SIZES)), [label for _, label in _SIZES])


def _by_share(axes: Axes, mine: Sequence[Load], capacity: float, style: dict[str, Any]) -> None:
    shares = [round(100 * (one.rate or 0) / capacity) for one in mine]
    axes.plot(shares, [one.p99_ms for one in mine], **style)
    axes.set_xticks(shares)


def _scales(laddered: Sequence[Axes], logarithmic: Sequence[Axes], seen: Report) -> None:
    counts = sorted({one.callers for one in seen.loads if one.workload == "small" and one.rate is None})
    for axes in laddered:
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
    for axes in logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _limits(axes: Axes, seen: Report, model: str) -> None:
    """Draw what ours served beside what the parts could give, in each precision."""
    width = 0.15
    groups = list(dict.fromkeys(one.precision for one in seen.loads if one.system.startswith("pixvec")))
    names = ("32 callers", "EmbedBatch of 32", "EmbedStream", "bare loop", "sum of the parts")
    shades = ("#9cc3f0", "#2f7ed8", "#0b3c8c", "#bdbdbd", "#6b6b6b")
    for i, (name, shade) in enumerate(zip(names, shades, strict=True)):
        heights = [_bars(seen, model, precision)[i] for precision in groups]
        places = [group + (i - 2) * width for group in range(len(groups))]
        bars = axes.bar(places, heights, width * 0.92, color=shade, label=name)
        axes.bar_label(bars, [f"{height:.0f}" if height else "" for height in heights], padding=2, fontsize=8)
    axes.set_xticks(range(len(groups)), [f"pixvec {precision}" for precision in groups])
    axes.set_ylim(top=axes.get_ylim()[1] * 1.35)
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=9)
    _name(axes, "Served, and what the same cores could do", "", "images / s, JPEG 640 x 427")


def _bars(seen: Report, model: str, precision: str) -> list[float]:
    def served(kind: Kind, callers: int | None = None) -> float:
        return _median(
            one.images_s
            for one in seen.loads
            if (one.model, one.system, one.workload, one.rate) == (model, f"pixvec {precision}", kind, None)
            and callers in (None, one.callers)
        )

    loop = _median(
        one.images_s
        for one in seen.bare
        if (one.model, one.precision, one.workload, one.lone) == (model, precision, "small", False)
    )
    served_rates = [served("small", 32), served("batch"), served("stream")]
    return [*served_rates, loop, seen.parts.get(precision, 0.0)]


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return median(found) if found else 0.0


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)


def _title(seen: Report, model: str) -> str:
    at = seen.machine
    return (
        f"{model} on {at['cores']} cores ({at['cpu']}), {at['date']}: "
        f"medians of {seen.rounds} rounds, bands from lowest to highest; dashed: tuned peers"
    )
