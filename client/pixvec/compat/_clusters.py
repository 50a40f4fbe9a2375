"""Tables of vectors and labels, judged as easydl.clustering and easydl.dml.evaluation do."""

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from pixvec._errors import InputError
from pixvec._types import Array

__all__ = (
    "EmbeddingEvaluationAgglomerativeClustering",
    "Table",
    "agglomerative_clustering_pairwise_cosine_distance_with_threshold",
    "calculate_clustering_metrics_all_in_one",
    "evaluate_embedding_top1_accuracy_ignore_self",
)

# As easydl names them, and scikit-learn; of vectors and clusters.
_OF_SHAPE = ("calinski_harabasz_score", "davies_bouldin_score")
# Of labels and clusters.
_OF_LABELS = (
    "rand_score",
    "adjusted_mutual_info_score",
    "homogeneity_score",
    "completeness_score",
    "v_measure_score",
    "fowlkes_mallows_score",
)


class Table(Protocol):
    """Columns by name: a pandas DataFrame, or a dict of lists."""

    def copy(self) -> Self: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Any: ...  # noqa: ANN401 - a column of either
    def __setitem__(self, name: str, column: Any, /) -> None: ...  # noqa: ANN401 - as above


_Table = TypeVar("_Table", bound=Table)


def agglomerative_clustering_pairwise_cosine_distance_with_threshold(
    df_embeddings: _Table, threshold: float
) -> _Table:
    """Return a copy of a table with its clusters, from 0, in a column cluster_label.

    df_embeddings: a column `embedding` of vectors (D,). threshold: clusters that are farther apart stay two.
    As in easydl, that is no cosine distance: it is Ward's, between rows of the matrix (N, N) of all cosine
    distances, which takes 8 N² bytes.

    Raises InputError for another table or threshold, and for a missing package.
    """
    from pixvec.dataset import evaluation  # noqa: PLC0415 - needs more than the client does
    from pixvec.dataset._scores import library  # noqa: PLC0415 - as above

    if not _is_number(threshold) or not 0 <= threshold < np.inf:
        raise InputError(f"threshold = {threshold!r}: give a number of 0 or more")
    # Ward's method sees differences of rows only, which are the same of distances, 1 - cosine; scipy would
    # warn of those that they look like distances.
    cosines = evaluation.cosine_similarity_matrix(_vectors(df_embeddings))
    clusters = np.zeros(len(cosines), np.int64)
    if len(cosines) > 1:
        method = library("sklearn.cluster").AgglomerativeClustering(
            n_clusters=None, distance_threshold=float(threshold)
        )
        clusters = method.fit(cosines).labels_
    return _with_columns(df_embeddings, {"cluster_label": clusters})


def calculate_clustering_metrics_all_in_one(
    df_clustered: Table, save_input_df_clustered: bool = True
) -> dict[str, Any]:
    """Return scikit-learn's scores of a table's clusters by name, number_of_labels and number_of_clusters.

    df_clustered: columns embedding, label and cluster_label; it is in the answer under that name, unless
    save_input_df_clustered is False: then None. calinski_harabasz_score and davies_bouldin_score, which need
    2 to N - 1 clusters, are NaN for another number. Raises InputError for another table, a missing package.
    """
    from pixvec.dataset._scores import library  # noqa: PLC0415 - needs more than the client does

    vectors = _vectors(df_clustered)
    labels, clusters = (_codes(df_clustered, name, len(vectors)) for name in ("label", "cluster_label"))
    metrics, count = library("sklearn.metrics"), len(np.unique(clusters))
    defined = 1 < count < len(vectors)
    return {
        "df_clustered": df_clustered if save_input_df_clustered else None,
        "number_of_labels": len(np.unique(labels)),
        "number_of_clusters": count,
        **{name: float(getattr(metrics, name)(labels, clusters)) for name in _OF_LABELS},
        **{
            name: float(getattr(metrics, name)(vectors, clusters)) if defined else float("nan")
            for name in _OF_SHAPE
        },
    }


class EmbeddingEvaluationAgglomerativeClustering:
    """Clusters and their scores in one call."""

    @staticmethod
    def evaluate_given_threshold(embeddings_dataframe: Table, threshold: float = 2.0) -> dict[str, Any]:
        """Return the scores of the clusters of a table with columns embedding and label."""
        return calculate_clustering_metrics_all_in_one(
            agglomerative_clustering_pairwise_cosine_distance_with_threshold(embeddings_dataframe, threshold)
        )


def evaluate_embedding_top1_accuracy_ignore_self(embeddings_dataframe: _Table) -> dict[str, Any]:
    """Return how often the nearest other row, by euclidean distance, has the row's label.

    embeddings_dataframe: columns embedding and label, of 2 rows or more. avg_top1_accuracy: that share.
    accuracy_upper_bound: the share of rows whose label another row has. result_dataframe: a copy with the
    nearest row's label, distance and index, of equally near ones the lowest, in top1_label, top1_distance and
    top1_index, and in same_group_count the rows of the row's label. Raises InputError for another table.
    """
    from pixvec.dataset import neighbours  # noqa: PLC0415 - needs more than the client does

    near = neighbours.nearest(vectors := _vectors(embeddings_dataframe), 1, "euclidean")
    labels = _codes(embeddings_dataframe, "label", len(vectors))
    index, counts = near.indices[:, 0], np.bincount(labels)[labels]
    named = list(embeddings_dataframe["label"])
    return {
        "avg_top1_accuracy": float((labels[index] == labels).mean()),
        "accuracy_upper_bound": float((counts > 1).mean()),
        "result_dataframe": _with_columns(
            embeddings_dataframe,
            {
                "top1_label": [named[at] for at in index],
                "top1_distance": near.distances[:, 0],
                "top1_index": index,
                "same_group_count": counts,
            },
        ),
    }


def _vectors(table: Table) -> npt.NDArray[np.float64]:
    from pixvec.dataset._scores import matrix  # noqa: PLC0415 - needs more than the client does

    return matrix(_column(table, "embedding"), field="embedding")


def _codes(table: Table, name: str, rows: int) -> npt.NDArray[np.int64]:
    from pixvec.dataset._scores import NO_LABEL, codes  # noqa: PLC0415 - needs more than the client does

    numbers = codes(_column(table, name), rows)
    if (numbers == NO_LABEL).any():
        raise InputError(f"{name}[{int(np.argmin(numbers))}] is missing: leave its row out")
    return numbers


def _column(table: Table, name: str) -> Sequence[Any]:
    if not all(hasattr(table, method) for method in ("copy", "__getitem__", "__contains__")):
        raise InputError(
            f"a {type(table).__name__} is no table: pass a DataFrame or a dict of lists, with a column {name}"
        )
    if name not in table:
        raise InputError(f"the table has no column {name}: add it")
    return list(table[name])


def _with_columns(table: _Table, columns: dict[str, Array | list[Any]]) -> _Table:
    copied = table.copy()
    for name, column in columns.items():
        copied[name] = column
    return copied


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
