"""Arrays that know where they come from."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pixvec import Origin, Vectors

ORIGIN = Origin("hash", "space-1", "build-1", normalized=True)


def vectors() -> Vectors:
    return Vectors.of(np.arange(6, dtype=np.float32).reshape(2, 3), ORIGIN)


def test_views_keep_the_origin() -> None:
    made = vectors()
    views: list[Any] = [made[0], made[:1], made.reshape(3, 2), made.T, made[[1, 0]], made.copy()]
    for view in views:
        assert view.origin == ORIGIN
    assert made.base is not None


def test_numbers_computed_from_vectors_are_no_vectors() -> None:
    made = vectors()
    for computed in (made * 2, made + made, -made, np.sqrt(made), made @ made.T, made > 1):
        assert type(computed) is np.ndarray
    assert isinstance(made.sum(), np.float32)
    np.testing.assert_array_equal(made * 2, np.arange(6).reshape(2, 3) * 2)


def test_copies_through_pickle_keep_it() -> None:
    for again in (pickle.loads(pickle.dumps(vectors())), copy.deepcopy(vectors())):
        assert again.origin == ORIGIN
        np.testing.assert_array_equal(again, vectors())


def test_files_hold_plain_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors())
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), vectors())
