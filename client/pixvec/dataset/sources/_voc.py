"""A folder in the form of Pascal VOC."""

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from pixvec._errors import InputError
from pixvec._image_files import NOT_AN_IMAGE, files_under
from pixvec._omissions import Omissions, lines, printable
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, broken_picture, file_picture
from ._foreign import OddError, inside, parsing, tolerating
from ._shapes import box_area, marked, pixel_box

_MOST_XML_BYTES = 8 << 20
_IMAGES, _ANNOTATIONS = ("JPEGImages", "images", "Images"), ("Annotations", "annotations")


class Voc:
    """The images of JPEGImages, sorted, with the objects of the file of the same name in Annotations.

    Folders named `images` and `annotations` are read in the same way. VOC counts pixels from 1 and includes
    the last: its 1..10 are 0 to 10 here. An image needs no annotation; one that cannot be used is left out
    and counted in `omissions`, file by file and object by object, and the image stays. `splits` names lists
    of ImageSets/Main, such as trainval, whose images are taken; of a class's list, such as cat_train, those
    that have the class.
    """

    kind = "voc"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._root, self._options = Path(given), options
        self._images, self._annotations = folders_of_voc(self._root) or (
            self._root / _IMAGES[0],
            self._root / _ANNOTATIONS[0],
        )
        self._before = Omissions()
        self._names = files_under(self._images, self._before)
        if not self._names:
            said = f"{given}: no images in its {self._images.name} folder"
            raise InputError("; ".join([said, *lines(self._before.all())]))
        there, self._gone = list(self._names), list[str]()
        if options.splits:
            self._choose(options.splits)
        self._count_annotations_without_image([*there, *self._gone])
        self.total = len(self._names) + len(self._gone)
        self.omissions = self._before.copy()

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one that is listed and not there, or whose annotation cannot be read, says so."""
        unique = UniqueIds()
        self.omissions = self._before.copy()
        for name in self._names:
            objects = self._objects(name)
            yield file_picture(unique(name), self._images / name, self._options, objects=objects)
        for name in self._gone:
            path, objects = self._images / name, self._objects(name)
            why = f"{path}: a list of ImageSets names it; it is not there"
            yield broken_picture(unique(name), str(path), why, objects=objects)

    def _objects(self, image: str) -> tuple[Annotation, ...]:
        found: list[Annotation] = []
        file = (self._annotations / image).with_suffix(".xml")
        if not file.is_file():
            return ()
        with tolerating(self.omissions, "annotation file", file.name):
            with parsing(str(file)):
                root = _parsed(file)
            size = _size(root)
            for index, entry in enumerate(root.findall("object")):
                with tolerating(self.omissions, "annotation", f"{file.name}: object {index}"):
                    found.append(_object(entry, str(index), size))
        return tuple(found)

    def _count_annotations_without_image(self, images: list[str]) -> None:
        if self._annotations.is_dir():
            known = {str(PurePosixPath(name).with_suffix("")) for name in images}
            for name in files_under(self._annotations, Omissions(), _why_not_xml):
                if name.removesuffix(name[-4:]) not in known:
                    self._before.add("annotation file", "it has no image of its name", name)

    def _choose(self, splits: tuple[str, ...]) -> None:
        there = {name: str(PurePosixPath(name).with_suffix("")) for name in self._names}
        known = frozenset(there.values())
        chosen = {name for split in splits for name in self._listed(split, known)}
        self._names = [name for name in self._names if there[name] in chosen]
        self._gone = [f"{name}.jpg" for name in sorted(chosen - known)]
        if not chosen:
            raise InputError(f"{self._root}: the lists {', '.join(splits)} of ImageSets/Main name no image")

    def _listed(self, split: str, images: AbstractSet[str]) -> Iterator[str]:
        folder = self._root / "ImageSets" / "Main"
        with parsing(f"{self._root}: splits"):
            file = inside(folder, f"{split}.txt")
            if not file.is_file():
                lists = ", ".join(sorted(one.stem for one in folder.glob("*.txt")))
                raise ValueError(f"ImageSets/Main has no list {split!r}; it has {lists or 'none'}")
        with parsing(str(file)):
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                if line.strip() in images:  # or a space in a name would part it
                    yield line.strip()
                    continue
                match line.split():
                    case [name] | [name, "1" | "0"]:  # 0: has the class, but is hard to tell
                        yield name
                    case [_, "-1"] | []:
                        pass
                    case _:
                        raise ValueError(f"its line {line[:80]!r} must be a name, or a name and 1, 0 or -1")


def folders_of_voc(root: Path) -> tuple[Path, Path] | None:
    """Return the folders of the images and of the annotations; None where they are not VOC's."""
    images = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
    annotations = next((root / name for name in _ANNOTATIONS if (root / name).is_dir()), None)
    if images is None or annotations is None:
        return None
    if images.name == _IMAGES[0] or next(annotations.glob("*.xml"), None):
        return images, annotations
    return None


def _why_not_xml(name: str) -> str | None:
    return None if name.lower().endswith(".xml") else NOT_AN_IMAGE


class _NoDoctype(ET.TreeBuilder):
    """Refuses what could declare entities, which may stand for other files or for gigabytes."""

    def doctype(self, _name: str, _pubid: str | None, _system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which is refused: remove that line")


def _size(root: ET.Element) -> tuple[int, int] | None:
    """Return width and height; None where either is missing or is no size."""
    try:
        size = int(float(root.findtext("size/width") or 0)), int(float(root.findtext("size/height") or 0))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _parsed(file: Path) -> ET.Element:
    with file.open("rb") as opened:
        data = opened.read(_MOST_XML_BYTES + 1)
    if len(data) > _MOST_XML_BYTES:
        raise ValueError(f"more than {_MOST_XML_BYTES} bytes")
    try:
        return ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))  # noqa: S314 - without a DOCTYPE
    except ET.ParseError as error:
        raise ValueError(str(error)) from error


def _object(entry: ET.Element, name: str, size: tuple[int, int] | None) -> Annotation:
    label = (entry.findtext("name") or "").strip()
    if not label:
        raise OddError("it has no name")
    if entry.find("bndbox") is None:
        raise OddError("it has no bndbox")
    left, top, right, bottom = (_number(entry, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
    box = pixel_box((left - 1, top - 1, right, bottom), size)
    return marked(name, printable(label), box, box_area(box) if box else 0.0)


def _number(entry: ET.Element, path: str) -> float:
    text = entry.findtext(path)
    if text is None:
        raise OddError(f"it has no {path}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise OddError(f"its {path} is not a number", repr(text[:80]))
    return number
