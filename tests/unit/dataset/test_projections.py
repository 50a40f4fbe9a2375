"""Layouts: what they keep, the same seed twice, few rows, and what cannot be laid out."""

import queue
import re
import subprocess
import sys
import threading
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from support.waiting import until

from pixvec._errors import InputError
from pixvec.dataset import _telling, projections
from pixvec.dataset.projections import METHODS, project

# numba compiles UMAP once in each process.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
DIGITS: npt.NDArray[np.float64] = load_digits().data[:120]
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def umap_points() -> npt.NDArray[np.float32]:
    """Made once, outside any test's time limit: UMAP compiles itself when it is first used."""
    return project(DIGITS, "umap", seed=3)


def test_importing_the_modules_loads_no_heavy_package() -> None:
    code = (
        "import sys; from pixvec.dataset import evaluation, neighbours, projections;"
        "print({'sklearn', 'scipy', 'umap', 'usearch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_pca_is_the_eigenvectors_of_the_covariance_up_to_sign() -> None:
    points = project(DIGITS, "pca")
    centred = DIGITS - DIGITS.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, [-1, -2]]
    assert points.dtype == np.float32
    assert points.shape == (120, 2)
    assert np.abs(points) == pytest.approx(np.abs(centred @ directions), abs=1e-4)


def test_pca_ignores_the_metric() -> None:
    assert (project(DIGITS, "pca", "cosine") == project(DIGITS, "pca", "euclidean")).all()


@pytest.mark.parametrize(
    ("method", "metric"), [("tsne", "euclidean"), ("tsne", "cosine"), ("pca-tsne", "euclidean")]
)
def test_tsne_keeps_neighbourhoods_and_repeats_with_its_seed(method: str, metric: str) -> None:
    points = project(DIGITS, method, metric, seed=1)
    assert trustworthiness(DIGITS, points, metric=metric) > 0.9
    assert (project(DIGITS, method, metric, seed=1) == points).all()


def test_umap_keeps_neighbourhoods_and_repeats_with_its_seed(umap_points: npt.NDArray[np.float32]) -> None:
    assert umap_points.dtype == np.float32
    assert trustworthiness(DIGITS, umap_points) > 0.9
    assert (project(DIGITS, "umap", seed=3) == umap_points).all()
    assert not (project(DIGITS, "umap", seed=4) == umap_points).all()


@pytest.mark.usefixtures("umap_points")
def test_umap_by_cosine_does_not_see_the_lengths() -> None:
    lengths = 2.0 ** RNG.integers(-3, 4, size=(len(DIGITS), 1))
    points = project(DIGITS * lengths, "umap", "cosine")
    assert trustworthiness(DIGITS, points, metric="cosine") > 0.9
    assert trustworthiness(DIGITS, project(DIGITS * lengths, "umap"), metric="cosine") < 0.9


@pytest.mark.usefixtures("umap_points")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [4, 5, 17])
def test_few_rows_lay_out_without_a_warning(method: str, rows: int) -> None:
    points = project(RNG.normal(size=(rows, 8)), method)
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()


@pytest.mark.usefixtures("umap_points")
@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_a_layout_depends_neither_on_the_unit_nor_on_the_origin(method: str) -> None:
    """In float32 the squares of such values vanish, or all rows are one: t-SNE then ended the process."""
    for vectors in (DIGITS * 2.0**-100, DIGITS * 2.0**40, DIGITS + 2.0**30):
        points = project(vectors, method)
        assert trustworthiness(DIGITS, points) > 0.9


@pytest.mark.parametrize("method", ["umap", "tsne", "pca-tsne"])
def test_by_cosine_rows_of_one_direction_are_refused(method: str) -> None:
    rays = np.outer(2.0 ** np.arange(9), [3.0, 4.0, 0.0])
    if method == "pca-tsne":
        assert np.isfinite(project(rays, method, "cosine")).all()
        return
    with pytest.raises(InputError, match="9 rows of one direction: use metric euclidean"):
        project(rays, method, "cosine")


@pytest.mark.usefixtures("umap_points")
def test_a_layout_by_way_of_pca_is_that_of_64_components(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = RNG.normal(size=(90, 100))
    components = PCA(64, random_state=0).fit_transform(wide)
    for method in ("umap", "tsne"):
        assert project(wide, f"pca-{method}") == pytest.approx(project(components, method), abs=1e-3)
    seen: list[int] = []

    def principal(rows: npt.NDArray[Any], count: int, seed: int) -> npt.NDArray[Any]:
        seen.append(count)
        return rows[:, :count]

    monkeypatch.setattr(projections, "principal", principal)
    for rows, columns in ((90, 100), (20, 100), (90, 7)):
        project(RNG.normal(size=(rows, columns)), "pca-tsne")
    assert seen == [64, 20, 7]


@pytest.mark.usefixtures("umap_points")
def test_progress_tells_each_step() -> None:
    said: list[str] = []
    project(DIGITS, "pca-umap", progress=said.append)
    first, second, *epochs, last = [line for line in said if not line.endswith("so far")]
    assert (first, second) == ("PCA of 120 rows from 64 to 64 columns", "UMAP of 120 rows")
    assert epochs[0].startswith("UMAP of 120 rows: 0 of 500 epochs")
    assert re.fullmatch(r"UMAP of 120 rows: 500 of 500 epochs, [\d.]+ epochs/s, 00:00 left", last)


def test_a_step_that_does_not_say_how_far_it_is_says_how_long_it_has_been_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_telling, "TELL_S", 0.001)
    said, twice = queue.SimpleQueue[str](), [re.compile(r"t-SNE of 9 rows: \d+ s so far")] * 2
    with _telling.telling("t-SNE of 9 rows", said.put) as step:
        assert said.get(timeout=20) == "t-SNE of 9 rows"
        for line in twice:
            assert line.fullmatch(said.get(timeout=20))
        step.at(3, 9)
        until(lambda: re.fullmatch(r"t-SNE of 9 rows: 3 of 9, \d+/s, \d+ s left", said.get(timeout=20)))
    running = {thread.name for thread in threading.enumerate() if "watch" in thread.name}
    assert not running


@pytest.mark.usefixtures("umap_points")
def test_umaps_other_warnings_are_heard() -> None:
    corners = RNG.choice([-100.0, 100.0], size=(8, 2000)).repeat(20, axis=0)
    far_apart = corners + RNG.normal(size=corners.shape)
    with pytest.warns(UserWarning, match="not fully connected"):
        project(far_apart, "umap")


@pytest.mark.parametrize(
    ("vectors", "method", "message"),
    [
        (np.ones((3, 4)) * [[1], [2], [3]], "umap", "vectors has 3 row.s.: umap needs at least 4"),
        (np.ones((3, 4)) * [[1], [2], [3]], "pca-tsne", "3 row.s.: pca-tsne needs at least 4"),
        (np.ones((1, 4)), "pca", "1 row.s.: pca needs at least 2"),
        (np.ones((9, 4)), "tsne", "9 rows that are all the same"),
        (np.arange(9.0)[:, None], "pca", "vectors has 1 column: at least 2 are needed"),
        (np.ones(9), "pca", r"shape \(9,\): pass \(N, D\)"),
        (np.array([[1, 2], [3, np.nan]]), "pca", r"vectors\[1\] holds NaN.*leave the row out"),
        (np.array([[1, 2], [3, -np.inf]]), "pca", r"vectors\[1\] holds NaN, infinity"),
        (np.array([[1, 1e16], [3, 4]]), "pca", r"vectors\[0\] holds"),
        ([["a", "b"]], "pca", "vectors is no array of numbers"),
        (DIGITS, "lda", "method is 'lda': use one of umap, pca, tsne, pca-umap, pca-tsne"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(vectors: npt.ArrayLike, method: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        project(vectors, method)


def test_a_wrong_metric_or_seed_is_refused() -> None:
    with pytest.raises(InputError, match="metric is 'dot': use one of euclidean, cosine"):
        project(DIGITS, "pca", "dot")
    for seed in (-1, 1 << 32, 0.5, True):
        with pytest.raises(InputError, match=rf"seed is {seed}: pass a whole number from 0"):
            project(DIGITS, "pca", seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "module"), [("umap", "umap"), ("pca", "sklearn.decomposition"), ("tsne", "sklearn.manifold")]
)
def test_a_missing_package_is_named_with_its_mend(
    method: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module.partition('.')[0]} .*pip install 'pixvec\[dataset\]'"):
        project(DIGITS, method)


@pytest.mark.usefixtures("umap_points")
def test_the_warning_filters_are_left_as_they_were() -> None:
    before = list(warnings.filters)
    project(DIGITS[:10], "umap")
    assert list(warnings.filters) == before
