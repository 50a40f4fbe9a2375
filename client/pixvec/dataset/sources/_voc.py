"""A folder in the form of Pascal VOC."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from pixvec._errors import InputError
from pixvec._sources import printable
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, broken_picture, file_picture, files_under, is_image
from ._foreign import BrokenError, parsing
from ._shapes import box_area, pixel_box

_MOST_XML_BYTES = 8 << 20


class Voc:
    """The images of JPEGImages, sorted, with the objects of the file of the same name in Annotations.

    VOC counts pixels from 1 and includes the last: its 1..10 are 0 to 10 here. An image needs no annotation.
    """

    kind = "voc"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._root, self._options = Path(given), options
        self._names = files_under(self._root / "JPEGImages", is_image)
        if not self._names:
            raise InputError(f"{given}: no images in its JPEGImages folder")
        self.total = len(self._names)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one whose annotation cannot be read says so."""
        unique = UniqueIds()
        for name in self._names:
            path, shown = self._root / "JPEGImages" / name, unique(name)
            annotation = (self._root / "Annotations" / name).with_suffix(".xml")
            try:
                objects = _objects(annotation) if annotation.is_file() else ()
                yield file_picture(shown, path, self._options, objects=objects)
            except BrokenError as error:
                yield broken_picture(shown, str(path), error.message)


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
    return tuple(marked for marked in found if marked)


def _parsed(file: Path) -> ET.Element:
    with file.open("rb") as opened:
        data = opened.read(_MOST_XML_BYTES + 1)
    if len(data) > _MOST_XML_BYTES:
        raise ValueError(f"more than {_MOST_XML_BYTES} bytes")
    try:
        return ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))  # noqa: S314 - without a DOCTYPE
    except ET.ParseError as error:
        raise ValueError(str(error)) from error


def _object(entry: ET.Element, name: str, size: tuple[int, int] | None) -> Annotation | None:
    label = entry.findtext("name")
    if not label:
        raise KeyError("name")
    left, top, right, bottom = (_number(entry, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
    box = pixel_box((left - 1, top - 1, right, bottom), size)
    return Annotation(name, printable(label.strip()), box, box_area(box)) if box else None


def _number(entry: ET.Element, path: str) -> float:
    text = entry.findtext(path)
    if text is None and path.startswith("size/"):
        return 0.0
    if text is None:
        raise KeyError(path)
    return float(text)
