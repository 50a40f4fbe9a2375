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
from ._foreign import load_json, parsing
from ._shapes import box_area, pixel_box, points, polygon_area

_LINES = ("line", "polyline")


def read_objects(file: Path, shapes: Mapping[str, str | None]) -> tuple[Annotation, ...]:
    """Return the objects of an image's annotation file; none where there is no file.

    shapes: by class, for annotations that do not give their objects' geometryType.
    Raises BrokenError; InputError where a bitmap needs Pillow, which is not installed.
    """
    if not file.is_file():
        return ()
    annotation = load_json(file)
    with parsing(str(file)):
        size = annotation["size"]["width"], annotation["size"]["height"]
        entries = list(annotation["objects"])
    unique = UniqueIds()
    found = []
    for index, entry in enumerate(entries):
        with parsing(f"{file}: objects[{index}]"):
            title = printable(str(entry["classTitle"]))
            shape = entry.get("geometryType") or shapes.get(title)
            if shape in {"bitmap", "rectangle", "polygon", *_LINES}:
                box, area, outline = _measured(shape, entry, size)
                name = unique(str(entry.get("id", index)))
                found.append(Annotation(name, title, box, area, outline) if box else None)
    return tuple(marked for marked in found if marked)


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
