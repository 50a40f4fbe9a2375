"""Which images lie next to which, and what follows from it: outliers, duplicates, wrong labels, clusters."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pixvec._errors import InputError

from ._scores import (
    DECIMALS,
    F64,
    NO_LABEL,
    Ints,
    Labels,
    best,
    blocks,
    codes,
    cosines,
    library,
    matrix,
    positive,
    unit,
)
from .projections import COMPONENTS, METRICS, principal

F32: TypeAlias = npt.NDArray[np.float32]

# On two cores 20,000 rows of 512 take 22 s exactly and 62 s by HNSW, which builds its index first; the
# two meet near here.
EXACT_ROWS = 50_000
# HNSW's recall of ten neighbours is 0.99 with these, on clustered vectors of 512.
_HNSW = {"connectivity": 16, "expansion_add": 128, "expansion_search": 128}
_LEAST_CLUSTER = 5


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other rows of each row, nearest first.

    indices: (N, k), never the row itself. distances: (N, k); cosine: 1 - cosine, 0 to 2, and 1 where either
    vector is zero.
    """

    indices: Ints
    distances: F32


def nearest(vectors: npt.ArrayLike, k: int = 10, metric: str = "cosine") -> Neighbours:
    """Find the min(k, N - 1) nearest other rows of each row of vectors (N, D), ties by the lowest index.

    metric: "cosine" or "euclidean". Up to EXACT_ROWS rows the answer is exact, computed in blocks of 64 MiB;
    above, it is that of an HNSW graph (Malkov and Yashunin 2016), which misses a few neighbours and may
    miss others in the next run.

    Raises InputError for fewer than 2 rows, a bad k or metric, values that are not finite, a missing package.
    """
    space = _space(vectors, metric)
    k = min(positive(k, "k"), len(space.rows) - 1)
    return _exact(space, k) if len(space.rows) <= EXACT_ROWS else _approximate(space, k)


def outlier_scores(neighbours: Neighbours) -> F64:
    """Return each row's mean distance to its neighbours, (N,): the greater, the more alone."""
    return np.asarray(neighbours.distances.mean(axis=1, dtype=np.float64))


def near_duplicates(neighbours: Neighbours, threshold: float) -> list[list[int]]:
    """Group the rows that a chain of neighbours at most `threshold` apart links, in order of their first row.

    threshold: a distance of the neighbours' metric. Rows without such a neighbour are in no group. A group
    of more than k rows may come in parts, unless its rows are equal: only k links are known of each row.

    Raises InputError for a threshold below 0 and a missing package.
    """
    if not threshold >= 0:
        raise InputError(f"threshold is {threshold!r}: pass a distance of 0 or more")
    graphs, rows = library("scipy.sparse"), len(neighbours.indices)
    start, place = np.nonzero(neighbours.distances <= threshold)
    links = (np.ones(len(start), np.int8), (start, neighbours.indices[start, place]))
    count, group = library("scipy.sparse.csgraph").connected_components(
        graphs.coo_array(links, shape=(rows, rows)), directed=False
    )
    members: list[list[int]] = [[] for _ in range(count)]
    for row, number in enumerate(group):
        members[number].append(row)
    return sorted(found for found in members if len(found) > 1)


def label_noise(neighbours: Neighbours, labels: Labels) -> F64:
    """Return the share of each row's labelled neighbours that have another label than it, (N,).

    NaN: the row has no label (None, NaN or ""), or none of its neighbours has one.
    Raises ShapeMismatchError, which is an InputError and a ValueError, unless there is one label a row.
    """
    own = codes(labels, len(neighbours.indices))
    near = own[neighbours.indices]
    labelled = near != NO_LABEL
    others = (labelled & (near != own[:, None])).sum(axis=1)
    known = labelled.sum(axis=1)
    shares = others / np.maximum(known, 1)
    return np.where((known == 0) | (own == NO_LABEL), np.nan, shares)


def clusters(vectors: npt.ArrayLike, count: int | None = None, seed: int = 0) -> Ints:
    """Return the number of the cluster, from 0, of each row of vectors (N, D), (N,); -1: in none.

    count: how many, by mini-batch k-means (Sculley 2010), which leaves no row out; None: as many as HDBSCAN
    (Campello et al. 2013) finds, of 5 rows or more, in the first 64 principal components, for density says
    little in more. Distances are euclidean: pass vectors of length 1 to go by cosine.

    Raises InputError for no rows, a bad count or one over N, values that are not finite, a missing package.
    """
    rows = matrix(vectors)
    if count is None:
        return _dense(rows, seed)
    if positive(count, "count") > len(rows):
        raise InputError(f"count is {count}, of {len(rows)} row(s): ask for as many clusters at most")
    means = library("sklearn.cluster").MiniBatchKMeans(count, random_state=seed, n_init="auto")
    return np.asarray(means.fit_predict(rows), np.int64)


def _dense(rows: F64, seed: int) -> Ints:
    if len(rows) < _LEAST_CLUSTER:
        return np.full(len(rows), -1, np.int64)
    components = min(COMPONENTS, len(rows))
    reduced = rows if rows.shape[1] <= components else principal(rows, components, seed)
    method = library("sklearn.cluster").HDBSCAN(min_cluster_size=_LEAST_CLUSTER, copy=True)
    return np.asarray(method.fit_predict(reduced), np.int64)


@dataclass(frozen=True, eq=False)
class _Space:
    """Rows as a metric needs them: cosine, of length 1; euclidean, about their mean, divided by `scale`."""

    rows: F64
    cosine: bool
    scale: float = 1.0

    @cached_property
    def _squares(self) -> F64:
        return np.asarray(np.square(self.rows).sum(axis=1))

    def closeness(self, some: Ints) -> F64:
        """Return (B, N), greater where nearer, -inf with itself."""
        if self.cosine:
            scores = cosines(self.rows[some], self.rows)
        else:
            apart = self._squares[some, None] + self._squares - 2 * self.rows[some] @ self.rows.T
            scores = -np.round(apart, DECIMALS)
        scores[np.arange(len(some)), some] = -np.inf
        return scores

    def distances(self, some: Ints, others: Ints) -> F64:
        """Return the distances (B, k) of rows (B,) to their own others (B, k)."""
        if self.cosine:
            products = np.einsum("bd,bkd->bk", self.rows[some], self.rows[others])
            return np.asarray(1 - np.round(products, DECIMALS))
        apart = np.linalg.norm(self.rows[some, None] - self.rows[others], axis=2)
        return np.asarray(np.round(apart, DECIMALS) * self.scale)


def _space(vectors: npt.ArrayLike, metric: str) -> _Space:
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}: use one of {', '.join(METRICS)}")
    rows = matrix(vectors, least=2)
    if metric == "cosine":
        return _Space(unit(rows), cosine=True)
    rows = rows - rows.mean(axis=0)
    scale = float(np.linalg.norm(rows, axis=1).max()) or 1.0
    return _Space(rows / scale, cosine=False, scale=scale)


def _exact(space: _Space, k: int) -> Neighbours:
    found = np.empty((len(space.rows), k), np.int64)
    for some in blocks(len(found), len(found)):
        found[some] = best(space.closeness(some), k)
    return _ranked(space, found)


def _approximate(space: _Space, k: int) -> Neighbours:
    rows = space.rows.astype(np.float32)
    keys = np.arange(len(rows))
    metric = "cos" if space.cosine else "l2sq"
    index = library("usearch.index").Index(ndim=rows.shape[1], metric=metric, dtype="f32", **_HNSW)
    index.add(keys, rows)
    matches = index.search(rows, k + 1)
    found = np.asarray(matches.keys).astype(np.int64)
    short = np.flatnonzero(np.asarray(matches.counts) <= k)
    found[short, 0] = short
    for part in blocks(len(short), len(rows)):
        found[short[part], 1:] = best(space.closeness(short[part]), k)
    own = found == keys[:, None]
    # A row of which the graph found others only: the farthest goes in its place.
    own[~own.any(axis=1), -1] = True
    return _ranked(space, _with_equals(space, found[~own].reshape(len(rows), k)))


def _with_equals(space: _Space, found: Ints) -> Ints:
    """Name the same neighbours for all equal rows, the first ones, where there are more than k of them.

    The graph names any of them, which would split a group of duplicates.
    """
    k, groups = found.shape[1], dict[bytes, list[int]]()
    for number, row in enumerate(space.rows):
        # Zero vectors are at cosine distance 1 even from each other.
        if row.any() or not space.cosine:
            groups.setdefault(row.tobytes(), []).append(number)
    for group in groups.values():
        for row in group if len(group) > k else ():
            found[row] = [other for other in group[: k + 1] if other != row][:k]
    return found


def _ranked(space: _Space, found: Ints) -> Neighbours:
    distances = np.empty(found.shape, np.float32)
    for some in blocks(len(found), found.shape[1] * space.rows.shape[1]):
        measured = space.distances(some, found[some])
        order = np.lexsort((found[some], measured), axis=1)
        found[some] = np.take_along_axis(found[some], order, axis=1)
        distances[some] = np.take_along_axis(measured, order, axis=1)
    return Neighbours(found, distances)
