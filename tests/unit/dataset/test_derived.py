"""What is kept beside a dataset's vectors: used for these very vectors and rows, and for no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

from pixvec import InputError
from pixvec.dataset import _derived
from pixvec.dataset._rows import Row

RNG = np.random.default_rng(8)
TRUTH = np.repeat([0, 1], 20)
VECTORS = (np.eye(6)[TRUTH] + 0.01 * RNG.normal(size=(40, 6))).astype(np.float32)
ROWS = tuple(Row(f"{i}.png", f"/photos/{i}.png", "7-1", "m", label=str(TRUTH[i])) for i in range(40))


def test_an_analysis_is_kept_for_its_settings_only(tmp_path: Path) -> None:
    made = _derived.analysis(tmp_path, ROWS, VECTORS, k=3)
    written = (tmp_path / _derived.ANALYSIS).stat().st_mtime_ns
    again = _derived.analysis(tmp_path, ROWS, VECTORS, k=3)
    assert (tmp_path / _derived.ANALYSIS).stat().st_mtime_ns == written
    for name in _derived.Analysis.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert _derived.analysis(tmp_path, ROWS, VECTORS, k=4).neighbours.shape == (40, 4)


@pytest.mark.parametrize("change", [{"id": "new.png"}, {"stamp": "8-1"}, {"made": "n"}, {"label": "1"}])
def test_an_analysis_of_other_rows_is_not_shown(change: dict[str, str], tmp_path: Path) -> None:
    """As many rows are not the same rows: their neighbours would be those of images that are gone."""
    _derived.analysis(tmp_path, ROWS, VECTORS)
    assert _derived.kept_analysis(tmp_path, ROWS) is not None
    changed = (replace(ROWS[0], **change), *ROWS[1:])  # type: ignore[arg-type]
    assert _derived.kept_analysis(tmp_path, changed) is None
    _derived.analysis(tmp_path, changed, VECTORS)
    assert pq.read_table(tmp_path / _derived.ANALYSIS)["id"][0].as_py() == changed[0].id


def test_clusters_go_by_the_metric_of_the_analysis(tmp_path: Path) -> None:
    stretched = VECTORS * RNG.uniform(1, 500, size=(40, 1)).astype(np.float32)
    for clusters in (2, None):
        found = _derived.analysis(tmp_path, ROWS, stretched, metric="cosine", clusters=clusters)
        assert adjusted_rand_score(TRUTH, found.cluster) == 1.0


def test_a_map_that_was_cut_short_is_named_with_its_mend(tmp_path: Path) -> None:
    _derived.projection(tmp_path, VECTORS, "pca")
    [file] = (tmp_path / _derived.MAPS).glob("*.npz")
    whole = file.read_bytes()
    for length in (0, 3, 40, len(whole) - 30):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"pca-euclidean\.npz is damaged: delete it"):
            _derived.projection(tmp_path, VECTORS, "pca")


def test_an_analysis_that_is_none_is_named_with_its_mend(tmp_path: Path) -> None:
    _derived.analysis(tmp_path, ROWS, VECTORS)
    file = tmp_path / _derived.ANALYSIS
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["cluster"]), file)
    with pytest.raises(InputError, match=r"analysis\.parquet is damaged: delete it"):
        _derived.kept_analysis(tmp_path, ROWS)
    pq.write_table(table.replace_schema_metadata(None), file)
    with pytest.raises(InputError, match=r"analysis\.parquet is damaged: delete it"):
        _derived.kept_analysis(tmp_path, ROWS)
