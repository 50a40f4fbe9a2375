"""The objects of a Supervisely project's images."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pixvec._sources import printable
from pixvec.dataset._pictures import Annotation, Box, Outline

from ._bitmap import mask_box
from ._common import UniqueIds
from ._foreign import label_text, listed, load_json, parsing
from ._shapes import box_area, marked, pixel_box, points, polygon_area

_LINES = ("line", "polyline")


def read_annotation(
    file: Path, shapes: Mapping[str, str | None], tag: str | None
) -> tuple[str | None, tuple[Annotation, ...]]:
    """Return the class and the objects of an image by its annotation file; neither where there is no file.

    shapes: by class, for annotations that do not give their objects' geometryType. tag: the one whose value
    is the image's class, or whose name is where it has no value; None: the image's one tag without a value.
    Raises BrokenError; InputError where a bitmap needs Pillow, which is not installed.
    """
    if not file.is_file():
        return None, ()
    held = load_json(file)
    with parsing(str(file)):
        size = int(held["size"]["width"]), int(held["size"]["height"])
        entries = listed(held, "objects")
        label = _class_by_tag(listed(held, "tags") if "tags" in held else [], tag)
    return label, _objects(file, entries, size, shapes)


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
    file: Path, entries: Sequence[Mapping[str, Any]], size: tuple[int, int], shapes: Mapping[str, str | None]
) -> tuple[Annotation, ...]:
    unique = UniqueIds()
    found = []
    for index, entry in enumerate(entries):
        with parsing(f"{file}: objects[{index}]"):
            title = printable(str(entry["classTitle"]))
            shape = entry.get("geometryType") or shapes.get(title)
            if shape in {"bitmap", "rectangle", "polygon", *_LINES}:
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
