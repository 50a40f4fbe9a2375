"""A dataset in the forms that other programs read.

npy: `{out}_data.npy` (N, D) float32 and `{out}_labels.npy` (N, 1).
csv: a file with the header `Class,n0,…`.
npys: a folder with a .npy for each image, named as the image is; what is there already stays.
tensorboard: a folder with tensors.tsv and metadata.tsv, for TensorBoard's projector.
atlas: a parquet file for embedding-atlas: x, y, neighbors, image, label.
supervisely: a folder with embeddings.pt, cfg.json, info.json and projections_*.pt, as Supervisely's app
has it.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array
from pixvec.dataset._rows import Row


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


def export(what: Exported, form: str, out: Path) -> list[Path]:
    """Write a form of FORMS to `out`, and return the files. Raises InputError."""
    if form not in FORMS:
        raise InputError(f"format = {form!r}: {', '.join(FORMS)} are known")
    if not len(what.rows):
        raise InputError("the dataset has no vectors to export")
    return FORMS[form](what, out)


def _npy(what: Exported, out: Path) -> list[Path]:
    data, labels = (out.with_name(f"{out.name}_{part}.npy") for part in ("data", "labels"))
    np.save(data, what.vectors, allow_pickle=False)
    np.save(labels, np.array([[row.label or ""] for row in what.rows]), allow_pickle=False)
    return [data, labels]


def _csv(what: Exported, out: Path) -> list[Path]:
    with out.open("w", encoding="utf-8", newline="") as file:
        # Its own end of line, \r\n: with another, classes that hold a \r would not be quoted.
        writer = csv.writer(file)
        writer.writerow(["Class", *(f"n{i}" for i in range(what.vectors.shape[1]))])
        for row, vector in zip(what.rows, what.vectors, strict=True):
            writer.writerow([row.label or "", *(f"{value:.9g}" for value in vector.tolist())])
    return [out]


def _npys(what: Exported, out: Path) -> list[Path]:
    written, names = [], dict[Path, Row]()
    for row in what.rows:
        if (other := names.setdefault(_inside(out, row), row)) is not row:
            raise InputError(
                f"{_inside(out, row)} would be of {row.key} and {other.key}: export as npy or csv"
            )
    for file, vector in zip(names, what.vectors, strict=True):
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, vector, allow_pickle=False)
        written.append(file)
    return written


def _inside(folder: Path, row: Row) -> Path:
    """Return the file of a row's vector; an id is a stranger's, and may try to lead out of the folder."""
    name = row.id if row.object is None else f"{row.id}.{row.object}"
    given = name.replace("\\", "/").replace(":", "_").split("/")
    parts = [part for part in given if part not in {"", ".", ".."}] or ["_"]
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.npy")


def _tensorboard(what: Exported, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    tensors, metadata = out / "tensors.tsv", out / "metadata.tsv"
    with tensors.open("w", encoding="utf-8") as file:
        file.writelines("\t".join(f"{x:.9g}" for x in vector) + "\n" for vector in what.vectors.tolist())
    with metadata.open("w", encoding="utf-8") as file:
        file.write("class\tid\n")
        file.writelines(f"{_cell(row.label or '')}\t{_cell(row.id)}\n" for row in what.rows)
    return [tensors, metadata]


def _cell(text: str) -> str:
    return " ".join(text.split())


def _atlas(what: Exported, out: Path) -> list[Path]:
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    if not what.projections or what.neighbours is None or what.distances is None:
        raise InputError("an atlas needs a map and neighbours: run `pixvec dataset project` and `analyse`")
    xy = next(iter(what.projections.values()))
    columns: dict[str, Any] = {
        "id": [row.id for row in what.rows],
        "label": [row.label for row in what.rows],
        "image": [_url(row.uri) for row in what.rows],
        "x": pa.array(xy[:, 0].astype(np.float32)),
        "y": pa.array(xy[:, 1].astype(np.float32)),
        "neighbors": [
            {"ids": ids, "distances": distances}
            for ids, distances in zip(what.neighbours.tolist(), what.distances.tolist(), strict=True)
        ],
    }
    pq.write_table(pa.table(columns), out)
    return [out]


def _url(uri: str) -> str:
    return uri if "://" in uri else Path(uri).absolute().as_uri()


def _supervisely(what: Exported, out: Path) -> list[Path]:
    try:
        import torch  # noqa: PLC0415 - optional
    except ImportError as error:
        raise InputError("embeddings.pt needs torch: pip install 'pixvec[torch]'") from error
    out.mkdir(parents=True, exist_ok=True)
    options = what.about.get("options", {})
    px = options.get("expand_px", 0)
    told = {"instance_mode": options.get("instances", "images"), "expand_hw": [px, px]}
    files = [out / "embeddings.pt", out / "cfg.json", out / "info.json"]
    torch.save(what.vectors, files[0], pickle_protocol=2)
    files[1].write_text(json.dumps({**told, "origin": what.about.get("origin")}, indent=2), encoding="utf-8")
    files[2].write_text(json.dumps(_info(what.rows)), encoding="utf-8")
    for (method, metric), xy in what.projections.items():
        files.append(out / f"projections_{method}_{metric}.pt")
        torch.save(xy, files[-1], pickle_protocol=2)
    return files


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


FORMS: Mapping[str, Callable[[Exported, Path], list[Path]]] = {
    "npy": _npy,
    "csv": _csv,
    "npys": _npys,
    "tensorboard": _tensorboard,
    "atlas": _atlas,
    "supervisely": _supervisely,
}
