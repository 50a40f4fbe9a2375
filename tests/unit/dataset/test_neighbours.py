"""Neighbours and what follows from them, against scipy's distances and against cases worked out by hand."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_rand_score

from pixvec._errors import InputError
from pixvec.dataset import _scores, neighbours
from pixvec.dataset.neighbours import (
    Neighbours,
    clusters,
    label_noise,
    near_duplicates,
    nearest,
    outlier_scores,
)

DIGITS: npt.NDArray[np.float64] = load_digits().data
RNG = np.random.default_rng(11)
# On a line: 0 and 1 are close, 2 and 3 are equal, 4 is far from all.
LINE = np.array([[0.0, 0], [1, 0], [10, 0], [10, 0], [100, 0]])
GRIDS = st.tuples(st.integers(2, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-2, 2).map(float))
)


def by_hand(vectors: npt.NDArray[np.float64], metric: Any) -> npt.NDArray[np.float64]:
    """Distances of all to all but themselves, where a zero vector is at cosine distance 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        distances = np.nan_to_num(cdist(vectors, vectors, metric), nan=1.0)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(distances)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [1, 5_000, 1 << 23])
def test_exact_neighbours_are_scipys(metric: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scores, "_BLOCK_VALUES", block)
    vectors = DIGITS[:200] + RNG.normal(size=(200, 64))
    found, expected = nearest(vectors, 7, metric), by_hand(vectors, metric)
    assert (found.indices == expected.argsort(axis=1)[:, :7]).all()
    assert found.distances == pytest.approx(np.sort(expected, axis=1)[:, :7], rel=1e-6)
    assert found.distances.dtype == np.float32


@settings(max_examples=80)
@given(vectors=GRIDS, k=st.integers(1, 15), metric=st.sampled_from(["cosine", "euclidean"]))
def test_ties_go_to_the_lowest_index_and_no_row_is_its_own_neighbour(
    vectors: npt.NDArray[np.float64], k: int, metric: str
) -> None:
    found, expected = nearest(vectors, k, metric), np.round(by_hand(vectors, metric), 9)
    assert (found.indices == expected.argsort(axis=1, kind="stable")[:, : min(k, len(vectors) - 1)]).all()
    assert not (found.indices == np.arange(len(vectors))[:, None]).any()


def test_duplicates_are_at_distance_zero_far_from_the_origin_too() -> None:
    vectors = np.concatenate([DIGITS[:50], DIGITS[:50]]) + 1e6
    for metric in ("cosine", "euclidean"):
        found = nearest(vectors, 1, metric)
        assert (found.indices[:, 0] == (np.arange(100) + 50) % 100).all()
        assert (found.distances == 0).all()


def test_euclidean_distances_do_not_lose_digits_far_from_the_origin() -> None:
    near, far = nearest(DIGITS[:200], 7, "euclidean"), nearest(DIGITS[:200] + 1e6, 7, "euclidean")
    assert far.distances == pytest.approx(near.distances, rel=1e-6)


@pytest.mark.parametrize("far", [1e7, 1e15])
def test_rows_far_from_all_others_do_not_blur_these(far: float) -> None:
    """Of the first 60 rows only: of a stray's own distances the differences are lost in float64."""
    strays = far * np.eye(64)[:1]
    for vectors in (
        np.concatenate([DIGITS[:60], strays]),
        np.concatenate([DIGITS[:60], strays + DIGITS[:60]]),
    ):
        found, expected = nearest(vectors, 5, "euclidean"), by_hand(vectors, "euclidean")
        assert (found.indices == expected.argsort(axis=1, kind="stable")[:, :5])[:60].all()
        assert found.distances[:60] == pytest.approx(np.sort(expected, axis=1)[:60, :5], rel=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_vectors_whose_squares_vanish_have_the_same_neighbours(metric: str) -> None:
    small, usual = nearest(DIGITS[:60] * 2.0**-600, 5, metric), nearest(DIGITS[:60], 5, metric)
    assert (small.indices == usual.indices).all()


def test_hnsw_finds_nearly_all_of_the_exact_neighbours() -> None:
    vectors, _ = make_blobs(3000, 48, centers=40, cluster_std=3.0, random_state=2)
    for metric in ("cosine", "euclidean"):
        exact = nearest(vectors, 10, metric)
        graph = neighbours._approximate(neighbours._space(vectors, metric), 10)
        common = [len(set(a) & set(b)) for a, b in zip(exact.indices, graph.indices, strict=True)]
        assert np.mean(common) / 10 >= 0.95
        assert not (graph.indices == np.arange(3000)[:, None]).any()
        same = (exact.indices == graph.indices).all(axis=1)
        assert (exact.distances[same] == graph.distances[same]).all()


def test_many_equal_rows_are_one_group_whichever_way_they_are_found() -> None:
    vectors = np.concatenate([np.tile(DIGITS[0], (60, 1)), DIGITS[1:40]])
    for metric in ("cosine", "euclidean"):
        exact = nearest(vectors, 5, metric)
        graph = neighbours._approximate(neighbours._space(vectors, metric), 5)
        for found in (exact, graph):
            assert near_duplicates(found, 0.0) == [list(range(60))]
            assert found.indices[0].tolist() == [1, 2, 3, 4, 5]
            assert found.indices[3].tolist() == [0, 1, 2, 4, 5]


def test_the_graph_is_asked_above_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 40)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    assert nearest(DIGITS[:40]).indices.shape == (40, 10)
    with pytest.raises(InputError, match=r"usearch .*pip install 'pixvec\[dataset\]'"):
        nearest(DIGITS[:41])


@pytest.mark.parametrize("fault", ["finds fewer", "misses itself"])
def test_what_the_graph_leaves_out_is_made_good(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph may end a search early, or miss the row that it searches for."""
    vectors, k = DIGITS[:30], 4
    order = np.argsort(by_hand(vectors, "cosine"), axis=1)
    keys = np.column_stack([np.arange(30), order[:, :k]]) if fault == "finds fewer" else order[:, : k + 1]
    counts = np.full(30, k + 1)
    if fault == "finds fewer":
        keys[7], counts[7] = 0, 2

    class Index:
        def __init__(self, **_: object) -> None: ...
        def add(self, *_: object) -> None: ...
        def search(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(keys=keys.astype(np.uint64), counts=counts)

    monkeypatch.setattr(neighbours, "library", lambda _: SimpleNamespace(Index=Index))
    found = neighbours._approximate(neighbours._space(vectors, "cosine"), k)
    assert (found.indices == order[:, :k]).all()


def test_the_outlier_is_the_row_far_from_all() -> None:
    scores = outlier_scores(nearest(LINE, 2, "euclidean"))
    assert scores.tolist() == [5.5, 5.0, 4.5, 4.5, 90.0]


@pytest.mark.parametrize(
    ("threshold", "groups"),
    [(0, [[2, 3]]), (0.5, [[2, 3]]), (1, [[0, 1], [2, 3]]), (9, [[0, 1, 2, 3]]), (90, [[0, 1, 2, 3, 4]])],
)
def test_near_duplicates_are_chained(threshold: float, groups: list[list[int]]) -> None:
    assert near_duplicates(nearest(LINE, 3, "euclidean"), threshold) == groups


@settings(max_examples=80)
@given(vectors=GRIDS, threshold=st.sampled_from([0.0, 1.0, 2.0]))
def test_groups_are_the_components_of_the_whole_graph(
    vectors: npt.NDArray[np.float64], threshold: float
) -> None:
    """Every row is asked for all others, so that a flood fill over the distance matrix must agree."""
    close = by_hand(vectors, "euclidean") <= threshold
    left, groups = set(range(len(vectors))), []
    while left:
        group, edge = set[int](), {min(left)}
        while edge:
            group |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(close[i])} - group
        left -= group
        groups += [sorted(group)] if len(group) > 1 else []
    assert near_duplicates(nearest(vectors, len(vectors), "euclidean"), threshold) == groups


def test_label_noise_is_the_share_of_labelled_neighbours_of_another_label() -> None:
    found = Neighbours(
        np.array([[1, 2, 3], [0, 2, 4], [4, 5, 4], [0, 1, 2], [0, 1, 2], [0, 1, 3]]),
        np.zeros((6, 3), np.float32),
    )
    noise = label_noise(found, ["a", "a", "b", "b", None, ""])
    assert noise[[0, 1, 3]].tolist() == [pytest.approx(2 / 3), 0.5, pytest.approx(2 / 3)]
    assert np.isnan(noise[[2, 4, 5]]).all()
    numbers = label_noise(found, np.array([7, 7, 8, 8, np.nan, np.nan]))
    np.testing.assert_array_equal(noise, numbers)


def test_a_wrong_label_stands_out_among_the_digits() -> None:
    digits = load_digits()
    labels = digits.target.copy()
    labels[100] = (labels[100] + 5) % 10
    noise = label_noise(nearest(digits.data), labels)
    assert noise[100] == 1.0
    assert np.nanmean(noise) < 0.05


def test_clusters_are_found_with_and_without_a_count() -> None:
    vectors, truth = make_blobs(300, 100, centers=4, cluster_std=0.5, random_state=1)
    for count in (4, None):
        found = clusters(vectors, count, seed=0)
        assert found.dtype == np.int64
        assert adjusted_rand_score(truth, found) == 1.0
        assert (clusters(vectors, count, seed=0) == found).all()
    lonely = np.concatenate([vectors, np.full((1, 100), 500.0)])
    assert clusters(lonely)[-1] == -1
    assert (clusters(lonely, 4) >= 0).all()


@pytest.mark.parametrize("rows", [1, 4, 5, 70])
def test_rows_that_are_all_the_same_cluster_without_a_warning(rows: int) -> None:
    same = np.ones((rows, 80))
    assert (clusters(same) == -1).all()
    assert (clusters(same, 1) == 0).all()


@settings(max_examples=20)
@given(vectors=GRIDS)
def test_few_rows_are_clustered_whatever_they_are(vectors: npt.NDArray[np.float64]) -> None:
    found = clusters(vectors)
    assert found.shape == (len(vectors),)
    assert set(found) <= set(range(-1, len(vectors)))


def test_many_rows_are_clustered_by_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, truth = make_blobs(600, 100, centers=6, cluster_std=0.5, random_state=1)
    vectors = np.concatenate([vectors, np.full((1, 100), 500.0)])
    by_pairs = clusters(vectors)
    monkeypatch.setattr(neighbours, "DENSE_ROWS", 600)
    by_links = clusters(vectors)
    assert adjusted_rand_score(truth, by_links[:-1]) > 0.95
    assert adjusted_rand_score(by_pairs, by_links) > 0.95
    assert by_links[-1] == -1
    # Copies are at distance 0, which in a sparse matrix is no link.
    copies = np.concatenate([np.tile(corner, (60, 1)) for corner in 10 * np.eye(11)])
    assert adjusted_rand_score(np.arange(660) // 60, clusters(copies)) == 1.0


def test_clusters_by_cosine_do_not_see_the_lengths() -> None:
    truth = np.repeat([0, 1], 60)
    vectors = (np.eye(8)[truth] + 0.01 * RNG.normal(size=(120, 8))) * RNG.uniform(1, 500, size=(120, 1))
    for count in (2, None):
        assert adjusted_rand_score(truth, clusters(vectors, count, metric="cosine")) == 1.0
        assert adjusted_rand_score(truth, clusters(vectors, count)) < 0.9


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"vectors has 1 row\(s\): at least 2 are needed"):
        nearest(DIGITS[:1])
    with pytest.raises(InputError, match="k is 0: pass a whole number of 1 or more"):
        nearest(DIGITS, 0)
    with pytest.raises(InputError, match=r"k is 2\.5"):
        nearest(DIGITS, 2.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="metric is 'dot': use one of euclidean, cosine"):
        nearest(DIGITS, metric="dot")
    with pytest.raises(InputError, match=r"vectors\[2\] holds NaN"):
        nearest(np.array([[1.0], [2], [np.nan]]))
    with pytest.raises(InputError, match=r"count is 9, of 3 row\(s\): ask for as many clusters at most"):
        clusters(DIGITS[:3], 9)
    with pytest.raises(InputError, match="count is 0"):
        clusters(DIGITS[:3], 0)
    with pytest.raises(InputError, match="seed is -1: pass a whole number from 0"):
        clusters(DIGITS[:3], 2, seed=-1)
    with pytest.raises(InputError, match="metric is 'dot': use one of"):
        clusters(DIGITS[:3], 2, metric="dot")
    found = nearest(DIGITS[:9])
    for threshold in (-1, np.nan):
        with pytest.raises(InputError, match=r"threshold is .*pass a distance of 0 or more"):
            near_duplicates(found, threshold)
    with pytest.raises(InputError, match="labels has 2 entries for 9 vectors"):
        label_noise(found, ["a", "b"])
