"""What is made of a dataset's vectors, kept beside them and reused as long as they are the same."""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixvec._errors import InputError
from pixvec._types import Array
from pixvec.dataset import neighbours, projections
from pixvec.dataset._rows import Row
from pixvec.dataset._telling import Tell, telling

_MOST = 0.5
MAPS, ANALYSIS = "projections", "analysis.parquet"


@dataclass(frozen=True, slots=True)
class Analysis:
    """What each row's neighbourhood says of it; all arrays have N rows.

    neighbours, distances: (N, k), nearest first. outlier: mean distance to the k nearest. label_noise: share
    of the k nearest that are of another class; NaN without classes. duplicate: number of the group of near
    copies that a row belongs to, cluster: of its cluster; -1: of none.
    """

    neighbours: Array
    distances: Array
    outlier: Array
    label_noise: Array
    duplicate: Array
    cluster: Array


def fingerprint(vectors: Array, *more: object) -> str:
    """Name vectors, and what else decides what is made of them."""
    hashed = hashlib.sha256(np.ascontiguousarray(vectors).data)
    hashed.update(repr((vectors.shape, more)).encode())
    return hashed.hexdigest()


def projection(
    folder: Path,
    vectors: Array,
    method: str = "umap",
    metric: str = "euclidean",
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Array:
    """Return the map (N, 2) float32 of these vectors, from the dataset's folder where it is there already."""
    of, file = fingerprint(vectors, seed), folder / MAPS / f"{method}-{metric}.npz"
    kept = _load(file, of)
    if kept is None:
        kept = {"xy": projections.project(vectors, method, metric, seed, progress)}
        file.parent.mkdir(exist_ok=True)
        _save(file, of, kept)
    xy: Array = kept["xy"]
    return xy


def kept_projections(folder: Path, vectors: Array, seed: int = 0) -> dict[tuple[str, str], Array]:
    """Return the maps of these vectors that are there, by method and metric."""
    of, found = fingerprint(vectors, seed), {}
    for file in sorted((folder / MAPS).glob("*.npz")):
        method, _, metric = file.stem.rpartition("-")
        if (kept := _load(file, of)) is not None:
            found[method, metric] = kept["xy"]
    return found


def analysis(
    folder: Path,
    rows: Sequence[Row],
    vectors: Array,
    *,
    k: int = 10,
    metric: str = "cosine",
    duplicates_below: float = 0.02,
    clusters: int | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> Analysis:
    """Return the analysis of these rows, from the dataset's folder where it is there already.

    metric: of neighbours and clusters. duplicates_below: rows no farther apart are near copies. clusters: how
    many; None: as many as there are dense places. progress: is told what begins, and every 5 seconds, from
    another thread, how far it is. Raises InputError.
    """
    labels = [row.label for row in rows]
    of = fingerprint(vectors, _names(rows), k, metric, duplicates_below, clusters, seed)
    kept = _read(folder / ANALYSIS, "of", of)
    if kept is None:
        with telling(f"neighbours of {len(rows)} rows", progress) as step:
            near = neighbours.nearest(vectors, k, metric, step.at)
        with telling(f"clusters of {len(rows)} rows", progress):
            cluster = neighbours.clusters(vectors, clusters, seed, metric)
        kept = Analysis(
            neighbours=near.indices,
            distances=near.distances,
            outlier=neighbours.outlier_scores(near),
            label_noise=neighbours.label_noise(near, labels),
            duplicate=_numbered(neighbours.near_duplicates(near, duplicates_below), len(rows)),
            cluster=cluster,
        )
        _write(folder / ANALYSIS, of, rows, kept)
    return kept


def kept_analysis(folder: Path, rows: Sequence[Row]) -> Analysis | None:
    """Return the latest analysis, whatever its settings were; None when it is not of these very rows."""
    return _read(folder / ANALYSIS, "rows", _names(rows))


def summary(rows: Sequence[Row], found: Analysis, show: int = 10) -> dict[str, Any]:
    """Return what an analysis comes to, for JSON: counts, and the first rows of each list, worst first.

    doubtful_labels: rows of which most neighbours are of another class. near_copies: groups, largest first.
    """
    doubtful = np.where(np.nan_to_num(found.label_noise) > _MOST, found.label_noise, -np.inf)
    return {
        "rows": len(rows),
        "outliers": _worst(rows, found.outlier, show),
        "doubtful_labels": _worst(rows, doubtful, show),
        "doubtful": int(np.isfinite(doubtful).sum()),
        "near_copies": _copies(rows, found.duplicate, show),
        "duplicate_groups": int(found.duplicate.max(initial=-1)) + 1,
        "duplicates": int((found.duplicate >= 0).sum()),
        "clusters": int(found.cluster.max(initial=-1)) + 1,
        "unclustered": int((found.cluster < 0).sum()),
    }


def _worst(rows: Sequence[Row], scores: Array, show: int) -> list[dict[str, Any]]:
    order = [i for i in np.argsort(-scores, kind="stable")[:show].tolist() if np.isfinite(scores[i])]
    return [
        {"id": rows[i].id, "object": rows[i].object, "class": rows[i].label, "score": float(scores[i])}
        for i in order
    ]


def _copies(rows: Sequence[Row], groups: Array, show: int) -> list[list[dict[str, Any]]]:
    numbers, sizes = np.unique(groups[groups >= 0], return_counts=True)
    largest = numbers[np.argsort(-sizes, kind="stable")[:show]]
    return [
        [{"id": rows[i].id, "object": rows[i].object} for i in np.flatnonzero(groups == number).tolist()]
        for number in largest
    ]


def _numbered(groups: Sequence[Sequence[int]], count: int) -> Array:
    numbers = np.full(count, -1, np.int64)
    for number, group in enumerate(groups):
        numbers[list(group)] = number
    return numbers


def _names(rows: Sequence[Row]) -> str:
    """Name rows, by all that decides what is known of them beside their vectors' last digits."""
    told = [(row.key, row.stamp, row.made, row.build, row.label) for row in rows]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _read(file: Path, name: str, value: str) -> Analysis | None:
    """Return the analysis that is kept if the file says that it is of this; None otherwise."""
    if not file.exists():
        return None
    try:
        table = pq.read_table(file, columns=list(Analysis.__dataclass_fields__))
        if table.schema.metadata.get(name.encode()) != value.encode():
            return None
        return Analysis(**{name: _array(table.column(name).combine_chunks()) for name in table.column_names})
    except (pa.ArrowException, OSError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is damaged: delete it, and it is made anew ({error})") from error


def _array(column: Any) -> Array:  # noqa: ANN401 - pyarrow ships no types
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column)
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


def _write(file: Path, of: str, rows: Sequence[Row], made: Analysis) -> None:
    """Write a column for each thing that is known of a row, beside the row's own name."""
    size = made.neighbours.shape[1]
    columns = {
        "id": [row.id for row in rows],
        "object": pa.array([row.object for row in rows], pa.string()),
        "class": pa.array([row.label for row in rows], pa.string()),
    }
    for name in Analysis.__dataclass_fields__:
        values = getattr(made, name)
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        columns[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    draft = file.with_name(f"{file.name}.tmp")
    pq.write_table(pa.table(columns).replace_schema_metadata({"of": of, "rows": _names(rows)}), draft)
    draft.replace(file)


def _load(file: Path, of: str) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
            kept = {name: held[name] for name in held.files}
        made_of = str(kept.pop("of"))
    except (ValueError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is damaged: delete it, and it is made anew ({error})") from error
    return kept if of == made_of else None


def _save(file: Path, of: str, kept: dict[str, Any]) -> None:
    draft = file.with_name(f"{file.name}.tmp")
    with draft.open("wb") as written:
        np.savez(written, of=of, **kept)
    draft.replace(file)
