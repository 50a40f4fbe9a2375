"""How well vectors keep the images of a class together, and how alike two sets of vectors are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pixvec._errors import InputError

from ._scores import (
    F64,
    NO_LABEL,
    Ints,
    Labels,
    ShapeMismatchError,
    best,
    blocks,
    codes,
    cosines,
    cosines_to_others,
    library,
    matrix,
    positive,
    unit,
)

__all__ = [
    "Curve",
    "KnnAccuracy",
    "Report",
    "RetrievalPrecision",
    "ShapeMismatchError",
    "cosine_similarity_matrix",
    "evaluate",
    "knn_accuracy",
    "mean_average_precision",
    "overlap_at",
    "plot",
    "recall_at",
    "same_nearest",
    "score_pairs",
    "truth_matrix",
]

Bools: TypeAlias = npt.NDArray[np.bool_]

# All 12.5 million pairs of so many rows take 1 GB while they are sorted; of more rows, a sample is drawn.
EXACT_PAIR_ROWS = 5_000
SAMPLED_PAIRS = 4_000_000
_CURVE_POINTS, _BINS = 1_000, 100
_SAME_COLOUR, _OTHER_COLOUR = "#0072b2", "#d55e00"


class KnnAccuracy(NamedTuple):
    """Share of rows that a vote of their neighbours labels right, and the share that any vote could."""

    accuracy: float
    accuracy_upper_bound: float


class RetrievalPrecision(NamedTuple):
    """Mean average precision over `queries` rows; `left_out` rows are the only ones of their class."""

    value: float
    queries: int
    left_out: int


@dataclass(frozen=True, eq=False)
class Curve:
    """What `plot` draws: of the pairs of rows, the precision-recall curve and the scores' distributions.

    precision, recall: (P,), thinned to some 1,000 points. edges: (101,) of the bins of the cosine. same,
    other: (100,), pairs of one class and of two in each bin.
    """

    precision: F64
    recall: F64
    edges: F64
    same: Ints
    other: Ints


@dataclass(frozen=True, eq=False)
class Report:
    """What `evaluate` found; the shares are of the rows that have a label.

    recall_at: by k. queries: the rows that mean_average_precision is the mean of; the others are the only
    ones of their class. k: the neighbours that vote for knn_accuracy. rows: all that were passed. pairs: the
    pairs behind pr_auc and curve, which are all there are unless pairs_sampled.
    """

    top1_accuracy: float
    pr_auc: float
    recall_at: Mapping[int, float]
    mean_average_precision: float
    knn_accuracy: float
    accuracy_upper_bound: float
    classes: int
    rows: int
    rows_without_label: int
    queries: int
    k: int
    pairs: int
    pairs_sampled: bool
    curve: Curve

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name, with one `recall_at_K` for each K, without the curve."""
        names = ("mean_average_precision", "knn_accuracy", "accuracy_upper_bound", "classes", "rows")
        more = ("rows_without_label", "queries", "k", "pairs", "pairs_sampled")
        return {
            "top1_accuracy": self.top1_accuracy,
            "pr_auc": self.pr_auc,
            **{f"recall_at_{k}": share for k, share in self.recall_at.items()},
            **{name: getattr(self, name) for name in (*names, *more)},
        }


def cosine_similarity_matrix(vectors: npt.ArrayLike) -> F64:
    """Return the cosines (N, N) of the rows of vectors (N, D), -1 to 1; 0 where either is zero.

    Raises InputError for no rows and values that are not finite.
    """
    units = unit(matrix(vectors))
    return cosines(units, units)


def truth_matrix(labels: Labels) -> Ints:
    """Return 1 where two of the labels (N,) are the same and 0 elsewhere, (N, N).

    Raises InputError when one is missing (None, NaN or "").
    """
    numbers = codes(labels, len(labels))
    if (numbers == NO_LABEL).any():
        raise InputError(f"labels[{int(np.argmin(numbers))}] is missing: leave its row out")
    return np.asarray(numbers[:, None] == numbers, np.int64)


def score_pairs(truth: npt.ArrayLike, scores: npt.ArrayLike) -> dict[str, Any]:
    """Score a matrix of similarities (N, N) by the truth (N, N), 1 where two rows are of one class.

    Returns, as easydl's evaluate_pairwise_score_matrix_with_true_label defines them,
    top1_accuracy: the share of rows whose most similar other row, the lowest of equal ones, is of their
    class; a row alone in its class counts as wrong.
    pr_auc: the area under the precision-recall curve of the pairs i < j, by the trapezoidal rule; 0.0 when
    no pair is of one class.
    precision, recall, thresholds: that curve, as scikit-learn's precision_recall_curve gives it.

    Raises ShapeMismatchError, which is an InputError and a ValueError, unless both are (N, N), InputError
    for scores off the diagonal that are not finite and for a missing package.
    """
    same, values = np.asarray(truth) == 1, np.array(scores, np.float64)
    if same.ndim != 2 or same.shape[0] != same.shape[1] or same.shape != values.shape:
        raise ShapeMismatchError(f"truth is {same.shape}, scores is {values.shape}: pass (N, N) for both")
    rows = len(same)
    np.fill_diagonal(values, -np.inf)
    if np.isfinite(values).sum() != rows * (rows - 1):
        raise InputError("scores holds NaN or infinity off the diagonal: leave those rows out")
    above = np.triu_indices(rows, k=1)
    precision, recall, thresholds = _curve(same[above], values[above], every_point=True)
    hits = same[np.arange(rows), values.argmax(axis=1)] if rows > 1 else np.zeros(1)
    return {
        "top1_accuracy": float(hits.mean()),
        "pr_auc": _area(precision, recall),
        "precision": precision,
        "recall": recall,
        "thresholds": thresholds,
    }


def recall_at(vectors: npt.ArrayLike, labels: Labels, ks: Sequence[int]) -> dict[int, float]:
    """Return, for each k, the share of rows (N, D) with a row of their class among the k most similar others.

    By cosine, ties by the lowest index, as in Musgrave et al. 2020; a row alone in its class counts as wrong,
    so that recall at 1 is top1_accuracy. Rows without a label (None, NaN or "") are left out on both sides.

    Raises InputError for no labelled row, a bad k and values that are not finite; ShapeMismatchError unless
    there is one label a row.
    """
    units, numbers = _labelled(vectors, labels)
    near = _near_classes(units, numbers, max(_counts(ks)))
    return {k: _hits(near, numbers, k) for k in _counts(ks)}


def mean_average_precision(vectors: npt.ArrayLike, labels: Labels) -> RetrievalPrecision:
    """Return the mean over the rows (N, D) of the average precision of finding their class by cosine.

    Of each row, all others are ranked; average precision is scikit-learn's, in which equal scores share a
    rank. Rows alone in their class have nothing to find: they are left out and counted; 0.0 when all are.
    Rows without a label are left out on both sides. Raises as `recall_at` does.
    """
    units, numbers = _labelled(vectors, labels)
    members = _members(numbers)
    found = [_precisions(scores, rows, numbers, members) for rows, scores in cosines_to_others(units)]
    return _mean_precision(np.concatenate(found))


def knn_accuracy(vectors: npt.ArrayLike, labels: Labels, k: int = 5) -> KnnAccuracy:
    """Return the share of rows (N, D) whose class most of the k most similar others have, by cosine.

    Each of the k has one vote; of classes with as many votes, that of the most similar row wins.
    accuracy_upper_bound: the share of rows whose class has more than one member. Rows without a label are
    left out on both sides. Raises as `recall_at` does.
    """
    units, numbers = _labelled(vectors, labels)
    near = _near_classes(units, numbers, positive(k, "k"))
    return KnnAccuracy(_vote(near, numbers), _upper_bound(numbers))


def overlap_at(a: npt.ArrayLike, b: npt.ArrayLike, k: int = 10) -> float:
    """Return the mean share of the min(k, N - 1) nearest others that a row has in both a (N, D) and b (N, E).

    By cosine, ties by the lowest index. Raises ShapeMismatchError when the rows differ in number, InputError
    for fewer than 2, a bad k and values that are not finite.
    """
    one, two = unit(matrix(a, field="a", least=2)), unit(matrix(b, field="b", least=2))
    if len(one) != len(two):
        raise ShapeMismatchError(f"a has {len(one)} rows, b has {len(two)}: pass the same images in both")
    k = min(positive(k, "k"), len(one) - 1)
    common = 0
    for (_, left), (_, right) in zip(cosines_to_others(one), cosines_to_others(two), strict=True):
        for mine, others in zip(best(left, k), best(right, k), strict=True):
            common += len(np.intersect1d(mine, others, assume_unique=True))
    return common / (len(one) * k)


def same_nearest(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the share of rows whose most similar other row is the same in a (N, D) and b (N, E).

    Raises as `overlap_at` does.
    """
    return overlap_at(a, b, 1)


def evaluate(
    vectors: npt.ArrayLike, labels: Labels, ks: Sequence[int] = (1, 5, 10), k: int = 5, *, seed: int = 0
) -> Report:
    """Measure how well vectors (N, D) keep the classes of labels (N,) together, by cosine.

    The numbers are those of score_pairs, recall_at, mean_average_precision and knn_accuracy; rows without a
    label (None, NaN or "") are left out and counted. Similarities are computed in blocks of 64 MiB. The
    precision-recall curve is of all pairs up to EXACT_PAIR_ROWS rows; of more, it is of SAMPLED_PAIRS pairs
    drawn with the seed, and the report says so.

    Raises as `recall_at` does, and InputError for a missing package.
    """
    units, numbers = _labelled(vectors, labels)
    counts, members = _counts(ks), _members(numbers)
    near = np.empty((len(units), min(max(*counts, positive(k, "k")), len(units) - 1)), np.int64)
    precisions = np.empty(len(units))
    for rows, scores in cosines_to_others(units):
        near[rows] = numbers[best(scores, near.shape[1])]
        precisions[rows] = _precisions(scores, rows, numbers, members)
    retrieval = _mean_precision(precisions)
    same, values, sampled = _pairs(units, numbers, seed)
    precision, recall, _ = _curve(same, values)
    return Report(
        top1_accuracy=_hits(near, numbers, 1),
        pr_auc=_area(precision, recall),
        recall_at={k: _hits(near, numbers, k) for k in counts},
        mean_average_precision=retrieval.value,
        knn_accuracy=_vote(near[:, :k], numbers),
        accuracy_upper_bound=_upper_bound(numbers),
        classes=len(members),
        rows=len(labels),
        rows_without_label=len(labels) - len(units),
        queries=retrieval.queries,
        k=k,
        pairs=len(values),
        pairs_sampled=sampled,
        curve=_drawn(precision, recall, same, values),
    )


def plot(report: Report, file: str | Path) -> None:
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


def _labelled(vectors: npt.ArrayLike, labels: Labels) -> tuple[F64, Ints]:
    """Return the unit rows that have a label, and the numbers of their classes."""
    rows = matrix(vectors)
    numbers = codes(labels, len(rows))
    kept = numbers != NO_LABEL
    if not kept.any():
        raise InputError("labels holds no label: pass one for at least one row")
    return unit(rows[kept]), numbers[kept]


def _counts(ks: Sequence[int]) -> list[int]:
    if not ks:
        raise InputError("ks is empty: pass at least one k, such as 1")
    return [positive(k, "ks") for k in ks]


def _near_classes(units: F64, numbers: Ints, k: int) -> Ints:
    """Return the classes (N, min(k, N - 1)) of each row's most similar others."""
    k = min(k, len(units) - 1)
    return np.concatenate([numbers[best(scores, k)] for _, scores in cosines_to_others(units)])


def _hits(near: Ints, numbers: Ints, k: int) -> float:
    return float((near[:, :k] == numbers[:, None]).any(axis=1).mean())


def _vote(near: Ints, numbers: Ints) -> float:
    if near.shape[1] == 0:
        return 0.0
    votes = np.zeros(near.shape, np.int64)
    for column in near.T:
        votes += near == column[:, None]
    # argmax takes the first of equal ones, which is the most similar.
    winner = near[np.arange(len(near)), votes.argmax(axis=1)]
    return float((winner == numbers).mean())


def _upper_bound(numbers: Ints) -> float:
    return float((np.bincount(numbers)[numbers] > 1).mean())


def _members(numbers: Ints) -> list[Ints]:
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def _precisions(scores: F64, rows: Ints, numbers: Ints, members: list[Ints]) -> F64:
    """Return the average precision of each of the rows (B,) by scores (B, N); NaN: alone in its class."""
    found, ranked = np.full(len(rows), np.nan), np.sort(scores, axis=1)
    for place, row in enumerate(rows):
        others = members[numbers[row]]
        relevant = np.sort(scores[place, others[others != row]])
        if len(relevant):
            relevant_above = len(relevant) - np.searchsorted(relevant, relevant)
            all_above = scores.shape[1] - np.searchsorted(ranked[place], relevant)
            found[place] = (relevant_above / all_above).mean()
    return found


def _mean_precision(precisions: F64) -> RetrievalPrecision:
    known = precisions[~np.isnan(precisions)]
    mean = float(known.mean()) if len(known) else 0.0
    return RetrievalPrecision(mean, len(known), len(precisions) - len(known))


def _pairs(units: F64, numbers: Ints, seed: int) -> tuple[Bools, F64, bool]:
    """Return whether each pair is of one class, its score, and whether the pairs are a sample."""
    if len(units) <= EXACT_PAIR_ROWS:
        return *_all_pairs(units, numbers), False
    draw = np.random.default_rng(seed)
    one = draw.integers(len(units), size=SAMPLED_PAIRS)
    two = draw.integers(len(units) - 1, size=SAMPLED_PAIRS)
    two += two >= one
    values = np.empty(SAMPLED_PAIRS)
    for some in blocks(SAMPLED_PAIRS, units.shape[1]):
        values[some] = np.einsum("bd,bd->b", units[one[some]], units[two[some]])
    return numbers[one] == numbers[two], values, True


def _all_pairs(units: F64, numbers: Ints) -> tuple[Bools, F64]:
    pairs = len(units) * (len(units) - 1) // 2
    same, values = np.empty(pairs, np.bool_), np.empty(pairs)
    start = 0
    for rows, scores in cosines_to_others(units):
        for place, row in enumerate(rows):
            end = start + len(units) - row - 1
            same[start:end] = numbers[row + 1 :] == numbers[row]
            values[start:end] = scores[place, row + 1 :]
            start = end
    return same, values


def _curve(same: Bools, values: F64, *, every_point: bool = False) -> tuple[F64, F64, F64]:
    """Return precision, recall and thresholds; empty when no pair is of one class.

    Without every_point, those between two of the same recall, below which no area lies, are left out.
    """
    if not same.any():
        return np.empty(0), np.empty(0), np.empty(0)
    metrics = library("sklearn.metrics")
    precision, recall, thresholds = metrics.precision_recall_curve(
        same, values, drop_intermediate=not every_point
    )
    return precision, recall, thresholds


def _area(precision: F64, recall: F64) -> float:
    return float(library("sklearn.metrics").auc(recall, precision)) if len(recall) else 0.0


def _drawn(precision: F64, recall: F64, same: Bools, values: F64) -> Curve:
    edges = np.linspace(-1, 1, _BINS + 1)
    thinned = np.unique(np.linspace(0, max(len(recall) - 1, 0), _CURVE_POINTS).astype(np.int64))
    thinned = thinned[: len(recall)]
    # A sampled score of two equal rows is over 1 by a rounding error.
    values = np.clip(values, -1, 1)
    return Curve(
        precision=precision[thinned],
        recall=recall[thinned],
        edges=edges,
        same=np.histogram(values[same], edges)[0].astype(np.int64),
        other=np.histogram(values[~same], edges)[0].astype(np.int64),
    )


def _draw_curve(axes: Any, report: Report) -> None:  # noqa: ANN401 - matplotlib's
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


def _draw_scores(axes: Any, curve: Curve) -> None:  # noqa: ANN401 - matplotlib's
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
