"""A whole dataset: embed it once, keep it fresh, see what is in it, judge the model.

>>> from pixvec import Client, dataset
>>> with Client("localhost:50051") as client:                       # doctest: +SKIP
...     counts = dataset.embed("photos/", "photos.pixvec", client)
>>> photos = dataset.read("photos.pixvec")                          # doctest: +SKIP
>>> photos.vectors.shape, photos.labels[:2]                         # doctest: +SKIP
((1284, 1280), ['cat', 'dog'])

Needs `pip install 'pixvec[dataset]'`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixvec._client import Client
from pixvec._errors import InputError
from pixvec._omissions import LeftOut
from pixvec._types import Array
from pixvec.dataset import _derived, evaluation, exports
from pixvec.dataset._derived import Analysis, summary
from pixvec.dataset._embed import Counts, EmbedRun, EmbedSettings
from pixvec.dataset._pictures import Annotation, Picture, Source, SourceOptions
from pixvec.dataset._rows import Row
from pixvec.dataset._server import local_server
from pixvec.dataset._store import Store, read_rows, read_vectors
from pixvec.dataset.evaluation import Report
from pixvec.dataset.sources import Labelled, open_source

__all__ = (
    "Analysis",
    "Annotation",
    "Counts",
    "Dataset",
    "EmbedSettings",
    "LeftOut",
    "Picture",
    "Report",
    "Row",
    "Source",
    "SourceOptions",
    "analyse",
    "compare",
    "embed",
    "evaluate",
    "export",
    "local_server",
    "open_source",
    "project",
    "read",
    "shown",
    "summary",
)


AS_THE_MODEL_HAS_IT, AS_THEY_COME = EmbedSettings(), SourceOptions()


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a dataset's folder holds: a row and a vector for each image, or object of one, that has one.

    vectors: (N, D) float32. about: what dataset.json tells: origin, options, source, colours, counts.
    failed: the rows that have no vector, for a reason of their own.
    """

    folder: Path
    rows: tuple[Row, ...]
    vectors: Array
    failed: tuple[Row, ...]
    about: Mapping[str, Any]

    @property
    def labels(self) -> list[str | None]:
        """The class of each row."""
        return [row.label for row in self.rows]


def embed(
    source: str | os.PathLike[str] | Mapping[str, Labelled] | Source,
    folder: str | os.PathLike[str],
    client: Client,
    settings: EmbedSettings = AS_THE_MODEL_HAS_IT,
    *,
    options: SourceOptions = AS_THEY_COME,
    progress: Callable[[int, int | None], object] = lambda _done, _total: None,
) -> Counts:
    """Embed what is new or changed in a source and keep it in a folder, with what was there before.

    source: a folder of images, a csv, a pair of .npy files, a COCO or Pascal VOC or Supervisely project, a
    tar, a parquet file, or images by name; `options` says how it is read. progress: is told how many
    pictures are done, and of how many where that is known. Interrupted or killed, the next run goes on from
    there. The result's `left_out` tells which files and annotations were not used, and why. Raises
    InputError, also where objects are asked for and none can be taken; and what the client raises when the
    server is lost for good.
    """
    opened = source if isinstance(source, Source) else open_source(source, options)
    return EmbedRun(client, opened, Store(Path(folder)), settings, progress).run()


def read(folder: str | os.PathLike[str]) -> Dataset:
    """Read a dataset. Raises InputError when the folder holds none."""
    store = Store(Path(folder))
    if not store.table.exists():
        raise InputError(f"{store.folder} holds no dataset: make one with `pixvec dataset embed`")
    rows, vectors = read_rows(store.table), read_vectors(store.table)
    kept = [i for i, row in enumerate(rows) if row.status == "ok"]
    return Dataset(
        folder=store.folder,
        rows=tuple(rows[i] for i in kept),
        vectors=vectors if len(kept) == len(rows) else vectors[kept],
        failed=tuple(row for row in rows if row.status == "failed"),
        about=store.about(),
    )


def project(
    folder: str | os.PathLike[str],
    method: str = "umap",
    metric: str = "euclidean",
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Array:
    """Return a dataset's map, (N, 2) float32, row by row; kept in its folder while its vectors are the same.

    method: umap, pca, tsne, pca-umap or pca-tsne. metric: euclidean or cosine; PCA ignores it. progress: is
    told what begins, and how far it is. Raises InputError as `projections.project` does.
    """
    held = read(folder)
    return _derived.projection(held.folder, held.vectors, method, metric, seed=seed, progress=progress)


def analyse(
    folder: str | os.PathLike[str],
    *,
    k: int = 10,
    metric: str = "cosine",
    duplicates_below: float = 0.02,
    clusters: int | None = None,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Analysis:
    """Return what each row's neighbourhood says of it; kept as columns in `analysis.parquet`.

    duplicates_below: rows no farther apart are near copies. clusters: how many; None: as many as there
    are dense places. progress: is told what begins, and how far it is. Raises InputError.
    """
    held = read(folder)
    return _derived.analysis(
        held.folder,
        held.rows,
        held.vectors,
        k=k,
        metric=metric,
        duplicates_below=duplicates_below,
        clusters=clusters,
        seed=seed,
        progress=progress,
    )


def evaluate(
    folder: str | os.PathLike[str],
    *,
    ks: Sequence[int] = (1, 5, 10),
    k: int = 5,
    progress: Callable[[str], object] | None = None,
) -> Report:
    """Measure how well a dataset's vectors keep its classes together; see `evaluation.evaluate`.

    progress: is told what begins, and how far it is. Raises InputError, also where no row has a class.
    """
    held = read(folder)
    if not any(held.labels):
        raise InputError(
            f"{held.folder} has no classes to judge by: embed a source that has them, such as folders or a "
            "csv, or compare it with another dataset of the same images"
        )
    return evaluation.evaluate(held.vectors, held.labels, ks, k, progress=progress)


def compare(
    folder: str | os.PathLike[str], other: str | os.PathLike[str], *, k: int = 10
) -> dict[str, float]:
    """Tell how alike the neighbourhoods of two datasets of the same images are: two models, or two builds.

    rows: those that both have. overlap_at_K: mean share of the k nearest that are the same; same_nearest:
    share of the rows with the same nearest. Raises InputError when there are too few.
    """
    one, two = read(folder), read(other)
    where = {row.key: i for i, row in enumerate(two.rows)}
    both = [(i, where[row.key]) for i, row in enumerate(one.rows) if row.key in where]
    if len(both) <= k:
        raise InputError(f"{one.folder} and {two.folder} have {len(both)} rows in common: k = {k} needs more")
    a, b = one.vectors[[i for i, _ in both]], two.vectors[[j for _, j in both]]
    return {
        "rows": len(both),
        f"overlap_at_{k}": evaluation.overlap_at(a, b, k),
        "same_nearest": evaluation.same_nearest(a, b),
    }


def shown(folder: str | os.PathLike[str]) -> tuple[Dataset, dict[str, Array], dict[str, Array]]:
    """Return what an explorer shows of a dataset: itself, its maps by name, and columns from its analysis.

    Without any map there is one by PCA, which takes a moment only; none of fewer than two different rows.
    """
    held = read(folder)
    maps = _derived.kept_projections(held.folder, held.vectors)
    if not maps and _differ(held.vectors):
        maps = {("pca", "euclidean"): _derived.projection(held.folder, held.vectors, "pca")}
    near = _derived.kept_analysis(held.folder, held.rows)
    columns = (
        {}
        if near is None
        else {
            "outlier": near.outlier,
            "label noise": near.label_noise,
            "duplicate": _numbers(near.duplicate),
            "cluster": _numbers(near.cluster),
            "neighbours": near.neighbours,
        }
    )
    return held, {f"{method}, {metric}": xy for (method, metric), xy in maps.items()}, columns


def _numbers(values: Array) -> Array:
    """Return the numbers as texts, None for what is in no group."""
    return np.array([None if value < 0 else str(value) for value in values.tolist()], object)


def _differ(vectors: Array) -> bool:
    return bool((vectors != vectors[:1]).any())


def export(
    folder: str | os.PathLike[str],
    form: str,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[Path]:
    """Write a dataset in the form of another program, and return the files; see `exports`.

    Maps and neighbours go along as far as they have been made. progress: is told how many rows are written,
    of how many. Raises InputError.
    """
    held = read(folder)
    near = _derived.kept_analysis(held.folder, held.rows)
    what = exports.Exported(
        held.rows,
        held.vectors,
        held.about,
        _derived.kept_projections(held.folder, held.vectors),
        near.neighbours if near else None,
        near.distances if near else None,
    )
    return exports.export(what, form, Path(out), progress)
