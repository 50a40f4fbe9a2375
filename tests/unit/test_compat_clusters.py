"""easydl's clusters and their scores, against scikit-learn and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import cluster, metrics

from pixvec import InputError
from pixvec.compat.easydl import (
    EmbeddingEvaluationAgglomerativeClustering,
    agglomerative_clustering_pairwise_cosine_distance_with_threshold,
    calculate_clustering_metrics_all_in_one,
    calculate_cosine_similarity_matrix,
    create_pairwise_similarity_ground_truth_matrix,
    evaluate_embedding_top1_accuracy_ignore_self,
    evaluate_pairwise_score_matrix_with_true_label,
)

LABELS = [name for name in ("cat", "dog", "cow") for _ in range(8)] + ["owl"]
VECTORS = np.random.default_rng(1).normal(size=(25, 6)) + np.repeat(np.eye(6)[:4] * 3, [8, 8, 8, 1], axis=0)


def table(**more: Any) -> dict[str, Any]:
    return {"embedding": list(VECTORS), "label": LABELS, "file": range(25), **more}


@pytest.mark.filterwarnings("ignore:The symmetric non-negative hollow")
@pytest.mark.parametrize("threshold", [0, 0.5, 2, np.float32(3), 100])
def test_clusters_are_scikit_learns_of_the_distances(threshold: float) -> None:
    given = table()
    found = agglomerative_clustering_pairwise_cosine_distance_with_threshold(given, threshold)
    wanted = cluster.AgglomerativeClustering(n_clusters=None, distance_threshold=float(threshold)).fit(
        metrics.pairwise_distances(VECTORS, metric="cosine")
    )
    assert metrics.adjusted_rand_score(found["cluster_label"], wanted.labels_) == 1
    assert "cluster_label" not in given
    assert found["file"] == given["file"]


def test_one_row_is_one_cluster() -> None:
    given: dict[str, Any] = {"embedding": [[1.0, 2.0]]}
    found = agglomerative_clustering_pairwise_cosine_distance_with_threshold(given, 1)
    assert found["cluster_label"].tolist() == [0]


def test_scores_are_scikit_learns() -> None:
    clusters = np.random.default_rng(2).integers(0, 5, 25)
    given = table(cluster_label=clusters)
    found = calculate_clustering_metrics_all_in_one(given)
    of_labels = ("rand_score", "adjusted_mutual_info_score", "homogeneity_score", "completeness_score")
    wanted = {
        "number_of_labels": 4,
        "number_of_clusters": 5,
        "calinski_harabasz_score": metrics.calinski_harabasz_score(VECTORS, clusters),
        "davies_bouldin_score": metrics.davies_bouldin_score(VECTORS, clusters),
        **{
            name: getattr(metrics, name)(LABELS, clusters)
            for name in (*of_labels, "v_measure_score", "fowlkes_mallows_score")
        },
    }
    assert found.pop("df_clustered") is given
    assert found == pytest.approx(wanted)
    without = calculate_clustering_metrics_all_in_one(given, save_input_df_clustered=False)
    assert without.pop("df_clustered") is None
    assert without == found


@pytest.mark.parametrize(("threshold", "clusters"), [(1e6, 1), (0, 25)])
def test_scores_that_are_not_defined_are_nan(threshold: float, clusters: int) -> None:
    found = EmbeddingEvaluationAgglomerativeClustering.evaluate_given_threshold(table(), threshold)
    assert found["number_of_clusters"] == clusters
    assert np.isnan([found["calinski_harabasz_score"], found["davies_bouldin_score"]]).all()
    assert found["df_clustered"].keys() == table().keys() | {"cluster_label"}
    assert 0 <= found["v_measure_score"] <= 1


def test_the_nearest_other_row_is_a_plain_loops() -> None:
    found = evaluate_embedding_top1_accuracy_ignore_self(table())
    distances = np.linalg.norm(VECTORS[:, None] - VECTORS[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    hits = [LABELS[row] == LABELS[other] for row, other in enumerate(nearest)]
    assert 0.3 < np.mean(hits) < 1
    assert found["avg_top1_accuracy"] == pytest.approx(np.mean(hits))
    assert found["accuracy_upper_bound"] == pytest.approx(24 / 25)
    rows = found["result_dataframe"]
    assert rows["top1_index"].tolist() == nearest.tolist()
    assert rows["top1_label"] == [LABELS[other] for other in nearest]
    assert np.allclose(rows["top1_distance"], distances.min(axis=1), atol=1e-4)
    assert rows["same_group_count"].tolist() == [8] * 24 + [1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": LABELS}, "the table has no column embedding: add it"),
        ({"embedding": []}, r"embedding "),
        ({"embedding": [[1.0], [np.nan]], "label": ["a", "b"]}, r"embedding\[1\] holds NaN"),
        ({"embedding": [[1.0], [1.0, 2.0]]}, "embedding is no array of numbers"),
        (7, "a int is no table: pass a DataFrame or a dict of lists"),
    ],
)
def test_what_is_no_table_of_vectors_is_refused(given: Any, said: str) -> None:
    for judge in (
        agglomerative_clustering_pairwise_cosine_distance_with_threshold,
        lambda table, _: evaluate_embedding_top1_accuracy_ignore_self(table),
    ):
        with pytest.raises(InputError, match=said):
            judge(given, 1.0)


@pytest.mark.parametrize("threshold", [-1, float("nan"), float("inf"), "2", None, True])
def test_what_is_no_threshold_is_refused(threshold: Any) -> None:
    with pytest.raises(InputError, match=r"threshold = .*: give a number of 0 or more"):
        agglomerative_clustering_pairwise_cosine_distance_with_threshold(table(), threshold)


def test_a_missing_label_is_refused_by_its_row() -> None:
    with pytest.raises(InputError, match=r"label\[3\] is missing"):
        evaluate_embedding_top1_accuracy_ignore_self(table(label=[*"abc", None, *"a" * 21]))


# Labels and matrices as programs have them


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 0, 1]),
        list(torch.tensor([0, 0, 1])),
        np.array([[0], [0], [1]]),
        [np.int64(0), np.int32(0), np.int64(1)],
        np.array(["a", "a", "b"]),
        (label for label in "aab"),
    ],
    ids=["tensor", "list of tensors", "a column", "numpy scalars", "texts", "generator"],
)
def test_labels_of_every_kind_are_compared_by_what_they_hold(labels: Any) -> None:
    found = create_pairwise_similarity_ground_truth_matrix(labels)
    assert found.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_labels_of_two_columns_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels has shape \(3, 2\)"):
        create_pairwise_similarity_ground_truth_matrix(np.zeros((3, 2)))


def test_tensors_are_judged_as_arrays() -> None:
    tensor = torch.tensor(VECTORS, requires_grad=True)
    scores = calculate_cosine_similarity_matrix(tensor)
    assert np.allclose(scores, metrics.pairwise.cosine_similarity(VECTORS))
    truth = create_pairwise_similarity_ground_truth_matrix(LABELS)
    by_tensor = evaluate_pairwise_score_matrix_with_true_label(
        y_true_matrix=torch.tensor(truth), y_score_matrix=torch.tensor(scores, requires_grad=True)
    )
    by_array = evaluate_pairwise_score_matrix_with_true_label(truth, scores)
    assert by_tensor["pr_auc"] == by_array["pr_auc"] > 0.2
