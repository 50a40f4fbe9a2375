"""Layouts: vectors of any size to points of a plane, for a chart."""

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pixvec._errors import InputError

from ._scores import F64, library, matrix

F32: TypeAlias = npt.NDArray[np.float32]
# Told in words which step begins; the libraries do not say how far they are within one.
Progress: TypeAlias = Callable[[str], None]

METHODS = ("umap", "pca", "tsne", "pca-umap", "pca-tsne")
METRICS = ("euclidean", "cosine")
COMPONENTS = 64
# Of fewer points there is no neighbourhood to keep; any two span a line, which is enough for PCA.
_LEAST_ROWS = {"pca": 2, "umap": 4, "tsne": 4}
_UMAP_NEIGHBOURS, _UMAP_MIN_DIST, _TSNE_PERPLEXITY = 15, 0.05, 30.0


def project(
    vectors: npt.ArrayLike,
    method: str = "umap",
    metric: str = "euclidean",
    seed: int = 0,
    progress: Progress | None = None,
) -> F32:
    """Lay vectors (N, D) out in the plane, as points (N, 2).

    method: "umap" (McInnes et al. 2018; min_dist 0.05, otherwise the library's defaults), "pca", "tsne" (van
    der Maaten and Hinton 2008; perplexity 30) or "pca-umap" and "pca-tsne", which go through the first
    min(64, N, D) principal components. With few rows UMAP's neighbours are lowered to N - 1 and t-SNE's
    perplexity to (N - 1) / 3, where its neighbours are all the others.
    metric: "euclidean" or "cosine"; PCA ignores it, also as a first step. seed: the same seed gives the same
    points on the same machine, for which UMAP and t-SNE run on one core. progress: told what begins.

    Raises InputError for an unknown method or metric, a bad seed, fewer than 4 rows (PCA alone: 2) or 2
    columns, rows that are all the same, values that are not finite, and a missing package.
    """
    _check_names(method, metric, seed)
    last = method.rpartition("-")[2]
    rows = _check_rows(vectors, method, _LEAST_ROWS[last])
    tell = progress or _silent
    if method.startswith("pca"):
        count = 2 if method == "pca" else min(COMPONENTS, *rows.shape)
        tell(f"PCA of {len(rows)} rows from {rows.shape[1]} to {count} columns")
        rows = principal(rows, count, seed)
    if last == "pca":
        return rows.astype(np.float32)
    tell(f"{'UMAP' if last == 'umap' else 't-SNE'} of {len(rows)} rows")
    laid = _umap if last == "umap" else _tsne
    return laid(rows.astype(np.float32), metric, seed)


def principal(rows: F64, count: int, seed: int) -> F64:
    """Return the first `count` principal components (N, count) of rows (N, D); count <= min(N, D)."""
    pca = library("sklearn.decomposition").PCA(count, random_state=seed)
    # Of rows that are all the same, the share of variance is 0/0; nobody reads it.
    with np.errstate(invalid="ignore"):
        return np.asarray(pca.fit_transform(rows), np.float64)


def _umap(rows: F32, metric: str, seed: int) -> F32:
    layout = _umap_library().UMAP(
        n_neighbors=min(_UMAP_NEIGHBOURS, len(rows) - 1),
        min_dist=_UMAP_MIN_DIST,
        metric=metric,
        random_state=seed,
        n_jobs=1,  # what a seed leads to anyway, but then with a warning
    )
    return np.asarray(layout.fit_transform(rows), np.float32)


def _umap_library() -> Any:  # noqa: ANN401 - a module
    with warnings.catch_warnings():
        # Said of a variant of UMAP that is not used here.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        return library("umap")


def _tsne(rows: F32, metric: str, seed: int) -> F32:
    layout = library("sklearn.manifold").TSNE(
        2, perplexity=min(_TSNE_PERPLEXITY, (len(rows) - 1) / 3), metric=metric, random_state=seed
    )
    # More threads add up the gradient in an order of their own, and the points wander off.
    with library("threadpoolctl").threadpool_limits(1, user_api="openmp"):
        return np.asarray(layout.fit_transform(rows), np.float32)


def _check_names(method: str, metric: str, seed: int) -> None:
    if method not in METHODS:
        raise InputError(f"method is {method!r}: use one of {', '.join(METHODS)}")
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}: use one of {', '.join(METRICS)}")
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed is {seed!r}: pass a whole number from 0 to {(1 << 32) - 1}")


def _check_rows(vectors: npt.ArrayLike, method: str, least: int) -> F64:
    rows = matrix(vectors)
    if len(rows) < least:
        raise InputError(f"vectors has {len(rows)} row(s): {method} needs at least {least}")
    if rows.shape[1] < 2:
        raise InputError("vectors has 1 column: at least 2 are needed, or draw the values as they are")
    if (rows == rows[0]).all():
        raise InputError(f"vectors has {len(rows)} rows that are all the same: there is nothing to lay out")
    return rows


def _silent(_step: str) -> None:
    pass
