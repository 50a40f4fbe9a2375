"""A tree of folders with images in it."""

import posixpath
from collections.abc import Iterator
from pathlib import Path

from pixvec._errors import InputError
from pixvec._image_files import IMAGE_SUFFIXES, files_under, why_not_image
from pixvec._omissions import Omissions, lines, printable
from pixvec.dataset._pictures import Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, file_picture

_LISTS = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Folder:
    """The images below a folder, sorted by path; an image's label is the name of the folder that holds it."""

    kind = "folder"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._root, self._options = Path(given), options
        self.omissions = Omissions()
        self._names = files_under(self._root, self.omissions, _why_not_image)
        if not self._names:
            suffixes = " ".join(sorted(IMAGE_SUFFIXES))
            said = f"{given}: no images below this folder; images are {suffixes}"
            raise InputError("; ".join([said, *lines(self.omissions.all())]))
        self.total = len(self._names)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image."""
        unique = UniqueIds()
        for name in self._names:
            label = posixpath.basename(posixpath.dirname(name))
            yield file_picture(unique(name), self._root / name, self._options, printable(label) or None)


def _why_not_image(name: str) -> str | None:
    if name.lower() in _LISTS:
        return "a list of the images: give it in place of the folder to take its classes"
    if name.lower().endswith(_TABLES):
        return "a table: if it lists the images, give it in place of the folder to take its classes"
    return why_not_image(name)
