"""How near two sets of vectors are, in the words of people who search with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """Cosines of pairs; the share of each query's 10 nearest, and of its nearest, that both sets name."""

    mean: float
    least: float
    overlap_at_10: float
    same_nearest: float

    def __str__(self) -> str:
        """Return a row of figures."""
        return (
            f"cosine mean {self.mean:.6f}  min {self.least:.6f}  "
            f"overlap@10 {self.overlap_at_10:.3f}  same nearest {self.same_nearest:.3f}"
        )


def agreement(reference: Any, other: Any) -> Agreement:
    """Compare (n, d) against (n, d), row by row and by neighbourhood."""
    a, b = _unit(reference), _unit(other)
    cosines = (a * b).sum(1)
    near_a, near_b = _neighbours(a), _neighbours(b)
    k = min(10, len(a) - 1)
    overlaps = [len(set(p[:k]) & set(q[:k])) / k for p, q in zip(near_a, near_b, strict=True)]
    return Agreement(
        mean=float(cosines.mean()),
        least=float(cosines.min()),
        overlap_at_10=float(np.mean(overlaps)),
        same_nearest=float((near_a[:, 0] == near_b[:, 0]).mean()),
    )


def _unit(rows: Any) -> NDArray[np.float64]:
    wide = np.asarray(rows, np.float64).reshape(len(rows), -1)
    scaled: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return scaled


def _neighbours(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    scores = rows @ rows.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")
