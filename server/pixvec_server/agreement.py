"""How far two ways of making the same vectors agree: row by row, and as neighbours of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pixvec_server.types import F32

Floats: TypeAlias = NDArray[np.float64]


def cosines(ours: F32, theirs: F32) -> Floats:
    """Return the cosine of each row with its counterpart (n,); rows are flattened."""
    a, b = _rows(ours), _rows(theirs)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: Floats = (a * b).sum(1) / np.where(lengths == 0, 1.0, lengths)
    return found


def relative_error(ours: F32, theirs: F32) -> float:
    """Return |ours - theirs| / |theirs - their mean|, Frobenius norms over all rows.

    What all rows share counts for nothing: an untrained network gives nearly the same vector for every
    picture, so that plain cosines are all 1 whatever is wrong.
    """
    a, b = _rows(ours), _rows(theirs)
    spread = float(np.linalg.norm(b - b.mean(0)))
    difference = float(np.linalg.norm(a - b))
    return difference / spread if spread else (0.0 if difference == 0 else float("inf"))


def overlap(ours: F32, theirs: F32, k: int = 10) -> float:
    """Return the mean share of each row's `k` nearest rows, by cosine, that both ways agree on."""
    k = min(k, len(ours) - 1)
    if k < 1:
        return 1.0
    near, same = _nearest(ours, k), _nearest(theirs, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(near, same, strict=True)]))


def same_nearest(ours: F32, theirs: F32) -> float:
    """Return the share of rows whose nearest other row, by cosine, is the same both ways."""
    return overlap(ours, theirs, 1)


def _nearest(rows: F32, k: int) -> NDArray[np.intp]:
    wide = _rows(rows)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(lengths == 0, 1.0, lengths)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    found: NDArray[np.intp] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return found


def _rows(values: F32) -> Floats:
    return values.reshape(len(values), -1).astype(np.float64)
