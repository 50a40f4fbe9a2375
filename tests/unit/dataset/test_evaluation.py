"""Evaluation against scikit-learn and scipy on the digits, and against cases worked out by hand."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import load_digits
from sklearn.metrics import auc, label_ranking_average_precision_score, precision_recall_curve
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from pixvec._errors import InputError
from pixvec.dataset import _scores, evaluation
from pixvec.dataset.evaluation import (
    ShapeMismatchError,
    cosine_similarity_matrix,
    evaluate,
    knn_accuracy,
    mean_average_precision,
    overlap_at,
    plot,
    recall_at,
    same_nearest,
    score_pairs,
    truth_matrix,
)

F64 = npt.NDArray[np.float64]

X: F64 = load_digits().data[:600]
Y: npt.NDArray[np.int64] = load_digits().target[:600]
# The nearest of 0 is 1, of 1 is 0, of 2 is 1, of 3 is 2, of 4 is 3: by angle.
FAN = np.array([[np.cos(a), np.sin(a)] for a in (0.0, 0.1, 0.3, 0.6, 1.0)])
GRIDS = st.tuples(st.integers(2, 10), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float64, shape, elements=st.integers(-2, 2).map(float)),
        st.lists(st.sampled_from("abc"), min_size=shape[0], max_size=shape[0]),
    )
)


@pytest.fixture(scope="module")
def order() -> npt.NDArray[np.int64]:
    """All others by their cosine distance, nearest first, as scikit-learn ranks them."""
    found = NearestNeighbors(n_neighbors=599, metric="cosine", algorithm="brute").fit(X)
    ranked: npt.NDArray[np.int64] = found.kneighbors(return_distance=False)
    return ranked


def test_cosines_are_scikit_learns_and_0_with_a_zero_vector() -> None:
    vectors = np.concatenate([X[:50] - 5, np.zeros((1, 64))])
    found = cosine_similarity_matrix(vectors)
    assert found == pytest.approx(cosine_similarity(vectors), abs=1e-11)
    assert not found[-1].any()


def test_truth_is_one_where_labels_agree() -> None:
    assert truth_matrix(["a", "b", "a"]).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (truth_matrix(Y) == np.equal.outer(Y, Y)).all()
    assert truth_matrix(Y).dtype == np.int64
    for missing in (None, "", float("nan")):
        with pytest.raises(InputError, match=r"labels\[1\] is missing: leave its row out"):
            truth_matrix(["a", missing, "a"])  # type: ignore[list-item]


def test_pairs_of_the_digits_score_as_scipy_and_scikit_learn_say(order: npt.NDArray[np.int64]) -> None:
    found = score_pairs(truth_matrix(Y), cosine_similarity_matrix(X))
    same = pdist(Y[:, None].astype(float), "hamming") == 0
    precision, recall, thresholds = precision_recall_curve(same, 1 - pdist(X, "cosine"))
    assert found["pr_auc"] == pytest.approx(auc(recall, precision), abs=1e-9)
    assert found["top1_accuracy"] == pytest.approx((Y[order[:, 0]] == Y).mean(), abs=1e-12)
    assert len(found["precision"]) == len(found["recall"]) == len(found["thresholds"]) + 1
    assert len(found["thresholds"]) == pytest.approx(len(thresholds), rel=1e-3)


def test_pairs_by_hand() -> None:
    scores = np.array([[9, 0.8, 0.1, 0.3], [0.8, 9, 0.4, 0.2], [0.1, 0.4, 9, 0.9], [0.3, 0.2, 0.9, 9]])
    found = score_pairs(truth_matrix("aabc"), scores)
    # Row 0 finds 1 and 1 finds 0, which are right; 2 and 3 are alone. One pair of six is right, the second.
    assert found["top1_accuracy"] == 0.5
    assert found["thresholds"].tolist() == [0.1, 0.2, 0.3, 0.4, 0.8, 0.9]
    assert found["recall"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert found["precision"].tolist() == [1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 0, 1]
    assert found["pr_auc"] == 0.25


def test_only_the_upper_triangle_counts_for_the_curve_and_the_whole_row_for_top1() -> None:
    scores = np.array([[0.0, 0.2, 0.9], [0.8, 0, 0.1], [0.3, 0.4, 0]])
    found = score_pairs(truth_matrix("aab"), scores)
    assert found["thresholds"].tolist() == [0.1, 0.2, 0.9]
    assert found["top1_accuracy"] == pytest.approx(1 / 3)


def test_of_equal_scores_the_lowest_index_is_the_nearest() -> None:
    # Row 0 ties between 1 and 2, row 1 between 0 and 2, row 2 between 0 and 1.
    assert score_pairs(truth_matrix("aba"), np.ones((3, 3)))["top1_accuracy"] == pytest.approx(1 / 3)
    assert score_pairs(truth_matrix("aab"), np.ones((3, 3)))["top1_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", ["", "a", "ab", "abcd"])
def test_without_a_pair_of_one_class_all_is_zero(labels: str) -> None:
    found = score_pairs(truth_matrix(list(labels)), np.eye(len(labels)))
    assert found["top1_accuracy"] == found["pr_auc"] == 0.0
    assert len(found["precision"]) == len(found["recall"]) == len(found["thresholds"]) == 0


def test_one_class_scores_one() -> None:
    found = score_pairs(truth_matrix("aaaa"), cosine_similarity_matrix(X[:4]))
    assert found["top1_accuracy"] == found["pr_auc"] == 1.0


@pytest.mark.parametrize(
    ("truth", "scores"), [((3, 3), (4, 4)), ((3, 4), (3, 4)), ((3,), (3,)), ((3, 3), (3,))]
)
@pytest.mark.parametrize("error", [ValueError, InputError])
def test_shapes_that_disagree_are_refused(truth: Any, scores: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"truth is .*, scores is .*: pass \(N, N\) for both"):
        score_pairs(np.ones(truth), np.ones(scores))


def test_scores_off_the_diagonal_must_be_finite() -> None:
    scores = np.ones((3, 3))
    scores[1, 1] = np.nan
    assert score_pairs(np.ones((3, 3)), scores)["top1_accuracy"] == 1.0
    for bad in (np.nan, np.inf, -np.inf):
        scores[0, 2] = bad
        with pytest.raises(InputError, match="scores holds NaN or infinity"):
            score_pairs(np.ones((3, 3)), scores)


def test_recall_is_the_share_that_scikit_learn_finds(order: npt.NDArray[np.int64]) -> None:
    found = recall_at(X, Y, (1, 2, 5, 10, 1000))
    for k, share in found.items():
        expected = np.mean([y in Y[near[:k]] for y, near in zip(Y, order, strict=True)])
        assert share == pytest.approx(expected, abs=1e-12)
    assert list(found) == [1, 2, 5, 10, 1000]


def test_mean_average_precision_is_scikit_learns_label_ranking() -> None:
    off = ~np.eye(600, dtype=bool)
    truth, scores = np.equal.outer(Y, Y)[off], cosine_similarity(X)[off]
    expected = label_ranking_average_precision_score(truth.reshape(600, 599), scores.reshape(600, 599))
    assert mean_average_precision(X, Y) == pytest.approx((expected, 600, 0), abs=1e-9)


@settings(max_examples=60)
@given(GRIDS)
def test_average_precision_with_ties_is_scikit_learns_too(case: tuple[F64, list[str]]) -> None:
    vectors, labels = case
    rows, off = len(vectors), ~np.eye(len(vectors), dtype=bool)
    truth = (truth_matrix(labels) == 1)[off].reshape(rows, rows - 1)
    scores = np.round(cosine_similarity(vectors), 9)[off].reshape(rows, rows - 1)
    known = truth.any(axis=1)
    expected = label_ranking_average_precision_score(truth[known], scores[known]) if known.any() else 0.0
    found = mean_average_precision(vectors, labels)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert (found.queries, found.left_out) == (known.sum(), (~known).sum())


def test_average_precision_by_hand() -> None:
    # Row 0 ranks 1, 2, 3, 4 and looks for 2 and 4: (1/2 + 2/4) / 2. Row 2 ranks 1, 3, 0, 4: (1/3 + 2/4) / 2.
    # Row 4 ranks 3, 2, 1, 0: (1/2 + 2/4) / 2. 1 and 3 are alone.
    found = mean_average_precision(FAN, list("abaca"))
    assert found == pytest.approx(((0.5 + 5 / 12 + 0.5) / 3, 3, 2))


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_a_vote_of_neighbours_is_counted_as_python_counts_it(order: npt.NDArray[np.int64], k: int) -> None:
    # most_common keeps the order in which it met equal ones: the nearest first.
    votes = [Counter(Y[near[:k]].tolist()).most_common(1)[0][0] for near in order]
    assert knn_accuracy(X, Y, k) == pytest.approx((np.mean(votes == Y), 1.0), abs=1e-12)


def test_the_upper_bound_leaves_out_those_alone_in_their_class() -> None:
    assert knn_accuracy(FAN, ["a", "a", "b", "c", "c"], 1) == pytest.approx((3 / 5, 4 / 5))
    assert knn_accuracy(FAN, ["a", "a", "b", "c", "c"], 99).accuracy_upper_bound == 0.8


def test_overlap_is_that_of_scikit_learns_neighbours(order: npt.NDArray[np.int64]) -> None:
    other = X[:, ::2] - 4
    theirs = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(other).kneighbors()[1]
    common = [len(set(a[:10]) & set(b)) / 10 for a, b in zip(order, theirs, strict=True)]
    assert overlap_at(X, other, 10) == pytest.approx(np.mean(common), abs=1e-12)
    assert same_nearest(X, other) == pytest.approx(np.mean(order[:, 0] == theirs[:, 0]), abs=1e-12)
    assert overlap_at(X, X * 3, 10) == same_nearest(X, X) == 1.0
    assert overlap_at(X[:5], other[:5], 99) == 1.0


def test_overlap_needs_the_same_rows() -> None:
    with pytest.raises(ShapeMismatchError, match="a has 3 rows, b has 4: pass the same images in both"):
        overlap_at(X[:3], X[:4])
    with pytest.raises(InputError, match=r"b has 1 row\(s\): at least 2 are needed"):
        same_nearest(X[:2], X[:1])
    with pytest.raises(InputError, match=r"a\[0\] holds NaN"):
        same_nearest(np.full((2, 2), np.nan), X[:2])


@pytest.mark.parametrize("block", [1, 10_000, 1 << 23])
def test_a_report_holds_what_the_functions_say_whatever_the_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scores, "_BLOCK_VALUES", block)
    labels: list[int | None] = [None if i % 7 == 0 else int(y) for i, y in enumerate(Y[:150])]
    kept = [i for i, label in enumerate(labels) if label is not None]
    vectors, truth = X[:150], Y[kept]
    pairs = score_pairs(truth_matrix(truth), cosine_similarity(vectors[kept]))
    report = evaluate(vectors, labels, (1, 30), 4)
    assert report.as_dict() == {
        "top1_accuracy": pytest.approx(pairs["top1_accuracy"], abs=1e-12),
        "pr_auc": pytest.approx(pairs["pr_auc"], abs=1e-9),
        "recall_at_1": pytest.approx(pairs["top1_accuracy"], abs=1e-12),
        "recall_at_30": recall_at(vectors[kept], truth, [30])[30],
        "mean_average_precision": pytest.approx(mean_average_precision(vectors[kept], truth).value),
        "knn_accuracy": knn_accuracy(vectors[kept], truth, 4).accuracy,
        "accuracy_upper_bound": 1.0,
        "classes": 10,
        "rows": 150,
        "rows_without_label": 22,
        "queries": 128,
        "k": 4,
        "pairs": 128 * 127 // 2,
        "pairs_sampled": False,
    }
    assert report.curve.same.sum() + report.curve.other.sum() == report.pairs
    assert report.curve.same.sum() == squareform(np.equal.outer(truth, truth), checks=False).sum()


@settings(max_examples=60)
@given(GRIDS, st.randoms(use_true_random=False))
def test_shares_grow_with_k_and_do_not_depend_on_the_order_of_rows(
    case: tuple[F64, list[str]], random: Any
) -> None:
    vectors, labels = case
    report = evaluate(vectors, labels, (1, 2, 4))
    recalls = list(report.recall_at.values())
    assert recalls == sorted(recalls)
    assert report.top1_accuracy == recalls[0]
    assert max(*recalls, report.knn_accuracy) <= report.accuracy_upper_bound
    shuffled = random.sample(range(len(vectors)), len(vectors))
    again = evaluate(vectors[shuffled], [labels[i] for i in shuffled])
    assert again.pr_auc == pytest.approx(report.pr_auc)
    assert again.mean_average_precision == pytest.approx(report.mean_average_precision)


def test_equal_rows_tie_wherever_they_lie() -> None:
    """A product of blocks may round equal rows apart: of three copies the first must stay the nearest."""
    copies = np.concatenate([X[:97], X[:97], X[:97]])
    labels = np.repeat([0, 1, 0], 97)
    # Those of the first and third run find the second and first; those of the second find the first.
    assert evaluate(copies, labels).top1_accuracy == pytest.approx(1 / 3)


def test_of_many_rows_pairs_are_sampled_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = evaluate(X, Y)
    monkeypatch.setattr(evaluation, "EXACT_PAIR_ROWS", 599)
    monkeypatch.setattr(evaluation, "SAMPLED_PAIRS", 200_000)
    sampled, again, other = (evaluate(X, Y, seed=seed) for seed in (0, 0, 1))
    assert (sampled.pairs, sampled.pairs_sampled) == (200_000, True)
    assert sampled.pr_auc == pytest.approx(exact.pr_auc, abs=0.01)
    assert again.pr_auc == sampled.pr_auc != other.pr_auc
    assert sampled.mean_average_precision == exact.mean_average_precision
    assert sampled.curve.same.sum() / 200_000 == pytest.approx(
        exact.curve.same.sum() / exact.pairs, abs=0.005
    )


@pytest.mark.parametrize("labels", [["a"], ["a", "b"], [None, "a", None]])
def test_rows_without_a_mate_score_zero(labels: list[str | None]) -> None:
    report = evaluate(X[: len(labels)], labels)
    shares = report.as_dict()
    assert {shares[name] for name in ("top1_accuracy", "pr_auc", "recall_at_10", "knn_accuracy")} == {0.0}
    assert report.mean_average_precision == report.accuracy_upper_bound == report.queries == 0


def test_zero_vectors_are_evaluated_as_like_nothing() -> None:
    report = evaluate(np.zeros((3, 4)), ["a", "b", "a"])
    assert report.top1_accuracy == pytest.approx(1 / 3)
    assert report.curve.other[50] == 2


def test_vectors_whose_squares_vanish_are_evaluated_as_others() -> None:
    assert evaluate(X[:90] * 2.0**-600, Y[:90]).as_dict() == evaluate(X[:90], Y[:90]).as_dict()


def test_labels_are_told_apart_as_they_are_written() -> None:
    labels = ["1", "01", "1.0", "é", "e\u0301", "line\nbreak", " ", "nan"]
    assert truth_matrix(labels).tolist() == np.eye(8).tolist()


def test_whatever_numpy_calls_nan_is_no_label() -> None:
    for nan in (np.float32("nan"), np.float64("nan")):
        report = evaluate(X[:4], [nan, "a", nan, "a"])  # type: ignore[list-item]
        assert (report.classes, report.rows_without_label) == (1, 2)


def test_ks_may_be_an_array() -> None:
    assert recall_at(X[:50], Y[:50], np.array([1, 5])) == recall_at(X[:50], Y[:50], [1, 5])  # type: ignore[arg-type]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeMismatchError, match=r"labels has shape \(3, 1\): pass \(N,\)"):
        evaluate(X[:3], np.array([["a"], ["b"], ["a"]]))
    with pytest.raises(InputError, match=r"labels\[1\] is \['b'\]: pass text or a number"):
        evaluate(X[:2], ["a", ["b"]])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"ks is 5: pass a list, such as \[1, 5\]"):
        evaluate(X, Y, 5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"seed is 0\.5: pass a whole number from 0"):
        evaluate(X, Y, seed=0.5)  # type: ignore[arg-type]
    for vectors in ([["1", "2"], ["3", "4"]], np.ones((2, 2), complex)):
        with pytest.raises(InputError, match="vectors is no array of numbers"):
            evaluate(vectors, ["a", "a"])
    for call in (evaluate, knn_accuracy, mean_average_precision):
        with pytest.raises(ValueError, match="labels has 2 entries for 3 vectors: pass one for each"):
            call(X[:3], ["a", "b"])
        with pytest.raises(InputError, match="labels holds no label: pass one for at least one row"):
            call(X[:2], [None, ""])
        with pytest.raises(InputError, match=r"vectors\[1\] holds NaN"):
            call([[1.0], [np.nan]], ["a", "b"])
    with pytest.raises(InputError, match=r"vectors has 0 row\(s\)"):
        evaluate(np.empty((0, 3)), [])
    with pytest.raises(InputError, match="ks is empty: pass at least one k"):
        evaluate(X, Y, ())
    with pytest.raises(InputError, match="ks is 0: pass a whole number of 1 or more"):
        recall_at(X, Y, (1, 0))
    with pytest.raises(InputError, match="k is -1"):
        evaluate(X, Y, k=-1)


def filled(picture: Image.Image, colour: tuple[int, int, int]) -> bool:
    """Whether more than a line is of the colour, drawn over white as the distributions are."""
    shade = 255 - 0.45 * (255 - np.array(colour))
    near = np.abs(np.asarray(picture.convert("RGB"), float) - shade).max(axis=2) <= 2
    return int(near.sum()) > 500


@pytest.mark.parametrize(
    ("labels", "same", "other"),
    [(Y[:80].tolist(), True, True), ([1] * 80, True, False), (list(range(80)), False, True)],
)
def test_a_plot_is_drawn_of_any_classes(labels: list[int], same: bool, other: bool, tmp_path: Path) -> None:
    plot(evaluate(X[:80], labels), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1320, 540)
        assert filled(picture, (0x00, 0x72, 0xB2)) == same
        assert filled(picture, (0xD5, 0x5E, 0x00)) == other


def test_a_plot_is_a_vector_graphic_by_its_suffix(tmp_path: Path) -> None:
    plot(evaluate(X[:80], Y[:80]), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = evaluate(X[:20], Y[:20])
    with pytest.raises(InputError, match=r"a\.txt': let it end in \.png, \.svg or \.pdf"):
        plot(report, tmp_path / "a.txt")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        plot(report, tmp_path / "missing" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"matplotlib .*pip install 'pixvec\[dataset\]'"):
        plot(report, tmp_path / "a.png")
