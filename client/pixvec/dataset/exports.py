"""A dataset in the forms that other programs read.

npy: `{out}_data.npy` (N, D) float32 and `{out}_labels.npy` (N, 1).
csv: a file with the header `Class,n0,…`.
npys: a folder with a .npy for each image, named as the image is; what is there already stays.
tensorboard: a folder with tensors.tsv and metadata.tsv, for TensorBoard's projector.
atlas: a parquet file for embedding-atlas: x, y, neighbors, image (a thumbnail, as {bytes}), label.
supervisely: a folder with embeddings.pt, cfg.json, info.json and projections_*.pt, as Supervisely's app
has it.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array
from pixvec.dataset._rows import Row
from pixvec.dataset._store import whole

Progress: TypeAlias = Callable[[int, int], object]
_THUMB_PX = 256


@dataclass(frozen=True, slots=True)
class Exported:
    """What is exported: rows and their vectors (N, D), and what was made of them.

    projections: (N, 2) by method and metric. neighbours, distances: (N, k), nearest first.
    """

    rows: Sequence[Row]
    vectors: Array
    about: Mapping[str, Any] = field(default_factory=dict)
    projections: Mapping[tuple[str, str], Array] = field(default_factory=dict)
    neighbours: Array | None = None
    distances: Array | None = None


def export(
    what: Exported, form: str, out: Path, progress: Progress = lambda _done, _total: None
) -> list[Path]:
    """Write a form of FORMS to `out`, and return the files; each appears when it is whole.

    progress: is told how many rows are written, of how many. Raises InputError.
    """
    if form not in FORMS:
        raise InputError(f"format = {form!r}: {', '.join(FORMS)} are known")
    if not len(what.rows):
        raise InputError("the dataset has no vectors to export")
    return FORMS[form](what, out, progress)


def _npy(what: Exported, out: Path, progress: Progress) -> list[Path]:
    data, labels = (out.with_name(f"{out.name}_{part}.npy") for part in ("data", "labels"))
    _save(data, what.vectors)
    _save(labels, np.array([[row.label or ""] for row in what.rows]))
    progress(len(what.rows), len(what.rows))
    return [data, labels]


def _save(path: Path, values: Array) -> None:
    with whole(path) as draft, draft.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def _csv(what: Exported, out: Path, progress: Progress) -> list[Path]:
    with whole(out) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        # Its own end of line, \r\n: with another, classes that hold a \r would not be quoted.
        writer = csv.writer(file)
        writer.writerow(["Class", *(f"n{i}" for i in range(what.vectors.shape[1]))])
        for row, vector in _told(what, progress):
            writer.writerow([row.label or "", *(f"{value:.9g}" for value in vector.tolist())])
    return [out]


def _npys(what: Exported, out: Path, progress: Progress) -> list[Path]:
    written, names = [], dict[Path, Row]()
    for row in what.rows:
        if (other := names.setdefault(_inside(out, row), row)) is not row:
            raise InputError(
                f"{_inside(out, row)} would be of {row.key} and {other.key}: export as npy or csv"
            )
    for file, (_, vector) in zip(names, _told(what, progress), strict=True):
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        _save(file, vector)
        written.append(file)
    return written


def _inside(folder: Path, row: Row) -> Path:
    """Return the file of a row's vector; an id is a stranger's, and may try to lead out of the folder."""
    name = row.id if row.object is None else f"{row.id}.{row.object}"
    given = name.replace("\\", "/").replace(":", "_").split("/")
    parts = [part for part in given if part not in {"", ".", ".."}] or ["_"]
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.npy")


def _tensorboard(what: Exported, out: Path, progress: Progress) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    tensors, metadata = out / "tensors.tsv", out / "metadata.tsv"
    with whole(tensors) as draft, draft.open("w", encoding="utf-8") as file:
        for _, vector in _told(what, progress):
            file.write("\t".join(f"{x:.9g}" for x in vector.tolist()) + "\n")
    with whole(metadata) as draft, draft.open("w", encoding="utf-8") as file:
        file.write("class\tid\n")
        file.writelines(f"{_cell(row.label or '')}\t{_cell(row.id)}\n" for row in what.rows)
    return [tensors, metadata]


def _cell(text: str) -> str:
    return " ".join(text.split())


def _atlas(what: Exported, out: Path, progress: Progress) -> list[Path]:
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    if not what.projections or what.neighbours is None or what.distances is None:
        raise InputError("an atlas needs a map and neighbours: run `pixvec dataset project` and `analyse`")
    xy = next(iter(what.projections.values()))
    columns: dict[str, Any] = {
        "id": [row.id for row in what.rows],
        "label": [row.label for row in what.rows],
        "image": pa.array(_thumbnails(what, progress), pa.struct([("bytes", pa.binary())])),
        "x": pa.array(xy[:, 0].astype(np.float32)),
        "y": pa.array(xy[:, 1].astype(np.float32)),
        "neighbors": [
            {"ids": ids, "distances": distances}
            for ids, distances in zip(what.neighbours.tolist(), what.distances.tolist(), strict=True)
        ],
    }
    with whole(out) as draft:
        pq.write_table(pa.table(columns), draft)
    return [out]


def _thumbnails(what: Exported, progress: Progress) -> list[dict[str, bytes] | None]:
    """Return what the rows are of, as JPEGs: a page may not read this machine's files; None: unreadable."""
    from ._images import Images, in_threads  # noqa: PLC0415 - heavy

    def tasks() -> Iterator[Callable[[], bytes | None]]:
        for index in range(len(what.rows)):
            yield partial(thumbnail, index, _readable(images, index))

    def thumbnail(index: int, original: Any) -> bytes | None:  # noqa: ANN401 - one of `_originals`
        try:
            return None if original is None else images.thumb(index, _THUMB_PX, original)
        except InputError:
            return None

    with Images(what.rows, what.about) as images:
        found = zip(in_threads(tasks()), _told(what, progress), strict=True)
        return [None if one is None else {"bytes": one} for one, _ in found]


def _readable(images: Any, index: int) -> Any:  # noqa: ANN401 - of `_images`, which is heavy
    try:
        return images.original(index)
    except InputError:
        return None


def _supervisely(what: Exported, out: Path, progress: Progress) -> list[Path]:
    try:
        import torch  # noqa: PLC0415 - optional
    except ImportError as error:
        raise InputError("embeddings.pt needs torch: pip install 'pixvec[torch]'") from error
    out.mkdir(parents=True, exist_ok=True)
    options = what.about.get("options", {})
    px = options.get("expand_px", 0)
    told = {"instance_mode": options.get("instances", "images"), "expand_hw": [px, px]}
    files = [out / "embeddings.pt", out / "cfg.json", out / "info.json"]
    tensors = {files[0]: what.vectors} | {
        out / f"projections_{method}_{metric}.pt": xy for (method, metric), xy in what.projections.items()
    }
    for file, values in tensors.items():
        with whole(file) as draft:
            torch.save(values, draft, pickle_protocol=2)
    progress(len(what.rows), len(what.rows))
    texts = {files[1]: {**told, "origin": what.about.get("origin")}, files[2]: _info(what.rows)}
    for file, content in texts.items():
        with whole(file) as draft:
            draft.write_text(json.dumps(content), encoding="utf-8")
    return [*files, *list(tensors)[1:]]


def _info(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return parallel lists, as the app has them: a box is top, left, bottom, right."""
    boxes = [row.box and [row.box[1], row.box[0], row.box[3], row.box[2]] for row in rows]
    return {
        "dataset_id": [row.id.rpartition("/")[0] for row in rows],
        "image_id": [row.id for row in rows],
        "object_id": [row.object for row in rows],
        "object_cls": [None if row.object is None else row.label for row in rows],
        "crop_yxyx": boxes,
        "updated_at": [row.stamp for row in rows],
    }


def _told(what: Exported, progress: Progress) -> Iterator[tuple[Row, Array]]:
    """Yield each row and its vector, and tell when it is done with."""
    for done, (row, vector) in enumerate(zip(what.rows, what.vectors, strict=True), start=1):
        yield row, vector
        progress(done, len(what.rows))


FORMS: Mapping[str, Callable[[Exported, Path, Progress], list[Path]]] = {
    "npy": _npy,
    "csv": _csv,
    "npys": _npys,
    "tensorboard": _tensorboard,
    "atlas": _atlas,
    "supervisely": _supervisely,
}
