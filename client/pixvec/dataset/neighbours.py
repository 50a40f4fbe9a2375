"""Which images lie next to which, and what follows from it: outliers, duplicates, wrong labels, clusters."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

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
    seeded,
    unit,
)
from .projections import COMPONENTS, check_metric, principal

F32: TypeAlias = npt.NDArray[np.float32]
Progress: TypeAlias = Callable[[int, int], object]

# On two cores 20,000 rows of 512 take 22 s exactly and 62 s by HNSW, which builds its index first; the
# two meet near here.
EXACT_ROWS = 50_000
# HNSW's recall of ten neighbours is 0.99 with these, on clustered vectors of 512.
_HNSW = {"connectivity": 16, "expansion_add": 128, "expansion_search": 128}
# HDBSCAN looks at all pairs in so many columns: 10,000 rows took it 20 s, 60,000 were not done after 13 min.
DENSE_ROWS = 10_000
_LEAST_CLUSTER, _CLUSTER_LINKS = 5, 20


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other rows of each row, nearest first.

    indices: (N, k), never the row itself. distances: (N, k); cosine: 1 - cosine, 0 to 2, and 1 where either
    vector is zero.
    """

    indices: Ints
    distances: F32


def nearest(
    vectors: npt.ArrayLike,
    k: int = 10,
    metric: str = "cosine",
    progress: Progress = lambda _done, _total: None,
) -> Neighbours:
    """Find the min(k, N - 1) nearest other rows of each row of vectors (N, D), ties by the lowest index.

    metric: "cosine" or "euclidean". Up to EXACT_ROWS rows the answer is exact, computed in blocks of 64 MiB;
    above, it is that of an HNSW graph (Malkov and Yashunin 2016), which misses a few neighbours and may
    miss others in the next run. progress: of the exact answer, is told how many rows are done, of how many.

    Raises InputError for fewer than 2 rows, a bad k or metric, values that are not finite, a missing package.
    """
    space = _space(vectors, metric)
    k = min(positive(k, "k"), len(space.rows) - 1)
    return _exact(space, k, progress) if len(space.rows) <= EXACT_ROWS else _approximate(space, k)


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


def clusters(
    vectors: npt.ArrayLike, count: int | None = None, seed: int = 0, metric: str = "euclidean"
) -> Ints:
    """Return the number of the cluster, from 0, of each row of vectors (N, D), (N,); -1: in none.

    count: how many, by mini-batch k-means (Sculley 2010), which leaves no row out; None: as many as HDBSCAN
    (Campello et al. 2013) finds, of 5 rows or more, in the first 64 principal components, for density says
    little in more. Above DENSE_ROWS rows HDBSCAN sees each row's 20 nearest only, as an HNSW graph finds
    them, and another run may draw a border elsewhere. metric: "euclidean" or "cosine", by which rows are
    first brought to length 1.

    Raises InputError for no rows, a bad count or one over N, a bad metric or seed, values that are not
    finite, a missing package.
    """
    check_metric(metric)
    rows, seed = matrix(vectors), seeded(seed)
    if metric == "cosine":
        rows = unit(rows)
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
    method = library("sklearn.cluster").HDBSCAN
    if len(rows) <= DENSE_ROWS:
        return np.asarray(method(_LEAST_CLUSTER, copy=True).fit_predict(reduced), np.int64)
    space = _space(reduced, "euclidean")
    links = _links(space, _approximate(space, _CLUSTER_LINKS))
    return np.asarray(method(_LEAST_CLUSTER, metric="precomputed", copy=False).fit_predict(links), np.int64)


def _links(space: "_Space", near: Neighbours) -> Any:  # noqa: ANN401 - scipy's
    """Return the distances between neighbours as a sparse, symmetric and connected (N, N)."""
    sparse, (rows, k) = library("scipy.sparse"), near.indices.shape
    longest = float(near.distances.max()) or 1.0
    # A length of 0 would be no link at all.
    lengths = np.maximum(near.distances.ravel().astype(np.float64), longest * 1e-9)
    ends = np.repeat(np.arange(rows), k), near.indices.ravel()
    one_way = sparse.csr_matrix((lengths, ends), shape=(rows, rows))
    part = library("scipy.sparse.csgraph").connected_components(one_way, directed=False)[1]
    # HDBSCAN wants one graph: what no neighbour links, the distance of their first rows does.
    first = np.unique(part, return_index=True)[1]
    apart = space.distances(first[:-1], first[1:, None])[:, 0]
    bridges = np.maximum(apart, longest * 1e-9), (first[:-1], first[1:])
    one_way += sparse.csr_matrix(bridges, shape=(rows, rows))
    return one_way.maximum(one_way.T)


@dataclass(frozen=True, eq=False)
class _Space:
    """Rows as a metric needs them: cosine, of length 1; euclidean, about their median, divided by `scale`."""

    rows: F64
    cosine: bool
    scale: float = 1.0

    @cached_property
    def _squares(self) -> F64:
        return np.asarray(np.einsum("nd,nd->n", self.rows, self.rows))

    def nearest(self, some: Ints, k: int) -> Ints:
        """Return the k nearest others (B, k) of rows (B,), nearest first, ties by the lowest index."""
        if not self.cosine:
            return self._shortest(some, k)
        scores = cosines(self.rows[some], self.rows)
        scores[np.arange(len(some)), some] = -np.inf
        return best(scores, k)

    def _shortest(self, some: Ints, k: int) -> Ints:
        """Measure those that may be among the k nearest by all that a product of matrices tells."""
        sums = self._squares[some, None] + self._squares
        squares = sums - 2 * self.rows[some] @ self.rows.T
        squares[np.arange(len(some)), some] = np.inf
        # As far as rounding can have led the products astray, which far from the median is farther than
        # two rows are apart.
        sums *= np.finfo(np.float64).eps * (self.rows.shape[1] + 2)
        farthest = np.partition(squares + sums, k - 1, axis=1)[:, k - 1, None]
        squares -= sums
        found = np.empty((len(some), k), np.int64)
        for place, row in enumerate(some):
            others = np.flatnonzero(squares[place] <= farthest[place])
            apart = self.distances(row[None], others[None])[0]
            found[place] = others[np.argsort(apart, kind="stable")[:k]]
        return found

    def distances(self, some: Ints, others: Ints) -> F64:
        """Return the distances (B, k) of rows (B,) to their own others (B, k)."""
        if self.cosine:
            products = np.einsum("bd,bkd->bk", self.rows[some], self.rows[others])
            return np.asarray(1 - np.round(products, DECIMALS))
        apart = np.linalg.norm(self.rows[some, None] - self.rows[others], axis=2)
        digits, power = np.frexp(apart)
        return np.asarray(np.ldexp(np.round(digits, DECIMALS), power) * self.scale)


def _space(vectors: npt.ArrayLike, metric: str) -> _Space:
    check_metric(metric)
    rows = matrix(vectors, least=2)
    if metric == "cosine":
        return _Space(unit(rows), cosine=True)
    # Not their mean, which one row that is far from all would take away from them.
    rows = rows - np.median(rows, axis=0)
    # A power of two, which divides without rounding.
    scale = float(np.ldexp(1.0, np.frexp(max(rows.max(), -rows.min()))[1]))
    rows /= scale
    return _Space(rows, cosine=False, scale=scale)


def _exact(space: _Space, k: int, progress: Progress) -> Neighbours:
    found = np.empty((len(space.rows), k), np.int64)
    for some in blocks(len(found), len(found)):
        found[some] = space.nearest(some, k)
        progress(int(some[-1]) + 1, len(found))
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
        found[short[part], 1:] = space.nearest(short[part], k)
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
            # Zero is added for -0.0, which is equal and has other bytes.
            groups.setdefault(hashlib.sha256(row + 0.0).digest(), []).append(number)
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
