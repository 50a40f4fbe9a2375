"""How well a dataset's vectors keep the images of a class together: the report; see `_measures`, `_plot`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._measures import (
    Bools,
    KnnAccuracy,
    RetrievalPrecision,
    area_under,
    average_precisions,
    checked_ks,
    cosine_similarity_matrix,
    hit_share,
    knn_accuracy,
    labelled,
    mean_average_precision,
    mean_precision,
    members_of,
    overlap_at,
    pair_curve,
    recall_at,
    same_nearest,
    score_pairs,
    truth_matrix,
    upper_bound,
    vote_share,
)
from ._plot import plot
from ._scores import F64, Ints, Labels, ShapeMismatchError, best, blocks, cosines_to_others, positive, seeded
from ._telling import Tell, telling

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

# All 12.5 million pairs of so many rows take 1 GB while they are sorted; of more rows, a sample is drawn.
EXACT_PAIR_ROWS = 5_000
SAMPLED_PAIRS = 4_000_000
_CURVE_POINTS, _BINS = 1_000, 100


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


def evaluate(
    vectors: npt.ArrayLike,
    labels: Labels,
    ks: Sequence[int] = (1, 5, 10),
    k: int = 5,
    *,
    seed: int = 0,
    progress: Tell | None = None,
) -> Report:
    """Measure how well vectors (N, D) keep the classes of labels (N,) together, by cosine.

    The numbers are those of score_pairs, recall_at, mean_average_precision and knn_accuracy; rows without a
    label (None, NaN or "") are left out and counted. Similarities are computed in blocks of 64 MiB. The
    precision-recall curve is of all pairs up to EXACT_PAIR_ROWS rows; of more, it is of SAMPLED_PAIRS pairs
    drawn with the seed, and the report says so. progress: is told what begins, and every 5 seconds, from
    another thread, how far it is.

    Raises as `recall_at` does, and InputError for a missing package.
    """
    seed = seeded(seed)
    units, numbers = labelled(vectors, labels)
    counts, members = checked_ks(ks), members_of(numbers)
    near = np.empty((len(units), min(max(*counts, positive(k, "k")), len(units) - 1)), np.int64)
    precisions = np.empty(len(units))
    with telling(f"neighbours of {len(units)} rows", progress) as step:
        for rows, scores in cosines_to_others(units):
            near[rows] = numbers[best(scores, near.shape[1])]
            precisions[rows] = average_precisions(scores, rows, numbers, members)
            step.at(int(rows[-1]) + 1, len(units))
    retrieval = mean_precision(precisions)
    with telling("pairs of rows", progress):
        same, values, sampled = _pairs(units, numbers, seed)
        precision, recall, _ = pair_curve(same, values)
    return Report(
        top1_accuracy=hit_share(near, numbers, 1),
        pr_auc=area_under(precision, recall),
        recall_at={k: hit_share(near, numbers, k) for k in counts},
        mean_average_precision=retrieval.value,
        knn_accuracy=vote_share(near[:, :k], numbers),
        accuracy_upper_bound=upper_bound(numbers),
        classes=len(members),
        rows=len(labels),
        rows_without_label=len(labels) - len(units),
        queries=retrieval.queries,
        k=k,
        pairs=len(values),
        pairs_sampled=sampled,
        curve=_drawn(precision, recall, same, values),
    )


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
