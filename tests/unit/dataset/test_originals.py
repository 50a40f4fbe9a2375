"""What rows were made of is found again in arrays, archives and tables, and nothing else in its place."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixvec import InputError
from pixvec.dataset import Row, SourceOptions, open_source
from pixvec.dataset._originals import Original, Originals, Url

COUNT, AS_THEY_COME = 40, SourceOptions()
PIXELS = np.random.default_rng(3).integers(0, 256, (COUNT, 6, 5, 3), np.uint8)


def jpeg(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(file, "JPEG")
    return file.getvalue()


def rows_of(given: Path | str, options: SourceOptions = AS_THEY_COME) -> tuple[str, list[Row]]:
    """Return the kind of a source, and the rows that would be made of it."""
    source = open_source(str(given), options)
    return source.kind, [Row(id=one.id, uri=one.uri, stamp=one.stamp, made="m") for one in source.pictures()]


def found(kind: str, rows: list[Row]) -> list[Original]:
    originals = Originals(kind)
    try:
        return [originals.of(row) for row in rows]
    finally:
        originals.close()


@pytest.mark.parametrize(
    ("make", "flat"),
    [
        (lambda pixels: pixels, False),
        (lambda pixels: pixels[..., 0], False),
        (lambda pixels: pixels[..., :1], False),
        (lambda pixels: pixels.reshape(COUNT, -1), True),
        (lambda pixels: (pixels / np.float32(255)).reshape(COUNT, -1), True),
        (lambda pixels: pixels.astype(np.float64), False),
    ],
)
def test_rows_of_an_array(tmp_path: Path, make: Callable[[Any], Any], flat: bool) -> None:
    array = make(PIXELS)
    np.save(tmp_path / "X [2].npy", array)
    options = SourceOptions(height=6, width=5) if flat else AS_THEY_COME
    kind, rows = rows_of(tmp_path / "X [2].npy", options)
    expected = PIXELS[..., 0] if not flat and array.shape[3:] != (3,) else PIXELS
    assert np.array_equal(np.stack([np.asarray(one) for one in found(kind, rows)]), expected)


@pytest.mark.parametrize("name", ["a!b.tar", "a.tar.gz", "a.tar.xz"])
def test_members_of_an_archive_of_which_some_have_one_name(tmp_path: Path, name: str) -> None:
    mode: Any = "w:" + name.rpartition(".")[2].removeprefix("tar")
    with tarfile.open(tmp_path / name, mode) as tar:
        for i in range(COUNT):
            member = tarfile.TarInfo(f"{i // 2}/é!.jpg")
            member.size = len(jpeg(i))
            tar.addfile(member, io.BytesIO(jpeg(i)))
    kind, rows = rows_of(tmp_path / name)
    assert found(kind, rows) == [jpeg(i) for i in range(COUNT)]
    assert found(kind, rows[::-1]) == [jpeg(i) for i in reversed(range(COUNT))]


def test_an_archive_that_breaks_off_gives_what_comes_before(tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(jpeg(i))
            tar.addfile(member, io.BytesIO(jpeg(i)))
    kind, rows = rows_of(whole)
    whole.write_bytes(whole.read_bytes()[:2600])
    assert found(kind, rows[:1]) == [jpeg(0)]
    with pytest.raises(InputError, match=r"whole\.tar, 2\.jpg: not what was embedded"):
        found(kind, rows[2:])


@pytest.mark.parametrize("struct", [False, True])
def test_rows_of_a_table_in_any_order(tmp_path: Path, struct: bool) -> None:
    images: list[Any] = [jpeg(i) for i in range(COUNT)]
    if struct:
        images = [{"bytes": data, "path": None} for data in images]
    table = pa.table({"thumb": [b"no image"] * COUNT, "image": images})
    pq.write_table(table, tmp_path / "a#b.parquet", row_group_size=25)
    kind, rows = rows_of(tmp_path / "a#b.parquet", SourceOptions(path_column="image"))
    order = [3, 4, 39, 0, 24, 25, 26, 1, 0]
    assert found(kind, [rows[i] for i in order]) == [jpeg(i) for i in order]


def test_what_has_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "X.npy"
    np.save(file, PIXELS)
    kind, rows = rows_of(file)
    np.save(file, PIXELS[:2][::-1])
    for row in rows[0], rows[5]:
        with pytest.raises(InputError, match=r"X\.npy"):
            found(kind, [row])
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"X\.npy"):
        found(kind, rows[:1])


def test_files_and_urls_are_named_and_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    rows = [
        Row(id="a", uri=uri, stamp="1", made="m")
        for uri in (str(tmp_path / "a[1].png"), "HTTPS://example.com/a[1].png", str(tmp_path / "gone.npy[3]"))
    ]
    for kind in ("npy", "folder", ""):
        path, url, gone = found(kind, rows)
        assert path == tmp_path / "a[1].png"
        assert isinstance(url, Url)
        assert gone == Path(rows[2].uri)
