"""The files that vectors are written into, read back with each form's own library."""

import csv
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pixvec import Embedding, InternalError, Origin, Source
from pixvec._parquet import Parquet
from pixvec._rows import MOST_KEPT, Row, Tally
from pixvec._sinks import CSV_COLUMNS, Held, draft, saving, why_unwritable
from pixvec._types import Array

SUFFIXES = [".npy", ".npz", ".parquet", ".csv", ".jsonl"]
ORIGIN = Origin("hash", "space-1", "build-1", normalized=True)
SOURCE = Source(640, 480, "jpeg", 1, truncated=False)
VECTORS = np.random.default_rng(7).normal(size=(3, 16)).astype(np.float32)
AWKWARD = 'a "b", \n ü.png'


def _row(path: str, vector: Any, encoding: Any = "float32", scale: float | None = None) -> Row:
    return Row(path, Embedding(np.asarray(vector), encoding, scale, ORIGIN), SOURCE)


def _failed(path: str, error: str = "not an image") -> Row:
    return Row(path, reason="UNDECODABLE", error=error)


ROWS = [
    _failed("early.png"),
    _row(AWKWARD, VECTORS[0]),
    Row("late.png", None, SOURCE, "NON_FINITE", "NaN"),
    _row("b.png", VECTORS[1]),
    _row("c.png", VECTORS[2]),
]


def _write(file: Path, rows: list[Row]) -> Path:
    with saving(file) as sink:
        for row in rows:
            sink.add(row)
    assert not list(file.parent.glob("*.tmp"))
    return file


def _npy(file: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    beside = json.loads(file.with_suffix(".json").read_text())
    return np.load(file), beside["items"], beside["origin"] | {k: beside[k] for k in ("encoding", "scale")}


def _npz(file: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    with np.load(file) as saved:
        scale = None if np.isnan(saved["scale"]) else float(saved["scale"])
        how = json.loads(str(saved["origin"])) | {"encoding": str(saved["encoding"]), "scale": scale}
        items = json.loads(str(saved["items"]))
        assert list(saved["paths"]) == [item["path"] for item in items if item["ok"]]
        return saved["vectors"], items, how


def _of_rows(rows: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Take rows apart; every one with a vector has the origin, those without have none."""
    made = ("model", "space", "build", "normalized", "encoding", "scale")
    hows = [{key: row.pop(key, None) for key in made} for row in rows]
    vectors = [row.pop("vector") for row in rows]
    good = [how for how, vector in zip(hows, vectors, strict=True) if vector]
    assert all(how == good[0] for how in good)
    assert not any(any(how.values()) for how, vector in zip(hows, vectors, strict=True) if not vector)
    items = [{key: value for key, value in row.items() if value is not None} for row in rows]
    return np.array([vector for vector in vectors if vector]), items, good[0]


def _jsonl(file: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return _of_rows([row | (row.pop("origin", None) or {}) for row in rows])


def _parquet(file: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    return _of_rows(pq.read_table(file).to_pylist())


def _csv(file: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as text:
        head, *lines = csv.reader(text)
    assert head == [*CSV_COLUMNS, *(f"v{i}" for i in range(len(head) - len(CSV_COLUMNS)))]
    rows = []
    for line in lines:
        assert len(line) == len(head)
        cells: dict[str, Any] = {key: value or None for key, value in zip(head, line, strict=True)}
        numbers = [cells.pop(name) for name in head[len(CSV_COLUMNS) :]]
        cells["vector"] = [] if numbers[0] is None else list(map(float, numbers))
        for key in ("ok", "normalized"):
            cells[key] = None if cells[key] is None else cells[key] == "True"
        for key in ("width", "height", "scale"):
            cells[key] = None if cells[key] is None else float(cells[key])
        rows.append(cells)
    return _of_rows(rows)


READ: dict[str, Callable[[Path], tuple[Any, list[dict[str, Any]], dict[str, Any]]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_gives_back_what_went_in(tmp_path: Path, suffix: str) -> None:
    vectors, items, how = READ[suffix](_write(tmp_path / f"out{suffix}", ROWS))
    np.testing.assert_array_equal(np.float32(vectors), VECTORS)
    seen = {"width": 640, "height": 480, "format": "jpeg"}
    assert items == [
        {"path": "early.png", "ok": False, "reason": "UNDECODABLE", "error": "not an image"},
        {"path": AWKWARD, "ok": True} | seen,
        {"path": "late.png", "ok": False, "reason": "NON_FINITE", "error": "NaN"} | seen,
        {"path": "b.png", "ok": True} | seen,
        {"path": "c.png", "ok": True} | seen,
    ]
    origin = {"model": "hash", "space": "space-1", "build": "build-1", "normalized": True}
    assert how == origin | {"encoding": "float32", "scale": None}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("encoding", "dtype", "scale"),
    [("int8", np.int8, 1 / 64), ("binary", np.uint8, None), ("float16", np.float16, None)],
)
def test_an_encoding_keeps_its_numbers(
    tmp_path: Path, suffix: str, encoding: str, dtype: type, scale: float | None
) -> None:
    numbers: Array = (VECTORS * 100).clip(0 if dtype is np.uint8 else -128, 127).astype(dtype)
    rows = [_row(f"{i}", vector, encoding, scale) for i, vector in enumerate(numbers)]
    read, _, how = READ[suffix](_write(tmp_path / f"out{suffix}", rows))
    np.testing.assert_array_equal(np.asarray(read).astype(dtype), numbers)
    assert (how["encoding"], how["scale"]) == (encoding, scale)
    if suffix in {".npy", ".npz"}:
        assert read.dtype == dtype


def test_extreme_numbers_survive_text(tmp_path: Path) -> None:
    info = np.finfo(np.float32)
    extremes = np.array([info.max, -info.max, info.tiny, 1e-45, 0.0, 1 / 3, 16777217, 1 + info.eps], "f4")
    for suffix in (".csv", ".jsonl"):
        read, _, _ = READ[suffix](_write(tmp_path / f"x{suffix}", [_row("x", extremes)]))
        np.testing.assert_array_equal(np.float32(read[0]), extremes)


def test_vectors_of_several_axes(tmp_path: Path) -> None:
    grid = VECTORS.reshape(3, 4, 4)
    rows = [_row(f"{i}", x) for i, x in enumerate(grid)]
    for suffix in SUFFIXES:
        read, _, _ = READ[suffix](_write(tmp_path / f"out{suffix}", rows))
        expected = grid if suffix in {".npy", ".npz"} else VECTORS
        np.testing.assert_array_equal(np.float32(read), expected)
    about = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"pixvec"])
    assert about["shape"] == [4, 4]


def test_a_parquet_file_says_where_it_comes_from(tmp_path: Path) -> None:
    file = _write(tmp_path / "out.parquet", ROWS)
    schema = pq.read_schema(file)
    assert str(schema.field("vector").type) == "list<element: float>"
    about = json.loads(schema.metadata[b"pixvec"])
    assert about["origin"]["space"] == "space-1"
    assert (about["encoding"], about["scale"], about["shape"]) == ("float32", None, [16])
    nulls = pq.read_table(file, columns=["vector"])["vector"].is_null().to_pylist()
    assert nulls == [True, False, True, False, False]


def test_a_parquet_sink_holds_one_row_group(tmp_path: Path) -> None:
    vector = np.zeros(1 << 17, np.float32)  # 32 of them fill a row group
    row = _row("x", vector)
    assert row.embedding is not None
    sink = Parquet(tmp_path / "out.parquet", row.embedding)
    assert sink.group_rows == 32
    most = 0
    for _ in range(100):
        sink.add(row)
        most = max(most, len(sink._rows))
    sink.finish()
    sink.close()
    groups = pq.ParquetFile(tmp_path / "out.parquet").metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [32, 32, 32, 4]
    assert most < 32


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".jsonl"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str) -> None:
    tracemalloc.start()
    try:
        with saving(tmp_path / f"out{suffix}") as sink:
            for number in range(1200):
                sink.add(_row("x" * 100, np.full(256, number + 1 / 3, np.float32)))
                sink.add(_failed("y" * 100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / f"out{suffix}").stat().st_size > 1 << 20
    assert peak < 512 << 10


def test_failures_before_the_first_vector_wait_on_disk(tmp_path: Path) -> None:
    with saving(tmp_path / "out.csv") as sink:
        for _ in range(20_000):
            sink.add(_failed("x" * 100))
        early: Any = sink
        assert early._early._rolled
        sink.add(_row("good", VECTORS[0]))
    _, items, _ = _csv(tmp_path / "out.csv")
    assert (len(items), items[-1]["path"]) == (20_001, "good")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_appears_only_when_it_is_whole(tmp_path: Path, suffix: str) -> None:
    file = _write(tmp_path / f"out{suffix}", ROWS[:2])
    names = sorted(path.name for path in tmp_path.iterdir())
    before = {name: (tmp_path / name).read_bytes() for name in names}

    with pytest.raises(KeyboardInterrupt):
        _break_off(file, before[file.name])
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    vectors, _, _ = READ[suffix](_write(file, ROWS))
    assert len(vectors) == 3


def _break_off(file: Path, before: bytes) -> None:
    with saving(file) as sink:
        for row in ROWS:
            sink.add(row)
        assert file.suffix == ".npz" or draft(file).exists()
        assert file.read_bytes() == before
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_but_failures_writes_nothing(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path / f"out{suffix}", [_failed("x"), _failed("y")])
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "far" / "real.npy")
    _write(tmp_path / "out.npy", ROWS)
    assert (tmp_path / "out.npy").is_symlink()
    assert len(np.load(tmp_path / "far" / "real.npy")) == 3


def test_one_file_holds_one_form_of_vector(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="one form"):
        _write(tmp_path / "out.npy", [_row("a", VECTORS[0]), _row("b", VECTORS[0][:8])])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").mkdir()
    (tmp_path / "b.json").mkdir()
    assert "must end in" in str(why_unwritable(tmp_path / "a.xlsx"))
    assert "is a folder" in str(why_unwritable(tmp_path / "a.csv"))
    assert "b.json is a folder" in str(why_unwritable(tmp_path / "b.npy"))
    assert "no folder" in str(why_unwritable(tmp_path / "none" / "a.csv"))
    assert why_unwritable(tmp_path / "a.parquet") is None
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'pixvec[parquet]'" in str(why_unwritable(tmp_path / "a.parquet"))


def test_what_is_held_for_the_screen_is_bounded() -> None:
    held, tally = Held(2), Tally()
    for number in range(2 * MOST_KEPT):
        for row in (_row(f"{number}", VECTORS[0]), _failed(f"{number}", f"cause {number}")):
            held.add(row)
            tally.add(row)
    assert (len(held.rows), held.items) == (2, [])
    assert (len(tally.failures), len(tally.causes)) == (MOST_KEPT, MOST_KEPT)
    *_, last = tally.complaints()
    assert last == f"{MOST_KEPT} more images, each with a cause of its own"
    assert tally.record()["failed"] == 2 * MOST_KEPT
