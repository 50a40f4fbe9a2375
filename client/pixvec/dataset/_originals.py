"""What a dataset's rows were made of, found again where the source keeps it: by a row's uri and stamp."""

import bisect
import math
import re
import tarfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixvec._errors import InputError
from pixvec._omissions import printable
from pixvec._sources import (
    BLOCK,
    MOST_HEADER_BYTES,
    MOST_MEMBER_BYTES,
    PACKED,
    Header,
    Unpacked,
)
from pixvec._types import Array

from ._pictures import bytes_stamp
from ._rows import Row

_URL = re.compile(r"(?i)https?:")
_BATCH_ROWS = 16


class Url(str):
    """An http(s) URL; nobody has asked for it yet."""

    __slots__ = ()


Original: TypeAlias = Path | Url | bytes | Array


class Originals:
    """Finds what the rows of a source of some kind were made of; safe to share among threads.

    What an archive, a table or an array holds now is returned only where it has the row's own stamp, so that
    nothing else can be taken for it. They are read fastest from front to back.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._open: dict[str, _Holder] = {}
        self._lock = threading.Lock()

    def of(self, row: Row) -> Original:
        """Return a file's path, a URL, encoded bytes out of an archive or a table, or an array's pixels.

        Pixels are uint8, (h, w) or (h, w, c). Raises InputError for what an archive, a table or an array does
        not hold any more; whether a path or a URL can be read is not found out.
        """
        if _URL.match(row.uri):
            return Url(row.uri)
        place = self._place(row.uri)
        if place is None:
            return Path(row.uri)
        try:
            return self._holder(place[0]).read(place[1], row.stamp)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{row.uri}: {error}") from error

    def close(self) -> None:
        """Close what was opened."""
        with self._lock:
            for holder in self._open.values():
                holder.close()
            self._open.clear()

    def _place(self, uri: str) -> tuple[Path, str] | None:
        """Return the file that holds an image with others, and the image's place in it; None: it is alone."""
        if self._kind not in _HOLDERS or Path(uri).is_file():
            return None
        for mark in re.finditer(re.escape(_HOLDERS[self._kind].mark), uri):
            if (file := Path(uri[: mark.start()])).is_file():
                return file, uri[mark.end() :]
        return None

    def _holder(self, file: Path) -> "_Holder":
        with self._lock:
            if str(file) not in self._open:
                self._open[str(file)] = _HOLDERS[self._kind](file)
            return self._open[str(file)]


class _Candidate(NamedTuple):
    """What may be meant by a place, and the bytes that its stamp is of."""

    original: bytes | Array
    stamped: bytes


class _Holder(ABC):
    """A file that holds many images. mark: stands between its name and an image's place in a uri."""

    mark = ""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def read(self, place: str, stamp: str) -> bytes | Array:
        """Return what is at a place. Raises InputError when it is not what was stamped."""
        with self._lock:
            for candidate in self._candidates(place):
                if bytes_stamp(candidate.stamped) == stamp:
                    return candidate.original
        raise InputError(f"{self._file}, {place}: not what was embedded: it has changed, embed it anew")

    def close(self) -> None:  # noqa: B027 - not every one keeps a file open
        """Close the file."""

    @abstractmethod
    def _candidates(self, place: str) -> Iterator[_Candidate]:
        """Yield what may be meant by a place, the likeliest first."""


class _Array(_Holder):
    """Rows of an npy file. Which height, width and scale the dataset was made with, the stamp tells."""

    mark = "["

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._rows = np.load(file, mmap_mode="r", allow_pickle=False)
        shape = self._rows.shape[1:]
        shapes = _shapes(shape[0]) if len(shape) == 1 else [shape]
        scales = (None,) if self._rows.dtype == np.uint8 else (255.0, 1.0)
        self._forms = [(shape, scale) for shape in shapes for scale in scales]
        self._likely = self._forms[:1]

    def _candidates(self, place: str) -> Iterator[_Candidate]:
        values = np.asarray(self._rows[int(place.removesuffix("]"))])
        for shape, scale in [*self._likely, *self._forms]:
            self._likely = [(shape, scale)]  # whoever is content with it asks for no other
            pixels = values.reshape(shape)
            if scale is not None:
                with np.errstate(invalid="ignore"):  # at the wrong scale they are no bytes
                    pixels = np.rint(pixels * scale).astype(np.uint8)
            picture = pixels[:, :, 0] if shape[2:] == (1,) else pixels
            yield _Candidate(picture, repr(shape).encode() + pixels.tobytes())


def _shapes(length: int) -> list[tuple[int, ...]]:
    """Return every height, width and number of channels that a flat row may have."""
    sizes = ((length // channels, channels) for channels in (3, 1, 4) if length % channels == 0)
    return [(h, area // h, channels) for area, channels in sizes for h in _divisors(area)]


def _divisors(number: int) -> list[int]:
    low = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*low, *(number // one for one in low)}, key=lambda one: abs(one - number // one))


class _Archive(_Holder):
    """Members of a tar archive. One that is packed is unpacked again for each step back."""

    mark = "!"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._places = _members(file)
        self._raw = file.open("rb")
        start = self._raw.peek(6)
        packed = next((unpack for magic, unpack in PACKED.items() if start.startswith(magic)), None)
        self._stream = cast("IO[bytes]", packed(self._raw) if packed else self._raw)

    def close(self) -> None:
        self._stream.close()
        self._raw.close()

    def _candidates(self, place: str) -> Iterator[_Candidate]:
        for offset, size in self._places.get(place, ()):
            self._stream.seek(offset)
            content = self._stream.read(size)
            yield _Candidate(content, content)


def _members(archive: Path) -> Mapping[str, list[tuple[int, int]]]:
    """Return where in the unpacked archive members of each name begin, and their sizes; up to any break."""
    places: dict[str, list[tuple[int, int]]] = {}
    with (
        archive.open("rb") as file,
        Unpacked(file) as stream,
        tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=BLOCK, tarinfo=Header) as tar,
    ):
        try:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # it keeps every header it has seen
                stream.limit = tar.offset + MOST_HEADER_BYTES
                if member.isreg() and member.size <= MOST_MEMBER_BYTES:
                    places.setdefault(printable(member.name), []).append((member.offset_data, member.size))
        except (tarfile.TarError, OSError, EOFError, ValueError):
            return places
    return places


class _Table(_Holder):
    """Rows of a parquet file. Which column was taken, the stamp tells."""

    mark = "#row/"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._table = pq.ParquetFile(file)
        self._columns = [field.name for field in self._table.schema_arrow if _holds_bytes(field.type)]
        meta = self._table.metadata
        sizes = (meta.row_group(group).num_rows for group in range(meta.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))
        self._group, self._at = -1, 0
        self._batches: Iterator[Any] = iter(())
        self._held: list[dict[str, Any]] = []

    def close(self) -> None:
        self._table.close()

    def _candidates(self, place: str) -> Iterator[_Candidate]:
        for value in self._row(int(place)).values():
            data = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(data, bytes):
                yield _Candidate(data, data)

    def _row(self, wanted: int) -> dict[str, Any]:
        """Return a row, reading on from the one before it where they are of one group."""
        group = bisect.bisect_right(self._starts, wanted) - 1
        if group != self._group or wanted < self._at:
            self._batches = self._table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=self._columns)
            self._group, self._at, self._held = group, self._starts[group], []
        while wanted >= self._at + len(self._held):
            self._at += len(self._held)
            self._held = next(self._batches).to_pylist()
        return self._held[wanted - self._at]


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401 - pyarrow ships no types
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


_HOLDERS: Mapping[str, type[_Holder]] = {"npy": _Array, "tar": _Archive, "parquet": _Table}
