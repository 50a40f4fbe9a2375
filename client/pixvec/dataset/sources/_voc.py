"""A folder in the form of Pascal VOC."""

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

from pixvec._errors import InputError
from pixvec._sources import printable
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, broken_picture, file_picture, files_under, is_image
from ._foreign import BrokenError, inside, parsing
from ._shapes import box_area, marked, pixel_box

_MOST_XML_BYTES = 8 << 20


class Voc:
    """The images of JPEGImages, sorted, with the objects of the file of the same name in Annotations.

    VOC counts pixels from 1 and includes the last: its 1..10 are 0 to 10 here. An image needs no annotation.
    `splits` names lists of ImageSets/Main, such as trainval, whose images are taken; of a class's list, such
    as cat_train, those that have the class.
    """

    kind = "voc"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._root, self._options = Path(given), options
        self._names = files_under(self._root / "JPEGImages", is_image)
        if not self._names:
            raise InputError(f"{given}: no images in its JPEGImages folder")
        self._gone: list[str] = []
        if options.splits:
            self._choose(options.splits)
        self.total = len(self._names) + len(self._gone)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one that is listed and not there, or whose annotation cannot be read, says so."""
        unique = UniqueIds()
        for name in self._names:
            path, shown = self._root / "JPEGImages" / name, unique(name)
            annotation = (self._root / "Annotations" / name).with_suffix(".xml")
            try:
                objects = _objects(annotation) if annotation.is_file() else ()
                yield file_picture(shown, path, self._options, objects=objects)
            except BrokenError as error:
                yield broken_picture(shown, str(path), error.message)
        for name in self._gone:
            path = self._root / "JPEGImages" / name
            yield broken_picture(
                unique(name), str(path), f"{path}: a list of ImageSets names it; it is not there"
            )

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


class _NoDoctype(ET.TreeBuilder):
    """Refuses what could declare entities, which may stand for other files or for gigabytes."""

    def doctype(self, _name: str, _pubid: str | None, _system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which is refused: remove that line")


def _objects(file: Path) -> tuple[Annotation, ...]:
    with parsing(str(file)):
        root = _parsed(file)
        size = _number(root, "size/width"), _number(root, "size/height")
        whole = (int(size[0]), int(size[1])) if min(size) > 0 else None
    found = []
    for index, entry in enumerate(root.findall("object")):
        with parsing(f"{file}: object {index}"):
            found.append(_object(entry, str(index), whole))
    return tuple(found)


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
        raise KeyError("name")
    left, top, right, bottom = (_number(entry, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
    box = pixel_box((left - 1, top - 1, right, bottom), size)
    return marked(name, printable(label), box, box_area(box) if box else 0.0)


def _number(entry: ET.Element, path: str) -> float:
    text = entry.findtext(path)
    if text is None and path.startswith("size/"):
        return 0.0
    if text is None:
        raise KeyError(path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"its {path} is {text[:80]!r}; it must be a number")
    return number
