"""A COCO file of instances."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pixvec._errors import InputError
from pixvec._sources import printable
from pixvec.dataset._pictures import Annotation, Box, Outline, Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, broken_picture, file_picture
from ._foreign import BrokenError, inside, load_json, parsing
from ._shapes import box_area, finite, pixel_box, points, polygon_area


class Coco:
    """The images of a COCO JSON in its order, with its objects but crowds.

    An image is looked for by its file_name beside the JSON, in `images` there, and in `images`, `train2017`
    and `val2017` of the folder above. Boxes become whole pixels that cover them, within the image. The
    outline is the largest polygon of a segmentation; one that is run-length encoded has a box only.
    """

    kind = "coco"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._file, self._options = Path(given), options
        whole = load_json(self._file)
        with parsing(given):
            self._images: list[Mapping[str, Any]] = list(whole["images"])
            categories = list(whole.get("categories", ()))
            annotations = list(whole.get("annotations", ()))
        if not self._images:
            raise InputError(f"{given}: its list of images is empty")
        self._sizes = self._read_sizes()
        self._objects = self._read_objects(self._names(categories), annotations)
        here, above = self._file.parent, self._file.parent.resolve().parent
        self._folders = [
            here,
            here / "images",
            *(above / name for name in ("images", "train2017", "val2017")),
        ]
        self.total = len(self._images)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one whose file is not found, or not within the folders, says so."""
        unique = UniqueIds()
        for image in self._images:
            given, objects = str(image["file_name"]), tuple(self._objects[image["id"]])
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
        sizes = {}
        for index, image in enumerate(self._images):
            with parsing(f"{self._file}: images[{index}]"):
                _ = image["file_name"]
                size = int(image.get("width") or 0), int(image.get("height") or 0)
                sizes[image["id"]] = size if min(size) > 0 else None
        return sizes

    def _names(self, categories: list[Mapping[str, Any]]) -> dict[object, str]:
        names = {}
        for index, category in enumerate(categories):
            with parsing(f"{self._file}: categories[{index}]"):
                names[category["id"]] = printable(str(category["name"]))
        return names

    def _read_objects(
        self, names: Mapping[object, str], annotations: list[Mapping[str, Any]]
    ) -> defaultdict[object, list[Annotation]]:
        objects: defaultdict[object, list[Annotation]] = defaultdict(list)
        ids: defaultdict[object, UniqueIds] = defaultdict(UniqueIds)
        for index, entry in enumerate(annotations):
            with parsing(f"{self._file}: annotations[{index}]"):
                image = entry["image_id"]
                if entry.get("iscrowd") or image not in self._sizes:
                    continue
                left, top, width, height = entry["bbox"]
                box = pixel_box((left, top, left + width, top + height), self._sizes[image])
                if box and width > 0 and height > 0:
                    name = ids[image](str(entry.get("id", index)))
                    objects[image].append(_annotation(name, names[entry["category_id"]], box, entry))
        return objects


def _annotation(name: str, label: str, box: Box, entry: Mapping[str, Any]) -> Annotation:
    given = entry.get("segmentation")
    polygons = [_outline(flat) for flat in given if len(flat) >= 6] if isinstance(given, list) else []
    outline = max(polygons, key=polygon_area, default=())
    area = entry.get("area")
    return Annotation(name, label, box, box_area(box) if area is None else finite(area), outline)


def _outline(flat: list[float]) -> Outline:
    return points(list(zip(flat[::2], flat[1::2], strict=True)))
