"""A list of images in a csv, tsv or jsonl file."""

import csv
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from pixvec._errors import InputError
from pixvec._image_files import is_image
from pixvec._omissions import Omissions
from pixvec.dataset._pictures import Picture, SourceOptions

from ._common import NO_COLOURS, UniqueIds, named_picture
from ._csv_columns import SAMPLE_ROWS, find_columns
from ._foreign import BrokenError, label_text, parsing, tolerating

_JSON_LINES = (".jsonl", ".ndjson")


class Csv:
    """A row an image: `label,path` without a header, or columns that a header or the options name.

    The first row is a header when a cell is the name that an option gives; or when none of its cells looks
    like an image's path, and one is a usual name of the path column (path, file_name, image, url and the
    like) or all cells below one look like paths. The path column is the one that the option names, by name
    or by index from 0; else one with a usual name; else the only one whose cells are files or look like
    paths; else, without a header, the only one there is. Where that does not tell, the option is asked for.

    Cells are divided by tabs in a .tsv file; else by commas, or by semicolons, tabs or bars where the first
    row has these and no comma outside of quotes. Lines before the first row that begin with # are skipped.
    In a .jsonl file each line is an object, whose names are the header. Paths are relative to the file's
    folder and may be URLs. A path that comes again is an image of its own, as each row of the file is: its
    id is `path#2`.
    """

    kind = "csv"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._file, self._options, self.omissions = Path(given), options, Omissions()
        self._is_json = self._file.suffix.lower() in _JSON_LINES
        self._names = self._names_in_json() if self._is_json else []
        self._delimiter = "" if self._is_json else self._divider()
        self._columns()
        self._before = self.omissions.copy()
        self.total = sum(1 for _ in self._rows())  # and a bad row is known before work begins
        if not self.total:
            raise InputError(f"{given}: it lists no images; a row is label,path")

    def pictures(self) -> Iterator[Picture]:
        """Yield the image of each row."""
        unique = UniqueIds()
        self.omissions = self._before.copy()
        for path, label in self._rows():
            yield named_picture(unique(path), path, self._file.parent, self._options, label)

    def _columns(self) -> None:
        first = [cells for _, cells in islice(self._lines(self._delimiter), SAMPLE_ROWS + 1)]
        if not first:
            raise InputError(f"{self._file}: it lists no images; a row is label,path")
        found = find_columns(first, self._options, self._file, has_header=self._is_json)
        self._has_header, self._path_at, self._label_at = found.has_header, found.path, found.label
        if found.unused:
            reason = "no name tells which column is the class: --label-column takes one"
            self.omissions.add("column", reason, ", ".join(found.unused), len(found.unused))

    def _rows(self) -> Iterator[tuple[str, str | None]]:
        label_name = None if self._label_at is None else dict(enumerate(self._names)).get(self._label_at)
        lines = self._lines(self._delimiter, label_name)
        for line, cells in islice(lines, int(self._has_header), None):
            yield self._row(line, cells, self._path_at, self._label_at)

    def _divider(self) -> str:
        if self._file.suffix.lower() == ".tsv":
            return "\t"
        for mark in ",;\t|":
            with suppress(BrokenError):  # reading the whole says so, if it is none of these
                _, first = next(self._lines(mark), (0, []))
                if len(first) > 1:
                    return mark
        return ","

    def _names_in_json(self) -> list[str]:
        return list(dict.fromkeys(name for _, row in self._objects() for name in row))

    def _objects(self) -> Iterator[tuple[int, dict[str, object]]]:
        with parsing(str(self._file)), self._file.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    with parsing(f"{self._file}: line {number}"):
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise TypeError(f"it holds a {type(row).__name__}; it must hold an object, {{…}}")
                    yield number, row

    def _lines(self, delimiter: str, label_name: str | None = None) -> Iterator[tuple[int, list[str]]]:
        """Yield each line's number and cells. A value of `label_name` that is no label is left out."""
        if not self._is_json:
            yield from self._cells(delimiter)
            return
        if self._names:
            yield 0, self._names
        for number, row in self._objects():
            cells = {name: _cell(row.get(name)) for name in self._names}
            if label_name is not None:
                with tolerating(self.omissions, "label", f"{self._file.name}: line {number}"):
                    cells[label_name] = label_text(row.get(label_name)) or ""
            yield number, list(cells.values())

    def _cells(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        begun = False
        with parsing(str(self._file)), self._file.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            try:
                for cells in rows:
                    if any(cell.strip() for cell in cells) and (begun or not _is_comment(cells)):
                        begun = True
                        yield rows.line_num, cells
            except csv.Error as error:
                raise BrokenError(f"{self._file}: line {rows.line_num}: {error}") from error
            except UnicodeDecodeError as error:
                why = f"after line {rows.line_num}: it is not UTF-8: save it as that"
                raise BrokenError(f"{self._file}: {why}") from error

    def _row(self, line: int, cells: list[str], path_at: int, label_at: int | None) -> tuple[str, str | None]:
        if len(cells) <= max(path_at, label_at or 0):
            label = "" if label_at is None else f", the label in {label_at}"
            raise BrokenError(
                f"{self._file}: line {line}: {len(cells)} columns, counted from 0; the path is in column "
                f"{path_at}{label}"
            )
        if not cells[path_at].strip():
            raise BrokenError(f"{self._file}: line {line}: its path is empty")
        return cells[path_at].strip(), None if label_at is None else label_text(cells[label_at].strip())


def _is_comment(cells: list[str]) -> bool:
    return cells[0].lstrip().startswith("#") and not any(map(is_image, cells))


def _cell(value: object) -> str:
    """Return a value of JSON as a table has it; empty for what is no text, number or truth."""
    return (label_text(value) or "") if isinstance(value, str | int | float) else ""
