"""A list of images in a csv or tsv file."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from pixvec._errors import InputError
from pixvec.dataset._pictures import Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, is_image, named_picture
from ._foreign import LABEL_COLUMNS, PATH_COLUMNS, BrokenError, label_text, parsing


class Csv:
    """A row an image: `label,path` without a header, or columns that a header or the options name.

    The first row is a header when one of its cells is a usual name of the path column (path, file, filename,
    image, uri) and none that of an image's file, or when a cell is the name that an option gives; an option
    may also give an index from 0. A single column is the path's. Cells are divided by tabs in a .tsv file;
    else by commas, or by semicolons or tabs where the first row has these and no comma outside of quotes.
    Paths are relative to the file's folder and may be URLs. A path that comes again is an image of its own,
    as each row of the file is: its id is `path#2`.
    """

    kind = "csv"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._file, self._options = Path(given), options
        self._delimiter = self._divider()
        self.total = sum(1 for _ in self._rows())  # and a bad row is known before work begins
        if not self.total:
            raise InputError(f"{given}: it lists no images; a row is label,path")

    def pictures(self) -> Iterator[Picture]:
        """Yield the image of each row."""
        unique = UniqueIds()
        for path, label in self._rows():
            yield named_picture(unique(path), path, self._file.parent, self._options, label)

    def _rows(self) -> Iterator[tuple[str, str | None]]:
        lines = self._lines(self._delimiter)
        line, first = next(lines, (0, []))
        header = self._header(first)
        path_at, label_at = self._columns(header, len(first))
        if not header and first:
            yield self._row(line, first, path_at, label_at)
        for line, cells in lines:
            yield self._row(line, cells, path_at, label_at)

    def _divider(self) -> str:
        if self._file.suffix.lower() == ".tsv":
            return "\t"
        for mark in ",;\t":
            with suppress(BrokenError):  # reading the whole says so, if it is none of these
                _, first = next(self._lines(mark), (0, []))
                if len(first) > 1:
                    return mark
        return ","

    def _lines(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        with parsing(str(self._file)), self._file.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                for cells in rows:
                    if any(cell.strip() for cell in cells):
                        yield rows.line_num, cells
            except csv.Error as error:
                raise BrokenError(f"{self._file}: line {rows.line_num}: {error}") from error
            except UnicodeDecodeError as error:
                why = f"after line {rows.line_num}: it is not UTF-8: save it as that"
                raise BrokenError(f"{self._file}: {why}") from error

    def _header(self, first: Sequence[str]) -> list[str]:
        cells = [cell.strip().lower() for cell in first]
        given = (self._options.path_column, self._options.label_column)
        told = {name.lower() for name in given if name and not name.isdecimal()}
        usual = not any(map(is_image, cells)) and set(PATH_COLUMNS).intersection(cells)
        return cells if usual or told.intersection(cells) else []

    def _columns(self, header: list[str], width: int) -> tuple[int, int | None]:
        path_at = self._column("path_column", self._options.path_column, PATH_COLUMNS, header)
        label_at = self._column("label_column", self._options.label_column, LABEL_COLUMNS, header)
        if header:
            if path_at is None:
                raise InputError(f"{self._file}: which of its columns {header} is the path? Give path_column")
            return path_at, label_at
        if path_at is None:
            path_at = 1 if width > 1 and label_at != 1 else 0
        if label_at is None and width > 1:
            label_at = 1 - path_at if path_at < 2 else None
        return path_at, label_at

    def _column(self, option: str, given: str | None, usual: Sequence[str], header: list[str]) -> int | None:
        if given is None:
            return next((header.index(name) for name in usual if name in header), None)
        if given.lower() in header:
            return header.index(given.lower())
        if given.isdecimal():
            return int(given)
        raise InputError(f"{self._file}: {option} is {given!r}, and its columns are {header or 'not named'}")

    def _row(self, line: int, cells: list[str], path_at: int, label_at: int | None) -> tuple[str, str | None]:
        if len(cells) <= max(path_at, label_at or 0):
            raise BrokenError(
                f"{self._file}: line {line}: {len(cells)} columns, counted from 0; the path is in column "
                f"{path_at}, the label in {label_at}"
            )
        if not cells[path_at].strip():
            raise BrokenError(f"{self._file}: line {line}: its path is empty")
        return cells[path_at].strip(), None if label_at is None else label_text(cells[label_at].strip())
