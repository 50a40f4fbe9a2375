"""Layouts: vectors of any size to points of a plane, for a chart."""

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pixvec._errors import InputError

from ._scores import F64, library, matrix, seeded, unit
from ._telling import TELL_S, Tell, telling

F32: TypeAlias = npt.NDArray[np.float32]

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
    progress: Tell | None = None,
) -> F32:
    """Lay vectors (N, D) out in the plane, as points (N, 2).

    method: "umap" (McInnes et al. 2018; min_dist 0.05, otherwise the library's defaults), "pca", "tsne" (van
    der Maaten and Hinton 2008; perplexity min(30, N - 1)) or "pca-umap" and "pca-tsne", which go through the
    first min(64, N, D) principal components. With few rows UMAP's neighbours are lowered to N - 1.
    metric: "euclidean" or "cosine"; PCA ignores it, also as a first step. seed: the same seed gives the same
    points on the same machine, for which UMAP and t-SNE run on one core. progress: told what begins, and of
    UMAP and t-SNE every 5 seconds, from another thread too, how long they have been at it; of UMAP's epochs,
    how many are done, at what rate, and the time left. t-SNE does not say how far it is.

    Raises InputError for an unknown method or metric, a bad seed, fewer than 4 rows (PCA alone: 2) or 2
    columns, rows that are all the same (by cosine: all of one direction), values that are not finite, and a
    missing package.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}: use one of {', '.join(METHODS)}")
    check_metric(metric)
    seed, last = seeded(seed), method.rpartition("-")[2]
    rows = _check_rows(vectors, method, _LEAST_ROWS[last])
    if method.startswith("pca"):
        count = 2 if method == "pca" else min(COMPONENTS, *rows.shape)
        with telling(f"PCA of {len(rows)} rows from {rows.shape[1]} to {count} columns", progress):
            rows = principal(rows, count, seed)
    if last == "pca":
        return rows.astype(np.float32)
    step = f"{'UMAP' if last == 'umap' else 't-SNE'} of {len(rows)} rows"
    with telling(step, progress) as told:
        if last == "tsne":
            return _tsne(_single(rows, metric), metric, seed)
        epochs = _Epochs(step, progress, told.over.set) if progress else None
        return _umap(_single(rows, metric), metric, seed, epochs)


def check_metric(metric: str) -> None:
    """Raise InputError unless `metric` is one of METRICS."""
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}: use one of {', '.join(METRICS)}")


def principal(rows: F64, count: int, seed: int) -> F64:
    """Return the first `count` principal components (N, count) of rows (N, D); count <= min(N, D)."""
    pca = library("sklearn.decomposition").PCA(count, random_state=seed)
    # Of rows that are all the same, the share of variance is 0/0; nobody reads it.
    with np.errstate(invalid="ignore"):
        return np.asarray(pca.fit_transform(rows), np.float64)


def _single(rows: F64, metric: str) -> F32:
    """Return the rows as float32 in a range of which squares neither vanish nor overflow.

    A layout does not depend on where its rows lie nor on their unit, but t-SNE ends the process (SIGSEGV)
    where the rows' variance comes to 0 or infinity in float32.
    """
    if metric == "cosine":
        rows = unit(rows)
    else:
        rows = rows - np.median(rows, axis=0)
        rows /= np.abs(rows).max()
    single = rows.astype(np.float32)
    if (single == single[0]).all():
        raise InputError(f"vectors has {len(rows)} rows of one direction: use metric euclidean")
    return single


def _umap(rows: F32, metric: str, seed: int, epochs: "_Epochs | None") -> F32:
    layout = _umap_library().UMAP(
        n_neighbors=min(_UMAP_NEIGHBOURS, len(rows) - 1),
        min_dist=_UMAP_MIN_DIST,
        metric=metric,
        random_state=seed,
        n_jobs=1,  # what a seed leads to anyway, but then with a warning
        tqdm_kwds=epochs and epochs.bar,
    )
    return np.asarray(layout.fit_transform(rows), np.float32)


class _Epochs:
    """The file that the progress bar of UMAP's epochs writes to; every line of it is told."""

    def __init__(self, step: str, tell: Tell, begun: Callable[[], None]) -> None:
        self._step, self._tell, self._begun = step, tell, begun
        self.bar: dict[str, Any] = {
            "file": self,
            "disable": False,
            "mininterval": TELL_S,
            "maxinterval": TELL_S,
            "bar_format": "{n_fmt} of {total_fmt} epochs, {rate_fmt}, {remaining} left",
            "unit": " epochs",
        }

    def write(self, text: str) -> None:
        self._begun()
        if line := text.strip():
            self._tell(f"{self._step}: {line}")

    def flush(self) -> None:
        """Do nothing: every line is told as it is written."""


def _umap_library() -> Any:  # noqa: ANN401 - a module
    with warnings.catch_warnings():
        # Said of a variant of UMAP that is not used here.
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        return library("umap")


def _tsne(rows: F32, metric: str, seed: int) -> F32:
    layout = library("sklearn.manifold").TSNE(
        2, perplexity=min(_TSNE_PERPLEXITY, len(rows) - 1), metric=metric, random_state=seed
    )
    # More threads add up the gradient in an order of their own, and the points wander off.
    with library("threadpoolctl").threadpool_limits(1, user_api="openmp"):
        return np.asarray(layout.fit_transform(rows), np.float32)


def _check_rows(vectors: npt.ArrayLike, method: str, least: int) -> F64:
    rows = matrix(vectors)
    if len(rows) < least:
        raise InputError(f"vectors has {len(rows)} row(s): {method} needs at least {least}")
    if rows.shape[1] < 2:
        raise InputError("vectors has 1 column: at least 2 are needed, or draw the values as they are")
    if (rows == rows[0]).all():
        raise InputError(f"vectors has {len(rows)} rows that are all the same: there is nothing to lay out")
    return rows
