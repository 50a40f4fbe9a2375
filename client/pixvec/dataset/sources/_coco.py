"""A COCO file of instances."""

import reprlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pixvec._errors import InputError
from pixvec._sources import printable
from pixvec.dataset._pictures import Annotation, Outline, Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, broken_picture, file_picture
from ._foreign import BrokenError, inside, listed, load_json, parsing
from ._shapes import box_area, finite, marked, pixel_box, points, polygon_area


class Coco:
    """The images of a COCO JSON in its order, with its objects but crowds.

    An image is looked for by its file_name beside the JSON, in `images` there, and in `images`, `train2017`
    and `val2017` of the folder above, and in the one that is named as the JSON's own name ends:
    `instances_val2014.json` has `val2014`. Boxes become whole pixels that cover them, within the image. The
    outline is the largest polygon of a segmentation; one that is run-length encoded has a box only. An area
    that is missing or 0 is the box's.
    """

    kind = "coco"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._file, self._options = Path(given), options
        whole = load_json(self._file)
        with parsing(given):
            self._images: list[Mapping[str, Any]] = listed(whole, "images")
            categories = listed(whole, "categories") if "categories" in whole else []
            annotations = listed(whole, "annotations") if "annotations" in whole else []
        if not self._images:
            raise InputError(f"{given}: its list of images is empty")
        self._sizes = self._read_sizes()
        self._objects = self._read_objects(self._names(categories), annotations)
        here, above = self._file.parent, self._file.parent.resolve().parent
        names = dict.fromkeys(("images", "train2017", "val2017", self._file.stem.rpartition("_")[2]))
        self._folders = [here, here / "images", *(above / name for name in names)]
        self.total = len(self._images)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one whose file is not found, or not within the folders, says so."""
        unique = UniqueIds()
        for image in self._images:
            given, objects = image["file_name"], tuple(self._objects[image["id"]])
            name = unique(given)
            try:
                yield file_picture(name, self._find(given), self._options, objects=objects)
            except BrokenError as error:
                yield broken_picture(name, given, error.message)

    def _find(self, name: str) -> Path:
        with parsing(f"{self._file}: {name}"):
            places = [inside(folder, name) for folder in self._folders]
            if not (found := next((path for path in places if path.is_file()), None)):
                raise FileNotFoundError(f"not in {', '.join(map(str, self._folders))}")
            return found

    def _read_sizes(self) -> dict[object, tuple[int, int] | None]:
        sizes: dict[object, tuple[int, int] | None] = {}
        for index, image in enumerate(self._images):
            with parsing(f"{self._file}: images[{index}]"):
                if not isinstance(image["file_name"], str):
                    raise TypeError(f"its file_name is {_short(image['file_name'])}; it must be a text")
                if image["id"] in sizes:
                    raise ValueError(f"its id {_short(image['id'])} is that of an image before it")
                size = int(image.get("width") or 0), int(image.get("height") or 0)
                sizes[image["id"]] = size if min(size) > 0 else None
        return sizes

    def _names(self, categories: list[Mapping[str, Any]]) -> dict[object, str]:
        names: dict[object, str] = {}
        for index, category in enumerate(categories):
            with parsing(f"{self._file}: categories[{index}]"):
                name = printable(str(category["name"]))
                if names.setdefault(category["id"], name) != name:
                    raise ValueError(f"its id {_short(category['id'])} is that of another category before it")
        return names

    def _read_objects(
        self, names: Mapping[object, str], annotations: list[Mapping[str, Any]]
    ) -> defaultdict[object, list[Annotation]]:
        objects: defaultdict[object, list[Annotation]] = defaultdict(list)
        ids: defaultdict[object, UniqueIds] = defaultdict(UniqueIds)
        for index, entry in enumerate(annotations):
            with parsing(f"{self._file}: annotations[{index}]"):
                image = entry["image_id"]
                if int(entry.get("iscrowd") or 0) or image not in self._sizes:
                    continue
                name = ids[image](str(entry.get("id", index)))
                objects[image].append(_annotation(name, names, entry, self._sizes[image]))
        return objects


def _annotation(
    name: str, names: Mapping[object, str], entry: Mapping[str, Any], size: tuple[int, int] | None
) -> Annotation:
    left, top, width, height = _bbox(entry)
    box = pixel_box((left, top, left + width, top + height), size)
    if not (width > 0 and height > 0):
        box = None
    if entry["category_id"] not in names:
        raise ValueError(f"its category_id is {_short(entry['category_id'])}, which no category has")
    area = finite(entry.get("area") or (box_area(box) if box else 0.0))
    return marked(name, names[entry["category_id"]], box, area, _outline(entry.get("segmentation")))


def _bbox(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    if "bbox" not in entry and "caption" in entry:
        raise ValueError("it is a caption, which marks no object: give the file of instances")
    match entry["bbox"]:
        case [left, top, width, height]:
            return left, top, width, height
        case other:
            raise ValueError(f"its bbox is {_short(other)}; it must be [left, top, width, height]")


def _outline(segmentation: object) -> Outline:
    polygons = segmentation if isinstance(segmentation, list) else []
    return max((_corners(flat) for flat in polygons), key=polygon_area, default=())


def _corners(flat: object) -> Outline:
    """Return a polygon's corners; none for fewer than 3."""
    if not isinstance(flat, list) or len(flat) % 2:
        raise ValueError(f"a polygon of its segmentation is {_short(flat)}; it must be [x, y, x, y, …]")
    return points(list(zip(flat[::2], flat[1::2], strict=True))) if len(flat) >= 6 else ()


def _short(value: object) -> str:
    return reprlib.repr(value)
