"""A dataset's folder: `embeddings.parquet`, `dataset.json`, and the parts of a run that is not finished.

Every file appears under its name when it is whole and on disk. A run writes its rows in parts, so that one
that is killed loses no more than its last part; at its end the parts become the dataset.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array

from ._rows import Key, Row

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise InputError("datasets need pyarrow: pip install 'pixvec[dataset]'") from error

TABLE, ABOUT, PARTS, LOCK = "embeddings.parquet", "dataset.json", "parts", ".lock"
FORMAT = 1
_GROUP_ROWS = 4096
_TEXTS = ("uri", "class", "made", "status", "reason", "build")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's vector lies: the file, by its index, and the row in it."""

    file: int
    row: int


@dataclass(frozen=True, slots=True)
class Known:
    """A row of an earlier run or part, without its vector."""

    row: Row
    place: Place


class Store:
    """The folder of one dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[Path] = []
        self._vectors: dict[int, Array] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out. Raises InputError when there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as lock:
            if not _lock(lock.fileno()):
                raise InputError(f"another run is writing {self.folder}: wait for it, or end it")
            yield

    def about(self) -> dict[str, Any]:
        """Return what dataset.json holds; empty when there is none yet. Raises InputError."""
        file = self.folder / ABOUT
        if not file.exists():
            return {}
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not JSON: {error}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise InputError(f"{file} is not of format {FORMAT}: it was made by another version of pixvec")
        return about

    def known(self) -> dict[Key, Known]:
        """Return every row there is, those of parts in place of the dataset's own. Raises InputError."""
        for draft in self._drafts():
            draft.unlink()
        found: dict[Key, Known] = {}
        for file in [*([self.table] if self.table.exists() else []), *self._parts()]:
            index = len(self._files)
            self._files.append(file)
            for i, row in enumerate(_read_rows(file)):
                found[row.key] = Known(row, Place(index, i))
        return found

    @property
    def unfinished(self) -> bool:
        """Whether there are parts that the dataset does not hold yet, or no dataset."""
        return bool(self._parts()) or not self.table.exists()

    @property
    def table(self) -> Path:
        """The file of the rows."""
        return self.folder / TABLE

    def add_part(self, rows: Sequence[Row], size: int) -> list[Place]:
        """Write rows, whose vectors are of `size` numbers, as a part; return where they are."""
        folder = self.folder / PARTS
        folder.mkdir(exist_ok=True)
        last = self._parts()
        number = int(last[-1].stem) + 1 if last else 0
        file = folder / f"{number:06}.parquet"
        with whole(file) as draft, _writer(draft, _schema(size, {})) as writer:
            writer.write_table(_as_table(rows, [row.vector for row in rows], writer.schema))
        self._files.append(file)
        return [Place(len(self._files) - 1, i) for i in range(len(rows))]

    def finish(self, rows: Sequence[tuple[Row, Place | None]], about: dict[str, Any], size: int) -> None:
        """Make the dataset of these rows, in this order, whose vectors lie in the files so far."""
        schema = _schema(size, about)
        with whole(self.table) as draft, _writer(draft, schema) as writer:
            for start in range(0, len(rows), _GROUP_ROWS):
                group = rows[start : start + _GROUP_ROWS]
                vectors = [self._vector(row, place) for row, place in group]
                writer.write_table(_as_table([row for row, _ in group], vectors, schema))
        with whole(self.folder / ABOUT) as draft:
            draft.write_text(json.dumps({"format": FORMAT, **about}, indent=2) + "\n", encoding="utf-8")
        self.forget_parts()

    def forget_parts(self) -> None:
        """Delete the parts."""
        for part in self._parts():
            part.unlink()
        if (self.folder / PARTS).is_dir():
            (self.folder / PARTS).rmdir()

    def _vector(self, row: Row, place: Place | None) -> Array | None:
        if row.status != "ok" or place is None:
            return None
        vector: Array = self._of(place.file)[place.row]
        return vector

    def _of(self, file: int) -> Array:
        if file not in self._vectors:
            self._vectors[file] = read_vectors(self._files[file])
        return self._vectors[file]

    def _parts(self) -> list[Path]:
        return sorted((self.folder / PARTS).glob("[0-9]*.parquet"))

    def _drafts(self) -> list[Path]:
        return [*self.folder.glob("*.tmp"), *(self.folder / PARTS).glob("*.tmp")]


def read_vectors(file: Path) -> Array:
    """Return the vectors of a dataset's file, (N, D) float32; NaN where a row has none."""
    column = pq.read_table(file, columns=["vector"], memory_map=True).column("vector").combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a dataset's file, without their vectors. Raises InputError."""
    return list(_read_rows(file))


def _read_rows(file: Path) -> Iterator[Row]:
    columns = [name for name in _schema(1, {}).names if name != "vector"]
    try:
        cells = pq.read_table(file, columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a dataset's file: {error}") from error
    for cell in cells:
        box = tuple(cell.pop(edge) for edge in ("left", "top", "right", "bottom"))
        flat = cell.pop("outline") or []
        outline = tuple(zip(flat[::2], flat[1::2], strict=True))
        yield Row(label=cell.pop("class"), box=None if box[0] is None else box, outline=outline, **cell)


def _as_table(rows: Sequence[Row], vectors: Sequence[Array | None], schema: Any) -> Any:  # noqa: ANN401 - pyarrow ships no types
    size = schema.field("vector").type.list_size
    flat = np.full((len(rows), size), np.nan, np.float32)
    for i, vector in enumerate(vectors):
        if vector is not None:
            flat[i] = vector
    boxes = [row.box or (None,) * 4 for row in rows]
    columns: dict[str, Iterable[Any]] = {
        "class": [row.label for row in rows],
        "outline": [[xy for corner in row.outline for xy in corner] or None for row in rows],
        **{edge: [box[i] for box in boxes] for i, edge in enumerate(("left", "top", "right", "bottom"))},
    }
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), size)
        if field.name == "vector"
        else pa.array(columns.get(field.name) or [getattr(row, field.name) for row in rows], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _schema(size: int, about: dict[str, Any]) -> Any:  # noqa: ANN401 - pyarrow ships no types
    texts = ("id", "uri", "stamp", "made", "object", "class")
    edges = ("left", "top", "right", "bottom")
    fields = [
        *((name, pa.string()) for name in texts),
        *((name, pa.int32()) for name in edges),
        ("outline", pa.list_(pa.float32())),
        *((name, pa.string()) for name in ("status", "reason", "error", "build")),
        # NaN, not null, where a row has no vector: readers of fixed lists stumble over nulls.
        ("vector", pa.list_(pa.float32(), size)),
    ]
    return pa.schema(fields).with_metadata({"pixvec": json.dumps(about)})


def _writer(file: Path, schema: Any) -> Any:  # noqa: ANN401 - pyarrow ships no types
    others = [name for name in schema.names if name != "vector"]
    # In the digits of vectors there is nothing to find twice: to look for it takes as long as to write them.
    return pq.ParquetWriter(
        file,
        schema,
        use_dictionary=list(_TEXTS),
        compression=dict.fromkeys(others, "snappy"),
        write_statistics=others,
    )


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Give a name to write under; the file takes its own when it is whole and on disk."""
    draft = file.with_name(f"{file.name}.tmp")
    try:
        yield draft
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    with draft.open("rb+") as written:
        os.fsync(written.fileno())
    draft.replace(file)
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        folder = os.open(file.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def _lock(descriptor: int) -> bool:
    try:
        import fcntl  # noqa: PLC0415 - not on Windows, where nothing keeps two runs apart
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
