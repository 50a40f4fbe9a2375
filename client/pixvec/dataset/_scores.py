"""What layouts, neighbours and evaluation share: checked input, blocks of cosines, the k best."""

from collections.abc import Hashable, Iterator, Sequence
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pixvec._errors import InputError

F64: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Labels: TypeAlias = Sequence[str | int | None] | npt.NDArray[Any]

NO_LABEL = -1
# Similarities are rounded here: far above the noise of a matrix product, so that equal rows tie exactly
# wherever they lie in it, and far below what tells two images apart.
DECIMALS = 12
# Squares of larger values overflow float32, which the layouts compute in.
_LARGEST = 1e15
_BLOCK_VALUES = 1 << 23


class ShapeMismatchError(InputError, ValueError):
    """Two arrays that must have the same rows do not."""


def library(module: str) -> Any:  # noqa: ANN401 - a module
    """Import what the `dataset` extra brings when it is used, for it loads slowly; InputError if missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{package} cannot be loaded ({error}): pip install 'pixvec[dataset]'") from error


def matrix(vectors: npt.ArrayLike, *, field: str = "vectors", least: int = 1) -> F64:
    """Return the vectors as float64 of shape (N, D), N >= `least`, D >= 1.

    Raises InputError for another shape, fewer rows, and values that are no number, not finite or over 1e15.
    """
    try:
        given = np.asarray(vectors)
        # numpy would parse texts, and cut complex numbers; of objects it looks at each.
        casting: Literal["same_kind", "unsafe"] = "unsafe" if given.dtype == object else "same_kind"
        rows = given.astype(np.float64, casting=casting, copy=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{field} is no array of numbers ({error}): pass float of shape (N, D)") from error
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise InputError(f"{field} has shape {rows.shape}: pass (N, D), one row for each image")
    if len(rows) < least:
        raise InputError(f"{field} has {len(rows)} row(s): at least {least} are needed")
    # Written so that NaN fails it.
    good = (np.abs(rows) <= _LARGEST).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        raise InputError(f"{field}[{first}] holds NaN, infinity or a value over 1e15: leave the row out")
    return rows


def positive(value: int, field: str) -> int:
    """Return `value`, a count of 1 or more; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{field} is {value!r}: pass a whole number of 1 or more")
    return int(value)


def seeded(seed: int) -> int:
    """Return `seed`, which every library here takes; InputError otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 32:
        raise InputError(f"seed is {seed!r}: pass a whole number from 0 to {(1 << 32) - 1}")
    return int(seed)


def unit(rows: F64) -> F64:
    """Scale rows to Euclidean length 1; a zero row stays zero, so that its cosine with any other is 0."""
    peaks = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True))
    # By a power of two, which is exact: the squares of very small values would be zero.
    scaled: F64 = np.ldexp(rows, -np.frexp(peaks)[1])
    lengths = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))[:, None]
    scaled /= np.where(lengths == 0, 1, lengths)
    return scaled


def cosines(some: F64, units: F64) -> F64:
    """Return the cosines (B, N) of unit rows (B, D) with unit rows (N, D)."""
    products: F64 = np.round(some @ units.T, DECIMALS)
    return products


def blocks(rows: int, values: int) -> Iterator[Ints]:
    """Yield 0..rows-1 in runs so short that `values` float64 a row fill 64 MiB at most."""
    step = max(1, _BLOCK_VALUES // max(1, values))
    for start in range(0, rows, step):
        yield np.arange(start, min(start + step, rows))


def cosines_to_others(units: F64) -> Iterator[tuple[Ints, F64]]:
    """Yield runs of row indices (B,) with their cosines (B, N) to all rows: -inf with themselves."""
    for rows in blocks(len(units), len(units)):
        scores = cosines(units[rows], units)
        scores[np.arange(len(rows)), rows] = -np.inf
        yield rows, scores


def best(scores: F64, k: int) -> Ints:
    """Return the columns (B, k) of each row's k greatest scores, greatest first, ties by the lowest."""
    if k == 0:
        return np.empty((len(scores), 0), np.int64)
    picked = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    least = np.take_along_axis(scores, picked, axis=1).min(axis=1, keepdims=True)
    # Where the last place is shared, the partition chose among the equal ones at random.
    for row in np.flatnonzero((scores >= least).sum(axis=1) > k):
        picked[row] = np.argsort(-scores[row], kind="stable")[:k]
    order = np.lexsort((picked, -np.take_along_axis(scores, picked, axis=1)), axis=1)
    return np.take_along_axis(picked, order, axis=1)


def codes(labels: Labels, rows: int) -> Ints:
    """Return the labels (N,) as numbers from 0 in order of appearance; None, NaN and "" are NO_LABEL.

    Raises ShapeMismatchError unless there is one label for each of the rows, InputError for one that is
    neither text nor a number.
    """
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise ShapeMismatchError(f"labels has shape {labels.shape}: pass (N,), one for each vector")
    listed = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if len(listed) != rows:
        raise ShapeMismatchError(f"labels has {len(listed)} entries for {rows} vectors: pass one for each")
    for i, label in enumerate(listed):
        if not isinstance(label, Hashable):
            raise InputError(f"labels[{i}] is {label!r}: pass text or a number")
    numbers: dict[Any, int] = {}
    return np.array(
        [NO_LABEL if _missing(label) else numbers.setdefault(label, len(numbers)) for label in listed],
        np.int64,
    )


def _missing(label: str | float | None) -> bool:
    return label is None or label == "" or (isinstance(label, (float, np.floating)) and bool(np.isnan(label)))
