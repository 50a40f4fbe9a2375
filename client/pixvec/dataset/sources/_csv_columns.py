"""Which columns of a list hold the paths and the classes: by options, by names and by cells."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixvec._errors import InputError
from pixvec._image_files import NO_SUFFIX, NOT_AN_IMAGE, why_not_image
from pixvec.dataset._pictures import SourceOptions

from ._foreign import LABEL_COLUMNS, PATH_COLUMNS

SAMPLE_ROWS = 50
_URL = re.compile(r"(?i)(https?|file)://")
_MAX_LOOKED_UP = 10


@dataclass(frozen=True, slots=True)
class CsvColumns:
    """has_header: whether the first row names columns. unused: columns of which one may be the class."""

    has_header: bool
    path: int
    label: int | None
    unused: tuple[str, ...] = ()


def find_columns(
    rows: Sequence[Sequence[str]], options: SourceOptions, file: Path, *, has_header: bool = False
) -> CsvColumns:
    """Return the columns of a list by its first rows, of which there is at least one.

    has_header: the first row is known to be one. Raises InputError where it takes an option to tell.
    """
    return _Finder(rows, options, file, has_header=has_header).find()


class _Finder:
    def __init__(
        self, rows: Sequence[Sequence[str]], options: SourceOptions, file: Path, *, has_header: bool
    ) -> None:
        self._file, self._options = file, options
        self._width = len(rows[0])
        names = [_normal(cell) for cell in rows[0]]
        self._header = names if has_header or self._is_header(names, rows) else []
        self._rows = rows[1:] if self._header else rows

    def find(self) -> CsvColumns:
        label = self._given("label_column", self._options.label_column)
        path = self._given("path_column", self._options.path_column)
        if path is None:
            path = self._path([i for i in range(self._width) if i != label])
        if label is None:
            label = self._label(path)
        others = [i for i in range(self._width) if i != path] if label is None else []
        return CsvColumns(bool(self._header), path, label, tuple(map(self._name, others)))

    def _is_header(self, names: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
        given = (self._options.path_column, self._options.label_column)
        told = {_normal(name) for name in given if name and not name.isdecimal()}
        if told.intersection(names):
            return True
        if any(map(_looks_like_image, rows[0])):
            return False
        if set(PATH_COLUMNS).intersection(names):
            return True
        below = [_column(rows[1:], i) for i in range(self._width)]
        paths = (i for i, cells in enumerate(below) if cells and all(map(_looks_like_image, cells)))
        return any(not self._is_there(rows[0][i]) for i in paths)

    def _given(self, option: str, given: str | None) -> int | None:
        if given is None:
            return None
        if _normal(given) in self._header:
            return self._header.index(_normal(given))
        if given.isdecimal():
            return int(given)
        raise InputError(
            f"{self._file}: {option} is {given!r}, and its columns are {self._header or 'not named'}"
        )

    def _path(self, columns: Sequence[int]) -> int:
        there = [i for i in columns if self._share(i, self._is_there, _MAX_LOOKED_UP) >= 0.5]
        alike = [i for i in columns if self._share(i, _looks_like_image, SAMPLE_ROWS) >= 0.5]
        usual = (self._header.index(name) for name in PATH_COLUMNS if name in self._header)
        named = [i for i in usual if i in columns]
        if known := [i for i in named if i in there or i in alike]:
            return known[0]
        for found in (there, alike):
            if len(found) == 1:
                return found[0]
        if named:
            return named[0]
        some = [i for i in columns if self._share(i, _looks_like_image, SAMPLE_ROWS)]
        for left in (some, columns):
            if len(left) == 1 and not (self._header or alike):
                return left[0]
        raise InputError(self._which(alike or columns))

    def _which(self, columns: Sequence[int]) -> str:
        names = ", ".join(map(self._name, columns))
        return f"{self._file}: which of its columns {names} is the path? Give path_column (--path-column)"

    def _label(self, path: int) -> int | None:
        named = [self._header.index(name) for name in LABEL_COLUMNS if name in self._header]
        if self._header:
            return next((i for i in named if i != path), None)
        if self._width == 2 or path == 1:
            return 1 - path if path < 2 and self._width > 1 else None
        return None

    def _name(self, column: int) -> str:
        return repr(self._header[column]) if self._header else str(column)

    def _share(self, column: int, test: Callable[[str], bool], rows: int) -> float:
        cells = [cell for cell in _column(self._rows[:rows], column) if cell.strip()]
        return sum(map(test, cells)) / len(cells) if cells else 0.0

    def _is_there(self, cell: str) -> bool:
        try:
            return not _URL.match(cell.strip()) and (self._file.parent / cell.strip()).is_file()
        except (OSError, ValueError):  # no file can have that name
            return False


def _normal(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _column(rows: Sequence[Sequence[str]], column: int) -> list[str]:
    return [row[column] for row in rows if column < len(row)]


def _looks_like_image(cell: str) -> bool:
    cell = cell.strip()
    return bool(_URL.match(cell)) or why_not_image(cell) not in {NOT_AN_IMAGE, NO_SUFFIX}
