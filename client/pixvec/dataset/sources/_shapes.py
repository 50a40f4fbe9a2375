"""Boxes and polygons that foreign data gives."""

import math
from collections.abc import Sequence

from pixvec.dataset._pictures import Annotation, Box, Outline

_MOST_PIXELS = 1 << 31
_NOWHERE = (0, 0, 0, 0)


def marked(name: str, label: str, box: Box | None, area: float, outline: Outline = ()) -> Annotation:
    """Return an object; one without a box has no area, so that it is counted among those too small."""
    return Annotation(name, label, box or _NOWHERE, area if box else 0.0, outline if box else ())


def pixel_box(edges: Sequence[float], size: tuple[int, int] | None) -> Box | None:
    """Return the least box of whole pixels over edges (left, top, right, bottom), cut to the image's size.

    None when nothing is left of it, as of one whose right is left of its left. Raises ValueError, TypeError
    or OverflowError for what are no edges.
    """
    left, top, right, bottom = edges
    if not all(math.isfinite(edge) and abs(edge) < _MOST_PIXELS for edge in edges):
        told = ", ".join(f"{edge:g}" for edge in edges)
        raise ValueError(f"a box of ({told}) is no image's: left, top, right and bottom are pixels")
    box = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    width, height = size or (_MOST_PIXELS, _MOST_PIXELS)
    cut = max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None


def box_area(box: Box) -> float:
    """Return a box's area in pixels."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


def finite(value: float) -> float:
    """Return a number; raises ValueError for NaN and infinity, which JSON can hold in practice."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no measure")
    return float(value)


def points(given: Sequence[Sequence[float]]) -> Outline:
    """Return corners (x, y) that foreign data gives."""
    return tuple((finite(x), finite(y)) for x, y in given)


def polygon_area(corners: Sequence[tuple[float, float]]) -> float:
    """Return a polygon's area by the shoelace formula."""
    following = [*corners[1:], *corners[:1]]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(corners, following, strict=True))) / 2
