"""Images in Parquet files, by their bytes or by their paths."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pixvec._errors import InputError
from pixvec._image_files import files_under
from pixvec._omissions import Omissions, printable
from pixvec.dataset._pictures import Picture, SourceOptions, bytes_stamp

from ._common import NO_COLOURS, UniqueIds, broken_picture, located, named_picture
from ._foreign import parsing, tolerating
from ._parquet_columns import Columns, columns_of, holds_bytes

_BATCH_ROWS = 64


class Parquet:
    """A row an image, of a file or of those below a folder, sorted; a row group is read at a time.

    The image is in the column that `path_column` names, else in that which Hugging Face's metadata call an
    image, else in the one that is binary or a struct with `bytes`, of several in the one with a usual name
    (image, img, bytes, jpg and the like), else its path or URL is in one of the usual columns (path, file,
    filename, image, uri). A column of bytes of a fixed size is the last choice. A label that is the number of
    a ClassLabel is its name. The id is the `id` column's, else the path, else `row/000012`, after
    `file.parquet!` for files in a folder.
    """

    kind = "parquet"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        root, self._options, self.omissions = Path(given), options, Omissions()
        names = files_under(root, self.omissions, why_not_parquet) if root.is_dir() else []
        self._files = [(f"{name}!", root / name) for name in names] if root.is_dir() else [("", root)]
        self._before = self.omissions.copy()
        self.total = 0
        for _, path in self._files:
            file = _opened(path)
            columns_of(file.schema_arrow, options, path)  # raises before work begins
            self.total += file.metadata.num_rows
        if not self.total:
            raise InputError(f"{given}: no parquet file with a row is there")

    def pictures(self) -> Iterator[Picture]:
        """Yield the image of each row."""
        unique = UniqueIds()
        self.omissions = self._before.copy()
        for prefix, path in self._files:
            file = _opened(path)
            columns = columns_of(file.schema_arrow, self._options, path)
            for index, row in enumerate(_rows(file, columns.by_role, path)):
                yield self._picture(f"{prefix}row/{index:06d}", path, row, columns, unique)

    def _picture(
        self, place: str, file: Path, row: Mapping[str, Any], columns: Columns, unique: UniqueIds
    ) -> Picture:
        image = row["image"]
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if isinstance(data, str):
            data, path = None, data
        given = row.get("id")
        name = unique(str((path or place) if given is None else given))
        uri = printable(f"{located(file)}#{place.rpartition('!')[2]}")
        label = None
        with tolerating(self.omissions, "label", f"{file.name}#{place.rpartition('!')[2]}"):
            label = columns.label(row.get("label"))
        if isinstance(data, bytes):
            return Picture(name, uri, bytes_stamp(data), lambda: data, label)
        if isinstance(path, str):
            return named_picture(name, path, file.parent, self._options, label)
        return broken_picture(name, uri, f"{uri}: neither bytes nor a path")


def is_parquet(name: str) -> bool:
    """Tell by its suffix whether a file is one of Parquet."""
    return name.lower().endswith(".parquet")


def holds_images(file: Path) -> bool:
    """Tell whether a file's columns hold the bytes of images, rather than their paths. Raises InputError."""
    return any(holds_bytes(field.type) for field in _opened(file).schema_arrow)


def why_not_parquet(name: str) -> str | None:
    """Return why a file is not taken for one of Parquet; None: it is one."""
    return None if is_parquet(name) else "it is not a parquet file"


def _opened(path: Path) -> Any:  # noqa: ANN401 - pyarrow ships no types
    try:
        from pyarrow import parquet  # noqa: PLC0415 - only this kind needs it
    except ImportError as error:
        raise InputError("parquet files need pyarrow: pip install 'pixvec[parquet]'") from error
    with parsing(str(path)):
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # a pipe would be waited for
        return parquet.ParquetFile(path)


def _rows(file: Any, columns: Mapping[str, str], path: Path) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    for group in range(file.num_row_groups):
        with parsing(f"{path}: row group {group}"):
            wanted = list(dict.fromkeys(columns.values()))
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    yield {role: row[column] for role, column in columns.items()}
