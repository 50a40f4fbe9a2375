"""A COCO file of instances."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pixvec._omissions import Omissions, printable
from pixvec._rows import without_path
from pixvec.dataset._pictures import Picture, SourceOptions

from ._coco_objects import ById, Marked, Objects
from ._common import NO_COLOURS, UniqueIds, broken_picture, file_picture, named_picture
from ._foreign import BrokenError, OddError, inside, listed, load_json, parsing, short, tolerating

_MAX_NAMED = 6
_URLS = ("coco_url", "flickr_url", "url")


@dataclass(frozen=True, slots=True)
class _Image:
    """An entry of `images`. url: where it is fetched from if there is no file of its name, or empty."""

    name: str
    url: str
    marked: Marked


@dataclass(frozen=True, slots=True)
class _NoImage:
    """An entry of `images` that names none. name: its place in the file."""

    name: str
    why: str


class Coco:
    """The images of a COCO JSON in its order, with its objects but crowds.

    An image is looked for by its file_name, whose backslashes may mean slashes: beside the JSON and in
    `images` and `data` there; then in the folder above, in the folders there and in its `images` that are
    named as the JSON's own name ends (`instances_val2014.json` has `val2014`), and in `images` and `data`; at
    last in `train2017` and `val2017` and in all folders of `images`, where it must not be found twice. Only
    an entry without a file_name is fetched by its URL. Boxes become whole pixels that cover them, within the
    image. The outline is the largest polygon of a segmentation, and the box is that of the polygons where
    there is no bbox. An area that is missing, 0 or no number is the box's.

    Ids of images and categories are found whether they are numbers or texts. A file without categories has
    the ids as classes. What cannot be used is left out and counted in `omissions`; the image stays.
    """

    kind = "coco"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._file, self._options, self.omissions = Path(given), options, Omissions()
        whole = load_json(self._file)
        with parsing(given):
            entries = listed(whole, "images")
        if not entries:
            raise BrokenError(f"{given}: its list of images is empty")
        self._by_id: ById[Marked] = ById()
        self._images = [image for entry in enumerate(entries) if (image := self._image(*entry))]
        if not any(isinstance(image, _Image) for image in self._images):
            told = (f"{image.name}: {image.why}" for image in self._images if isinstance(image, _NoImage))
            raise BrokenError(f"{given}: {next(told)}")
        objects = Objects(self._by_id, self._list(whole, "categories"), self.omissions, self._file.name)
        objects.add(self._list(whole, "annotations"))
        self._first, self._last = self._folders()
        self.total = len(self._images)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one whose file is not found, or not within the folders, says so."""
        unique = UniqueIds()
        for image in self._images:
            if isinstance(image, _NoImage):
                yield broken_picture(unique(image.name), str(self._file), image.why)
            else:
                yield self._picture(image, unique(image.name))

    def _picture(self, image: _Image, name: str) -> Picture:
        objects = tuple(image.marked.objects)
        try:
            return file_picture(name, self._find(image.name), self._options, objects=objects)
        except BrokenError as error:
            if image.url:
                return named_picture(name, image.url, self._file.parent, self._options, objects=objects)
            why = without_path(error, printable(image.name))
            return broken_picture(name, image.name, why, objects=objects)

    def _find(self, given: str) -> Path:
        with parsing(given):
            names = dict.fromkeys((given, given.replace("\\", "/")))
            first = (inside(folder, name) for name in names for folder in self._first)
            if found := next((path for path in first if path.is_file()), None):
                return found
            last = [inside(folder, name) for name in names for folder in self._last]
            match [path for path in last if path.is_file()]:
                case [only]:
                    return only
                case []:
                    raise FileNotFoundError(f"no such file in {self._searched()}")
                case several:
                    told = ", ".join(map(str, several[:4]))
                    raise ValueError(f"which file is meant? Put the folder before the file_name: {told}")

    def _searched(self) -> str:
        """Return the folders that an image was looked for in, as seen from the file's own."""
        here, above = self._file.parent, self._file.parent.resolve().parent
        folders = [folder for folder in (*self._first[1:], *self._last) if folder.is_dir()]
        names = [
            str(folder.relative_to(here))
            if folder.is_relative_to(here)
            else f"../{folder.relative_to(above).as_posix()}".removesuffix("/.")
            for folder in folders
        ]
        more = [f"{len(names) - _MAX_NAMED} more"] if len(names) > _MAX_NAMED else []
        return ", ".join([f"the folder of {self._file.name}", *names[:_MAX_NAMED], *more])

    def _folders(self) -> tuple[list[Path], list[Path]]:
        """Return the folders of which the first with a file is taken, and those where it must be unique."""
        here, above = self._file.parent, self._file.parent.resolve().parent
        end = self._file.stem.rpartition("_")[2]
        images = here / "images", above / "images"
        first = [here, images[0], here / "data", images[0] / end, above / end]
        first += [images[1] / end, images[1], above / "data", above]
        with parsing(str(self._file)):
            parts = (part for folder in images if folder.is_dir() for part in sorted(folder.iterdir()))
            others = [part for part in parts if part.is_dir() and not part.name.startswith(".")]
        last = [above / "train2017", above / "val2017", *others]
        return first, [folder for folder in dict.fromkeys(last) if folder not in first]

    def _image(self, index: int, entry: Any) -> _Image | _NoImage | None:  # noqa: ANN401 - whatever JSON holds
        """Return an image, or why an entry is none; None for one that repeats another."""
        where = f"images[{index}]"
        if not isinstance(entry, dict):
            return _NoImage(where, f"it is {short(entry)}; it must be an object, {{…}}")
        url = next((entry[name] for name in _URLS if isinstance(entry.get(name), str)), "")
        given = entry.get("file_name")
        name = given if given or not url else unquote(urlsplit(url).path).rpartition("/")[2] or url
        if "file_name" not in entry and not url:
            return _NoImage(where, "it has no 'file_name'")
        if name == "":
            return _NoImage(where, "its file_name is empty")
        if not isinstance(name, str):
            return _NoImage(where, f"its file_name is {short(name)}; it must be a text")
        image = _Image(name, "" if given else url, Marked(name, _size(entry)))
        return image if self._is_new(index, entry, image.marked) else None

    def _is_new(self, index: int, entry: Mapping[str, Any], image: Marked) -> bool:
        """Make an image known by its id, and tell whether it is another one than those before it."""
        with tolerating(self.omissions, "image id", f"{self._file.name}: images[{index}]"):
            if entry.get("id") is None:
                raise OddError("it has no id, so that no annotation can refer to it", image.name)
            known = self._by_id.add(entry["id"], image)
            if known is not image and known.name != image.name:
                known.is_shared = True
                raise OddError("its id is that of another image", f"id {short(entry['id'])}, {image.name}")
            if known is not image:
                self.omissions.add("image entry", "it repeats one before it", image.name)
                return False
        return True

    def _list(self, whole: Mapping[str, Any], name: str) -> list[Any]:
        if name in whole:
            with tolerating(self.omissions, f"list of {name}", self._file.name):
                return listed(whole, name)
        return []


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return width and height; None where either is missing or is no size."""
    sides = entry.get("width"), entry.get("height")
    if all(isinstance(side, int | float) and math.isfinite(side) and side >= 1 for side in sides):
        return int(sides[0]), int(sides[1])  # type: ignore[arg-type] # both are numbers
    return None
