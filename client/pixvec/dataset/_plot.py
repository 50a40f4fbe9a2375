"""What an evaluation found, drawn by matplotlib."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec._errors import InputError

from ._scores import library

if TYPE_CHECKING:
    from .evaluation import Curve, Report

_SAME_COLOUR, _OTHER_COLOUR = "#0072b2", "#d55e00"


def plot(report: "Report", file: str | Path) -> None:
    """Draw the report's precision-recall curve and distributions of scores into a .png, .svg or .pdf file.

    Raises InputError for another suffix, a file that cannot be written, and a missing package.
    """
    target = Path(file)
    if target.suffix not in {".png", ".svg", ".pdf"}:
        raise InputError(f"file is {str(target)!r}: let it end in .png, .svg or .pdf")
    figure = library("matplotlib.figure").Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    library("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_curve(left, report)
    _draw_scores(right, report.curve)
    try:
        figure.savefig(target)
    except OSError as error:
        raise InputError(f"file {str(target)!r} cannot be written: {error.strerror}") from error


def _draw_curve(axes: Any, report: "Report") -> None:  # noqa: ANN401 - matplotlib's
    axes.plot(report.curve.recall, report.curve.precision, color=_SAME_COLOUR)
    kind = "sampled pairs" if report.pairs_sampled else "pairs"
    axes.set(
        title=f"Area {report.pr_auc:.3f} over {report.pairs:,} {kind}",
        xlabel="recall: share of same-class pairs found",
        ylabel="precision: share of found pairs of the same class",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.02),
    )
    axes.grid(alpha=0.3)


def _draw_scores(axes: Any, curve: "Curve") -> None:  # noqa: ANN401 - matplotlib's
    for counts, colour, name in (
        (curve.same, _SAME_COLOUR, "same class"),
        (curve.other, _OTHER_COLOUR, "other class"),
    ):
        shares = counts / max(int(counts.sum()), 1)
        axes.stairs(shares, curve.edges, fill=True, color=colour, alpha=0.45)
        axes.stairs(shares, curve.edges, color=colour, label=f"{name}: {int(counts.sum()):,} pairs")
    used = np.flatnonzero(curve.same + curve.other)
    if len(used):
        axes.set_xlim(curve.edges[used[0]] - 0.02, curve.edges[used[-1] + 1] + 0.02)
    axes.set(title="Scores of pairs", xlabel="cosine similarity", ylabel="share of the pairs of its kind")
    axes.legend()
    axes.grid(alpha=0.3)
