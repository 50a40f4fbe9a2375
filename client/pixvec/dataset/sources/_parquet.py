"""Images in Parquet files, by their bytes or by their paths."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixvec._errors import InputError
from pixvec._sources import printable
from pixvec.dataset._pictures import Picture, SourceOptions, bytes_stamp

from ._common import NO_COLOURS, UniqueIds, broken_picture, files_under, named_picture
from ._foreign import LABEL_COLUMNS, PATH_COLUMNS, BrokenError, label_text, parsing

_BATCH_ROWS = 64


class Parquet:
    """A row an image, of a file or of those below a folder, sorted; a row group is read at a time.

    The image is in the column that `path_column` names, else in the first that is binary or a struct with
    `bytes`, else its path or URL is in one of the usual columns (path, file, filename, image, uri). The id is
    the `id` column's, else the path, else `row/000012`, after `file.parquet!` for files in a folder.
    """

    kind = "parquet"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        root, self._options = Path(given), options
        names = files_under(root, _is_parquet) if root.is_dir() else []
        self._files = [(f"{name}!", root / name) for name in names] if root.is_dir() else [("", root)]
        self.total = 0
        for _, path in self._files:
            file = _opened(path)
            _columns(file.schema_arrow, options, path)  # raises before work begins
            self.total += file.metadata.num_rows
        if not self.total:
            raise InputError(f"{given}: no parquet file with a row is there")

    def pictures(self) -> Iterator[Picture]:
        """Yield the image of each row."""
        unique = UniqueIds()
        for prefix, path in self._files:
            file = _opened(path)
            columns = _columns(file.schema_arrow, self._options, path)
            for index, row in enumerate(_rows(file, columns, path)):
                yield self._picture(f"{prefix}row/{index:06d}", path, row, unique)

    def _picture(self, place: str, file: Path, row: Mapping[str, Any], unique: UniqueIds) -> Picture:
        image = row["image"]
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if isinstance(data, str):
            data, path = None, data
        given = row.get("id")
        name = unique(str((path or place) if given is None else given))
        uri = printable(f"{file}#{place.rpartition('!')[2]}")
        try:
            with parsing(uri):
                label = label_text(row.get("label"))
        except BrokenError as error:
            return broken_picture(name, uri, error.message)
        if isinstance(data, bytes):
            return Picture(name, uri, bytes_stamp(data), lambda: data, label)
        if isinstance(path, str):
            return named_picture(name, path, file.parent, self._options, label)
        return broken_picture(name, uri, f"{uri}: neither bytes nor a path")


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _opened(path: Path) -> Any:  # noqa: ANN401 - pyarrow ships no types
    try:
        from pyarrow import parquet  # noqa: PLC0415 - only this kind needs it
    except ImportError as error:
        raise InputError("parquet files need pyarrow: pip install 'pixvec[parquet]'") from error
    with parsing(str(path)):
        return parquet.ParquetFile(path)


def _rows(file: Any, columns: Mapping[str, str], path: Path) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    for group in range(file.num_row_groups):
        with parsing(f"{path}: row group {group}"):
            wanted = list(dict.fromkeys(columns.values()))
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    yield {role: row[column] for role, column in columns.items()}


def _columns(schema: Any, options: SourceOptions, path: Path) -> dict[str, str]:  # noqa: ANN401
    """Return the columns of the image, the label and the id, by these words."""
    names: list[str] = schema.names
    image = _named("path_column", options.path_column, names, path)
    if image is None:
        image = next(
            (field.name for field in schema if _holds_bytes(field.type)), _usual(PATH_COLUMNS, names)
        )
    if image is None:
        raise InputError(f"{path}: which of its columns {names} holds the image? Give path_column")
    label = _named("label_column", options.label_column, names, path) or _usual(LABEL_COLUMNS, names)
    found = {"image": image, "label": label, "id": _usual(("id",), names)}
    return {role: column for role, column in found.items() if column is not None}


def _named(option: str, given: str | None, names: Sequence[str], path: Path) -> str | None:
    if given is None or given in names:
        return given
    if given.isdecimal() and int(given) < len(names):
        return names[int(given)]
    raise InputError(f"{path}: {option} is {given!r}, and its columns are {', '.join(names)}")


def _usual(usual: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401
    from pyarrow import types  # noqa: PLC0415

    if types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
