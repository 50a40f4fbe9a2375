"""The annotations of a COCO file: which of them mark an object, of which image and class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pixvec._omissions import Omissions, printable
from pixvec.dataset._pictures import Annotation, Outline

from ._common import UniqueIds
from ._foreign import OddError, short, tolerating
from ._shapes import box_area, marked, pixel_box, points, polygon_area

T = TypeVar("T")
_NO_BBOX = {
    "caption": "a caption marks no object",
    "segments_info": "a panoptic annotation marks no single object",
    "keypoints": "it has keypoints, and no bbox",
    "segmentation": "it has no bbox, and its segmentation is not polygons",
}
_MAX_PIXELS = 1 << 30
_BAD_BBOX = "its bbox is not [left, top, width, height] in pixels"


class ById(Generic[T]):
    """Finds by an id of JSON. 7, 7.0 and "7" are one id, unless both a number and a text are added."""

    def __init__(self) -> None:
        self._found: dict[tuple[bool, str], T] = {}

    def add(self, given: object, value: T) -> T:
        """Return what is known by an id: the value, unless there was one before. Raises OddError."""
        return self._found.setdefault(_key(given), value)

    def find(self, given: object) -> T | None:
        """Return what is known by an id, by one of the same type first. Raises OddError."""
        is_text, text = _key(given)
        return self._found.get((is_text, text)) or self._found.get((not is_text, text))


def _key(given: object) -> tuple[bool, str]:
    if isinstance(given, str):
        return True, given.strip()
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise OddError("an id is neither a number nor a text", short(given))
    return False, str(int(given)) if math.isfinite(given) and given == int(given) else repr(given)


@dataclass(slots=True)
class Marked:
    """An image as its objects see it. is_shared: whether another image has the same id."""

    name: str
    size: tuple[int, int] | None
    objects: list[Annotation] = field(default_factory=list)
    unique: UniqueIds = field(default_factory=UniqueIds)
    is_shared: bool = False


class Objects:
    """Gives annotations to the images that they mark; those that mark none are counted, by reason."""

    def __init__(
        self, images: ById[Marked], categories: Sequence[Any], omissions: Omissions, where: str
    ) -> None:
        self._images, self._omissions, self._where = images, omissions, where
        self._has_categories = bool(categories)
        self._classes: ById[_Class] = ById()
        for index, entry in enumerate(categories):
            with tolerating(omissions, "category entry", f"{where}: categories[{index}]"):
                self._add_category(entry)

    def add(self, annotations: Sequence[Any]) -> None:
        """Give each annotation to its image."""
        for index, entry in enumerate(annotations):
            with tolerating(self._omissions, "annotation", f"{self._where}: annotations[{index}]"):
                self._add(index, entry)

    def _add_category(self, entry: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        name = printable(str(_object(entry)["name"]))
        known = self._classes.add(entry["id"], _Class(name))
        if known.name != name:
            known.is_shared = True
            raise OddError("its id is that of another category", f"id {short(entry['id'])}, {name}")

    def _add(self, index: int, entry: Any) -> None:  # noqa: ANN401
        image = self._images.find(_object(entry)["image_id"])
        if image is None:
            raise OddError("its image_id is of no image", f"image_id {short(entry['image_id'])}")
        if image.is_shared:
            raise OddError("its image_id is of several images", f"image_id {short(entry['image_id'])}")
        if _is_crowd(entry):
            raise OddError("it marks a crowd (iscrowd)")
        edges, label = _edges(entry), self._label(entry)
        left, top, right, bottom = edges
        box = pixel_box(edges, image.size) if right > left and bottom > top else None
        outline = self._outline(index, entry.get("segmentation"))
        area = _area(entry.get("area")) or (box_area(box) if box else 0.0)
        name = image.unique(str(entry.get("id", index)))
        image.objects.append(marked(name, label, box, area, outline))

    def _label(self, entry: Mapping[str, Any]) -> str:
        given = entry.get("category_id")
        if given is None:
            raise OddError("it has no category_id")
        if not self._has_categories:
            return printable(_key(given)[1])
        known = self._classes.find(given)
        if known is None:
            raise OddError("its category_id is of no category", f"category_id {short(given)}")
        if known.is_shared:
            raise OddError("its category_id is of several categories", f"category_id {short(given)}")
        return known.name

    def _outline(self, index: int, segmentation: object) -> Outline:
        """Return the largest polygon; what is none is counted, and the object has its box."""
        polygons = segmentation if isinstance(segmentation, list) else []
        with tolerating(self._omissions, "outline", f"{self._where}: annotations[{index}]"):
            return max((_corners(flat) for flat in polygons), key=polygon_area, default=())
        return ()


@dataclass(slots=True)
class _Class:
    name: str
    is_shared: bool = False


def _object(entry: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if not isinstance(entry, dict):
        raise OddError("it is not an object of JSON", short(entry))
    return entry


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("iscrowd") or 0).strip().lower() not in {"0", "0.0", "false", ""}


def _edges(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the bbox, or of the polygons where there is no bbox."""
    bbox = entry.get("bbox")
    if bbox is None or bbox == []:
        return _edges_of_polygons(entry)
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_pixels, bbox)):
        raise OddError(_BAD_BBOX, short(bbox))
    left, top, width, height = bbox
    return left, top, left + width, top + height


def _edges_of_polygons(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and polygons:
        corners = [corner for flat in polygons for corner in _corners(flat)]
        if corners:
            across, down = zip(*corners, strict=True)
            return min(across), min(down), max(across), max(down)
    reason = next((why for name, why in _NO_BBOX.items() if entry.get(name)), "it has no bbox")
    raise OddError(reason)


def _is_pixels(value: object) -> bool:
    return abs(_number(value)) < _MAX_PIXELS  # NaN is not


def _area(given: object) -> float:
    """Return an area; 0 for one that is missing or is no measure."""
    area = _number(given)
    return area if 0 < area < math.inf else 0.0


def _number(value: object) -> float:
    """Return a number of JSON; NaN for what is none, or none that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _corners(flat: object) -> Outline:
    """Return a polygon's corners; none for fewer than 3."""
    if not isinstance(flat, list) or len(flat) % 2 or not all(map(_is_pixels, flat)):
        raise OddError("a polygon of its segmentation is not [x, y, x, y, …] in pixels", short(flat))
    return points(list(zip(flat[::2], flat[1::2], strict=True))) if len(flat) >= 6 else ()
