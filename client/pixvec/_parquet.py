"""Rows as a Parquet file; the only module that needs pyarrow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ._rows import Row, made_how
from ._types import Embedding

_GROUP_ROWS = 8192
_GROUP_BYTES = 16 << 20
_TEXTS = ("path", "reason", "error", "format", "model", "space", "build", "encoding")


class Parquet:
    """Writes a row group whenever enough rows have come; holds no more than one."""

    def __init__(self, file: Path, first: Embedding) -> None:
        how = made_how(first)
        self._how = (how["origin"] or {}) | {key: how[key] for key in ("encoding", "scale")}
        self._size, self._dtype = first.vector.size, first.vector.dtype
        self.group_rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES // max(1, first.vector.nbytes)))
        about = how | {"shape": first.vector.shape}
        self._schema = _schema(self._dtype).with_metadata({"pixvec": json.dumps(about)})
        self._rows: list[Row] = []
        self._writer: Any = pq.ParquetWriter(file, self._schema, use_dictionary=list(_TEXTS))

    def add(self, row: Row) -> None:
        """Take a row in."""
        self._rows.append(row)
        if len(self._rows) >= self.group_rows:
            self._flush()

    def finish(self) -> None:
        """Write the last row group."""
        self._flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._table(self._rows))
            self._rows.clear()

    def _table(self, rows: list[Row]) -> Any:  # noqa: ANN401 - pyarrow ships no types
        cells = [row.item() | self._made(row) for row in rows]
        columns = [
            self._vectors(rows)
            if field.name == "vector"
            else pa.array([cell.get(field.name) for cell in cells], field.type)
            for field in self._schema
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _made(self, row: Row) -> dict[str, Any]:
        return self._how | {"scale": row.embedding.scale} if row.embedding else {}

    def _vectors(self, rows: list[Row]) -> Any:  # noqa: ANN401 - pyarrow ships no types
        found = [np.asarray(row.embedding.vector).ravel() for row in rows if row.embedding]
        values = np.concatenate(found) if found else np.empty(0, self._dtype)
        missing = np.array([row.embedding is None for row in rows])
        offsets = np.concatenate([[0], np.cumsum(~missing * self._size)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(missing))


def _schema(dtype: np.dtype[Any]) -> Any:  # noqa: ANN401 - pyarrow ships no types
    return pa.schema(
        [
            ("path", pa.string()),
            ("ok", pa.bool_()),
            ("reason", pa.string()),
            ("error", pa.string()),
            # Not of a fixed size: pyarrow before 26 cannot read such a list where one of them is null.
            ("vector", pa.list_(pa.from_numpy_dtype(dtype))),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("format", pa.string()),
            ("model", pa.string()),
            ("space", pa.string()),
            ("build", pa.string()),
            ("normalized", pa.bool_()),
            ("encoding", pa.string()),
            ("scale", pa.float64()),
        ]
    )
