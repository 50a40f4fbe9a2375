"""The page's files, and the data that it shows."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array
from pixvec.dataset import Dataset, Row

from ._bokeh import scripts
from ._columns import Column, class_column, column_of

NEIGHBOURS = "neighbours"
NEAR_ROWS = 12
_RESERVED = frozenset({"index", "id", "object", "class", "x", "y"})
PAGE, DATA = "index.html", "data.js"
# Scripts of one scope, not modules, which a browser does not load from disk; the last one starts them.
_SCRIPTS = (
    "rows.js",
    "elements.js",
    "chart.js",
    "legend.js",
    "point.js",
    "selection.js",
    "search.js",
    "page.js",
)
_OWN = {"page.html": PAGE, "page.css": "page.css"} | {name: name for name in _SCRIPTS}
# What there is to look at before any map is made.
_AS_THEY_COME = "in their order"


def page_files() -> dict[str, bytes]:
    """Return the page's files by name, all but its data. Raises InputError when Bokeh is not installed."""
    folder = resources.files(__package__)
    own = {name: (folder / file).read_bytes() for file, name in _OWN.items()}
    return own | {name: path.read_bytes() for name, path in scripts().items()}


def pictures_of(rows: Sequence[Row]) -> Array:
    """Return which image each row lies in, (N,) int32, counted in the order in which they come."""
    place: dict[str, int] = {}
    return np.array([place.setdefault(row.id, len(place)) for row in rows], np.int32)


def data_of(
    dataset: Dataset, projections: Mapping[str, Array], columns: Mapping[str, Array]
) -> dict[str, Any]:
    """Return the data that the page shows. Raises InputError for arrays that do not fit the dataset.

    Without projections the rows lie in lines, in their order.
    """
    rows = dataset.rows
    if not rows:
        raise InputError(f"{dataset.folder} has no row with a vector: there is nothing to show")
    starts, outlines = _outlines(rows)
    return {
        "title": dataset.folder.name or str(dataset.folder),
        "ids": [row.id for row in rows],
        "objects": [row.object for row in rows],
        "pictures": _packed(pictures_of(rows)),
        "boxes": _packed(np.array([row.box or (0, 0, 0, 0) for row in rows], np.int32)),
        "outlineStarts": _packed(starts),
        "outlines": _packed(outlines),
        "projections": _projections(projections, len(rows)),
        "columns": [_told(column) for column in _columns(dataset, columns)],
        "neighbours": _neighbours(columns.get(NEIGHBOURS), len(rows)),
    }


def as_script(data: Mapping[str, Any]) -> bytes:
    """Return the script that holds the page's data: a page that is opened from disk may not fetch any."""
    return f"const data = {json.dumps(data, separators=(',', ':'), allow_nan=False)};\n".encode()


def _projections(projections: Mapping[str, Array], count: int) -> list[dict[str, str]]:
    for name, points in projections.items():
        if np.shape(points) != (count, 2):
            raise InputError(
                f"projections[{name!r}] is {np.shape(points)}: pass ({count}, 2), a point for each row"
            )
        if not np.isfinite(points).all():
            raise InputError(f"projections[{name!r}] holds NaN or infinity: project the rows anew")
    return [
        {"name": name, "points": _packed(np.asarray(points, np.float32))}
        for name, points in (projections or {_AS_THEY_COME: _lines(count)}).items()
    ]


def _lines(count: int) -> Array:
    """Return points (N, 2) in a square of lines, from the left and from the top."""
    line, place = np.divmod(np.arange(count), math.ceil(math.sqrt(count)))
    return np.stack([place, -line], axis=1)


def _columns(dataset: Dataset, columns: Mapping[str, Array]) -> list[Column]:
    found = [class_column(dataset.labels, dataset.about.get("colours") or {})]
    for name, given in columns.items():
        values = np.asarray(given)
        if name in _RESERVED:
            raise InputError(f"columns[{name!r}] would hide the dataset's own: give it another name")
        if name == NEIGHBOURS:
            continue
        if values.shape != (len(dataset.rows),):
            raise InputError(
                f"columns[{name!r}] is {values.shape}: pass ({len(dataset.rows)},), a value for each row"
            )
        found.append(column_of(name, values))
    return found


def _neighbours(given: Array | None, count: int) -> dict[str, Any] | None:
    if given is None:
        return None
    rows = np.asarray(given)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "iu":
        raise InputError(
            f"columns[{NEIGHBOURS!r}] is {rows.shape} {rows.dtype}: pass ({count}, k) indices of rows"
        )
    if rows.size and (rows.min() < 0 or rows.max() >= count):
        raise InputError(f"columns[{NEIGHBOURS!r}] holds indices outside 0..{count - 1}: compute it anew")
    return {"each": rows.shape[1], "rows": _packed(rows.astype(np.int32))}


def _outlines(rows: Sequence[Row]) -> tuple[Array, Array]:
    """Return all outlines' corners in a row, float32, and where each begins, (N + 1,) int32, in numbers."""
    starts = np.cumsum([0, *(2 * len(row.outline) for row in rows)], dtype=np.int32)
    flat = [xy for row in rows for corner in row.outline for xy in corner]
    return starts, np.array(flat, np.float32)


def _told(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "groups": [{"name": group.name, "colour": group.colour} for group in column.groups],
        "group": _packed(column.group),
        "names": column.names,
        "codes": _packed(column.codes),
        "values": _packed(column.values),
    }


def _packed(array: Array) -> str:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()
