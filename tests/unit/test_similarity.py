"""Scores against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pixvec_server.similarity import Question, _row, scores
from pixvec_server.types import Metric, Target

RNG = np.random.default_rng(3)
A, B = RNG.normal(size=(5, 16)).astype(np.float32), RNG.normal(size=(7, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Metric.COSINE, 1 - cdist(A, B, "cosine")),
        (Metric.DOT, A.astype(float) @ B.T.astype(float)),
        (Metric.EUCLIDEAN, cdist(A, B)),
    ],
)
def test_each_metric(metric: Metric, expected: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    assert np.allclose(scores(A, B, metric), expected, atol=1e-5)


def test_the_distance_of_a_vector_to_itself_is_zero_not_nan() -> None:
    big = A * 1000
    assert np.allclose(np.diag(scores(big, big, Metric.EUCLIDEAN)), 0, atol=1e-2)


def test_the_cosine_with_a_zero_vector_is_zero() -> None:
    assert not scores(np.zeros((1, 16), np.float32), B, Metric.COSINE).any()


@pytest.mark.parametrize(("metric", "nearest"), [(Metric.COSINE, [1, 3, 0]), (Metric.EUCLIDEAN, [2, 0, 3])])
def test_top_k_is_nearest_first_with_ties_by_index(metric: Metric, nearest: list[int]) -> None:
    line = np.array([0.5, 0.9, 0.1, 0.9 if metric is Metric.COSINE else 0.6], np.float32)
    row = _row(line, Question((), (), Target(), metric, 3))
    assert list(row.indices) == nearest
    assert list(row.scores) == [line[i] for i in nearest]


def test_top_k_of_more_than_there_are_is_all() -> None:
    row = _row(np.array([1, 2], np.float32), Question((), (), Target(), Metric.DOT, 9))
    assert row.indices == (1, 0)
