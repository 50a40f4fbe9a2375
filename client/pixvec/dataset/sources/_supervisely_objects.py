"""The objects of a Supervisely project's images."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pixvec._omissions import Omissions, printable
from pixvec.dataset._pictures import Annotation, Box, Outline

from ._bitmap import mask_box
from ._common import UniqueIds
from ._foreign import OddError, label_text, listed, load_json, short, tolerating
from ._shapes import box_area, marked, pixel_box, points, polygon_area

_LINES = ("line", "polyline")


def read_annotation(
    file: Path, shapes: Mapping[str, str | None], tag: str | None, omissions: Omissions
) -> tuple[str | None, tuple[Annotation, ...]]:
    """Return the class and the objects of an image by its annotation file; neither where there is no file.

    shapes: by class, for annotations that do not give their objects' geometryType. tag: the one whose value
    is the image's class, or whose name is where it has no value; None: the image's one tag without a value.
    What cannot be used is counted in `omissions`. Raises InputError where a bitmap needs Pillow, which is not
    installed.
    """
    label: str | None = None
    objects: tuple[Annotation, ...] = ()
    if not file.is_file():
        return label, objects
    with tolerating(omissions, "annotation file", file.name):
        held = load_json(file)
        if "tags" in held:
            with tolerating(omissions, "tag", file.name):
                label = _class_by_tag(listed(held, "tags"), tag)
        size = int(held["size"]["width"]), int(held["size"]["height"])
        objects = _objects(file.name, listed(held, "objects"), size, shapes, omissions)
    return label, objects


def _class_by_tag(tags: Sequence[Mapping[str, Any]], chosen: str | None) -> str | None:
    """Return what the tags agree on; None where they do not."""
    texts = (
        label_text(entry["name"] if entry.get("value") is None else entry["value"])
        for entry in tags
        if (entry.get("value") is None if chosen is None else printable(str(entry["name"])) == chosen)
    )
    found = set(texts)
    return found.pop() if len(found) == 1 else None


def _objects(
    file: str,
    entries: Sequence[Any],
    size: tuple[int, int],
    shapes: Mapping[str, str | None],
    omissions: Omissions,
) -> tuple[Annotation, ...]:
    unique, found = UniqueIds(), []
    for index, entry in enumerate(entries):
        with tolerating(omissions, "annotation", f"{file}: objects[{index}]"):
            if not isinstance(entry, dict):
                raise OddError("it is not an object of JSON", short(entry))
            title = printable(str(entry["classTitle"]))
            shape = entry.get("geometryType") or shapes.get(title)
            if shape not in {"bitmap", "rectangle", "polygon", *_LINES}:
                raise OddError("its geometry is not read", str(shape))
            box, area, outline = _measured(shape, entry, size)
            name = unique(str(entry.get("id", index)))
            found.append(marked(name, title, box, area, outline))
    return tuple(found)


def _measured(
    shape: str, entry: Mapping[str, Any], size: tuple[int, int]
) -> tuple[Box | None, float, Outline]:
    if shape == "bitmap":
        return *mask_box(entry["bitmap"], size), ()
    corners = points(entry["points"]["exterior"])
    if not corners:
        raise OddError("it has no points")
    box = pixel_box(_edges(corners), size)
    if shape == "rectangle":
        return box, box_area(box) if box else 0.0, ()
    if shape in _LINES:
        return box, sum(math.dist(start, end) for start, end in pairwise(corners)), corners
    return box, _polygon_area(corners, entry["points"].get("interior") or ()), corners


def _edges(corners: Outline) -> tuple[float, float, float, float]:
    across, down = zip(*corners, strict=True)
    return min(across), min(down), math.floor(max(across)) + 1, math.floor(max(down)) + 1


def _polygon_area(corners: Outline, holes: Sequence[Sequence[Sequence[float]]]) -> float:
    return max(0.0, polygon_area(corners) - sum(polygon_area(points(hole)) for hole in holes))
