"""How well vectors keep the images of a class together, and how alike two sets of vectors are: definitions.

The public ones are of `pixvec.dataset.evaluation`, whose report is made of the others.
"""

from collections.abc import Sequence
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
    codes,
    cosines,
    cosines_to_others,
    library,
    matrix,
    positive,
    unit,
)

Bools: TypeAlias = npt.NDArray[np.bool_]


class KnnAccuracy(NamedTuple):
    """Share of rows that a vote of their neighbours labels right, and the share that any vote could."""

    accuracy: float
    accuracy_upper_bound: float


class RetrievalPrecision(NamedTuple):
    """Mean average precision over `queries` rows; `left_out` rows are the only ones of their class."""

    value: float
    queries: int
    left_out: int


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
    precision, recall, thresholds = pair_curve(same[above], values[above], every_point=True)
    hits = same[np.arange(rows), values.argmax(axis=1)] if rows > 1 else np.zeros(1)
    return {
        "top1_accuracy": float(hits.mean()),
        "pr_auc": area_under(precision, recall),
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
    units, numbers = labelled(vectors, labels)
    near = near_classes(units, numbers, max(checked_ks(ks)))
    return {k: hit_share(near, numbers, k) for k in checked_ks(ks)}


def mean_average_precision(vectors: npt.ArrayLike, labels: Labels) -> RetrievalPrecision:
    """Return the mean over the rows (N, D) of the average precision of finding their class by cosine.

    Of each row, all others are ranked; average precision is scikit-learn's, in which equal scores share a
    rank. Rows alone in their class have nothing to find: they are left out and counted; 0.0 when all are.
    Rows without a label are left out on both sides. Raises as `recall_at` does.
    """
    units, numbers = labelled(vectors, labels)
    members = members_of(numbers)
    found = [average_precisions(scores, rows, numbers, members) for rows, scores in cosines_to_others(units)]
    return mean_precision(np.concatenate(found))


def knn_accuracy(vectors: npt.ArrayLike, labels: Labels, k: int = 5) -> KnnAccuracy:
    """Return the share of rows (N, D) whose class most of the k most similar others have, by cosine.

    Each of the k has one vote; of classes with as many votes, that of the most similar row wins.
    accuracy_upper_bound: the share of rows whose class has more than one member. Rows without a label are
    left out on both sides. Raises as `recall_at` does.
    """
    units, numbers = labelled(vectors, labels)
    near = near_classes(units, numbers, positive(k, "k"))
    return KnnAccuracy(vote_share(near, numbers), upper_bound(numbers))


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


def labelled(vectors: npt.ArrayLike, labels: Labels) -> tuple[F64, Ints]:
    """Return the unit rows that have a label, and the numbers of their classes."""
    rows = matrix(vectors)
    numbers = codes(labels, len(rows))
    kept = numbers != NO_LABEL
    if not kept.any():
        raise InputError("labels holds no label: pass one for at least one row")
    return unit(rows[kept]), numbers[kept]


def checked_ks(ks: Sequence[int]) -> list[int]:
    if np.ndim(ks) != 1:
        raise InputError(f"ks is {ks!r}: pass a list, such as [1, 5]")
    if not len(ks):
        raise InputError("ks is empty: pass at least one k, such as 1")
    return [positive(k, "ks") for k in ks]


def near_classes(units: F64, numbers: Ints, k: int) -> Ints:
    """Return the classes (N, min(k, N - 1)) of each row's most similar others."""
    k = min(k, len(units) - 1)
    return np.concatenate([numbers[best(scores, k)] for _, scores in cosines_to_others(units)])


def hit_share(near: Ints, numbers: Ints, k: int) -> float:
    return float((near[:, :k] == numbers[:, None]).any(axis=1).mean())


def vote_share(near: Ints, numbers: Ints) -> float:
    if near.shape[1] == 0:
        return 0.0
    votes = np.zeros(near.shape, np.int64)
    for column in near.T:
        votes += near == column[:, None]
    # argmax takes the first of equal ones, which is the most similar.
    winner = near[np.arange(len(near)), votes.argmax(axis=1)]
    return float((winner == numbers).mean())


def upper_bound(numbers: Ints) -> float:
    return float((np.bincount(numbers)[numbers] > 1).mean())


def members_of(numbers: Ints) -> list[Ints]:
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def average_precisions(scores: F64, rows: Ints, numbers: Ints, members: list[Ints]) -> F64:
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


def mean_precision(precisions: F64) -> RetrievalPrecision:
    known = precisions[~np.isnan(precisions)]
    mean = float(known.mean()) if len(known) else 0.0
    return RetrievalPrecision(mean, len(known), len(precisions) - len(known))


def pair_curve(same: Bools, values: F64, *, every_point: bool = False) -> tuple[F64, F64, F64]:
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


def area_under(precision: F64, recall: F64) -> float:
    return float(library("sklearn.metrics").auc(recall, precision)) if len(recall) else 0.0
