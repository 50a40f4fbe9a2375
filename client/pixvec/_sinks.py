"""Where vectors go: a file whose suffix says its form. It appears under its name only when it is whole.

Memory does not grow with the number of images, but for .npz.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol, TypeAlias

import numpy as np

from ._errors import InternalError
from ._rows import Row, made_how
from ._types import Array, Embedding, Source

_EARLY_BYTES = 1 << 20
CSV_COLUMNS = (
    *("path", "ok", "reason", "error", "width", "height", "format"),
    *("model", "space", "build", "normalized", "encoding", "scale"),
)


class Sink(Protocol):
    """Takes rows, one after the other; `finish` writes what it still holds."""

    def add(self, row: Row) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


# Makes a sink of the files it writes and of the first vector.
Make: TypeAlias = Callable[[Sequence[Path], Embedding], Sink]


def why_unwritable(file: Path) -> str | None:
    """Tell why vectors cannot be saved in a file, before any work is done; None: they can."""
    if file.suffix not in _MAKERS:
        return f"the file must end in one of {', '.join(_MAKERS)}"
    if file.suffix == ".parquet" and find_spec("pyarrow") is None:
        return "a .parquet file needs pyarrow: pip install 'pixvec[parquet]'"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    for one in _files(file):
        if one.is_dir():
            return f"{one} is a folder"
        places = (one, one.parent) if one.exists() else (one.parent,)
        if not all(os.access(place, os.W_OK) for place in places):
            return f"{one} cannot be written"
    return None


@contextmanager
def saving(file: Path) -> Iterator[Sink]:
    """Give a sink for a file of a known suffix, which takes the file's place when all went well.

    When not one row had a vector, what was there stays.
    """
    files = _files(file)
    drafts = [draft(one) for one in files]
    sink = _FromFirst(_MAKERS[file.suffix], drafts)
    with ExitStack() as cleaning:
        for written in drafts:
            cleaning.callback(written.unlink, missing_ok=True)
        cleaning.callback(sink.close)
        yield sink
        sink.finish()
        sink.close()
        if sink.begun:
            for written, final in zip(drafts, files, strict=True):
                written.replace(final)


def draft(file: Path) -> Path:
    """Return the name under which a file is written until it is whole."""
    return file.with_name(f"{file.name}.tmp")


def _files(file: Path) -> list[Path]:
    final = Path(os.path.realpath(file))  # a link stays a link
    return [final, final.with_suffix(".json")] if file.suffix == ".npy" else [final]


class _FromFirst:
    """Opens its sink at the first vector, whose size a file's head tells; failures before it wait on disk."""

    def __init__(self, make: Make, drafts: Sequence[Path]) -> None:
        self._make, self._drafts = make, drafts
        self._early: Any = SpooledTemporaryFile(_EARLY_BYTES, "w+", encoding="utf-8")  # noqa: SIM115 - until close
        self._sink: Sink | None = None
        self._form: tuple[tuple[int, ...], np.dtype[Any]] | None = None

    @property
    def begun(self) -> bool:
        return self._sink is not None

    def add(self, row: Row) -> None:
        if row.embedding is not None:
            self._check(row.embedding.vector)
        if self._sink is None and row.embedding is None:
            failed = row.path, row.source and astuple(row.source), row.reason, row.error
            self._early.write(json.dumps(failed) + "\n")
            return
        if self._sink is None and row.embedding is not None:
            self._sink = self._make(self._drafts, row.embedding)
            self._replay(self._sink)
        if self._sink is not None:
            self._sink.add(row)

    def finish(self) -> None:
        if self._sink is not None:
            self._sink.finish()

    def close(self) -> None:
        self._early.close()
        if self._sink is not None:
            self._sink.close()

    def _check(self, vector: Array) -> None:
        form = vector.shape, vector.dtype
        self._form = self._form or form
        if form != self._form:
            raise InternalError(f"a vector of {form} after vectors of {self._form}: one file holds one form")

    def _replay(self, sink: Sink) -> None:
        self._early.seek(0)
        for line in self._early:
            path, source, reason, error = json.loads(line)
            sink.add(Row(path, None, source and Source(*source), reason, error))


class Held:
    """Keeps rows that have a vector in memory, the first `most` of them, and an item of every row."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self.rows: list[Row] = []
        self.items: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Take a row in."""
        if self._most is None:
            self.items.append(row.item())
        if row.embedding is not None and (self._most is None or len(self.rows) < self._most):
            self.rows.append(row)

    def vectors(self) -> Array:
        """Return the vectors, (N, D); none: (0, 0)."""
        found = [np.asarray(row.embedding.vector) for row in self.rows if row.embedding]
        return np.stack(found) if found else np.empty((0, 0), np.float32)

    def finish(self) -> None:
        """Do nothing: nothing is written."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


class _Npz(Held):
    """All in one file: vectors, paths, origin, encoding, scale, items; written at the end."""

    def __init__(self, drafts: Sequence[Path], first: Embedding) -> None:
        super().__init__()
        [self._file] = drafts
        self._first = first

    def finish(self) -> None:
        how = made_how(self._first)
        with self._file.open("wb") as file:
            np.savez(
                file,
                vectors=self.vectors(),
                paths=np.array([row.path for row in self.rows]),
                origin=json.dumps(how["origin"]),
                items=json.dumps(self.items),
                encoding=how["encoding"],
                scale=np.nan if how["scale"] is None else how["scale"],
            )


class _Npy:
    """The vectors, and beside them a .json of the origin and an item for every row."""

    def __init__(self, drafts: Sequence[Path], first: Embedding) -> None:
        vectors, items = drafts
        self._first, self._count, self._between = first, 0, "\n    "
        self._vectors = vectors.open("wb")
        self._items = items.open("w", encoding="utf-8")
        self._items.write('{\n  "items": [')
        self._write_head()

    def add(self, row: Row) -> None:
        self._items.write(self._between + json.dumps(row.item()))
        self._between = ",\n    "
        if row.embedding is not None:
            self._vectors.write(row.embedding.vector.tobytes())
            self._count += 1

    def finish(self) -> None:
        end = json.dumps(made_how(self._first), indent=2).removeprefix("{")
        self._items.write(f"\n  ],{end}\n")
        self._vectors.seek(0)
        self._write_head()

    def close(self) -> None:
        self._vectors.close()
        self._items.close()

    def _write_head(self) -> None:
        # numpy pads a header so that the first axis may grow in place: it is as long for 0 rows as for all.
        vector = self._first.vector
        head = {
            "descr": np.lib.format.dtype_to_descr(vector.dtype),
            "fortran_order": False,
            "shape": (self._count, *vector.shape),
        }
        np.lib.format.write_array_header_1_0(self._vectors, head)


class _JsonLines:
    """An object a line."""

    def __init__(self, drafts: Sequence[Path], _first: Embedding) -> None:
        [file] = drafts
        self._file = file.open("w", encoding="utf-8")

    def add(self, row: Row) -> None:
        how = made_how(row.embedding) if row.embedding else {}
        vector = _numbers(row.embedding.vector) if row.embedding else ""
        self._file.write(f'{json.dumps(row.item() | how)[:-1]}, "vector": [{vector}]}}\n')

    def finish(self) -> None:
        """Do nothing: every line is written."""

    def close(self) -> None:
        self._file.close()


class _Csv:
    """A column for each number."""

    def __init__(self, drafts: Sequence[Path], first: Embedding) -> None:
        [file] = drafts
        self._file = file.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="")
        self._empty = "," * (first.vector.size - 1)
        self._write(CSV_COLUMNS, ",".join(f"v{i}" for i in range(first.vector.size)))

    def add(self, row: Row) -> None:
        cells = row.item() | _flat(row.embedding)
        vector = _numbers(row.embedding.vector) if row.embedding else self._empty
        self._write([cells.get(column, "") for column in CSV_COLUMNS], vector)

    def finish(self) -> None:
        """Do nothing: every line is written."""

    def close(self) -> None:
        self._file.close()

    def _write(self, cells: Sequence[object], vector: str) -> None:
        self._writer.writerow(cells)
        self._file.write(f",{vector}\n")


def _parquet(drafts: Sequence[Path], first: Embedding) -> Sink:
    from ._parquet import Parquet  # noqa: PLC0415 - pyarrow is optional

    return Parquet(drafts[0], first)


def _flat(embedding: Embedding | None) -> dict[str, Any]:
    how = made_how(embedding)
    return (how.pop("origin") or {}) | how


def _numbers(vector: Array) -> str:
    """Return the numbers, row by row, with the nine digits that a float32 needs."""
    values = vector.ravel().tolist()
    return ",".join(["%.9g"] * len(values)) % tuple(values)


_MAKERS: dict[str, Make] = {
    ".npy": _Npy,
    ".npz": _Npz,
    ".parquet": _parquet,
    ".csv": _Csv,
    ".jsonl": _JsonLines,
}
