"""Parquet files as a source."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import photos

from pixvec import InputError
from pixvec.dataset._pictures import Picture, SourceOptions
from pixvec.dataset.sources import open_source

A, B = photos.data("china.jpg"), photos.data("flower.jpg")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _write(file: Path, /, **columns: Any) -> Path:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=2)
    return file


def _pictures(given: Path, **options: Any) -> list[Picture]:
    source = open_source(given, SourceOptions(**options))
    pictures = list(source.pictures())
    assert source.total == len(pictures)
    return pictures


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())]
)
def test_a_column_of_bytes_is_found_in_the_order_of_the_rows(tmp_path: Path, kind: Any) -> None:
    file = _write(
        tmp_path / "a.parquet", n=[1, 2, 3], jpg=pa.array([A, B, A]).cast(kind), Label=["cat", None, "dog"]
    )
    found = _pictures(file)
    assert [(p.id, p.label) for p in found] == [
        ("row/000000", "cat"),
        ("row/000001", None),
        ("row/000002", "dog"),
    ]
    assert [p.read() for p in found] == [A, B, A]
    assert found[1].uri == f"{file}#row/000001"
    assert found[0].stamp == found[2].stamp != found[1].stamp


@pytest.mark.parametrize("name", ["image", "Img", "bytes", "content", "jpg", "webp", "image_bytes"])
def test_of_several_columns_of_bytes_the_one_with_a_usual_name_is_taken(tmp_path: Path, name: str) -> None:
    file = _write(tmp_path / "a.parquet", phash=[b"12345678"] * 2, **{name: [A, B]}, thumbnail=[b"x", b"y"])
    assert [p.read() for p in _pictures(file)] == [A, B]


@pytest.mark.parametrize("kind", [pa.binary(), STRUCT])
def test_columns_of_bytes_of_which_none_has_a_usual_name_are_asked_for(tmp_path: Path, kind: Any) -> None:
    values = [A] if kind == pa.binary() else [{"bytes": A, "path": None}]
    file = _write(tmp_path / "a.parquet", phash=[b"12345678"], photograph=pa.array(values, kind))
    with pytest.raises(InputError, match=r"which of its columns phash, photograph .*--path-column"):
        _pictures(file)
    assert [p.read() for p in _pictures(file, path_column="photograph")] == [A]


def test_bytes_of_a_fixed_size_are_the_last_choice(tmp_path: Path) -> None:
    fixed = pa.array([b"12345678"], pa.binary(8))
    assert [p.read() for p in _pictures(_write(tmp_path / "a.parquet", md5=fixed, photo=[A]))] == [A]
    (tmp_path / "a.jpg").write_bytes(B)
    (by_path,) = _pictures(_write(tmp_path / "b.parquet", md5=fixed, image=["a.jpg"]))
    assert Path(str(by_path.read())).read_bytes() == B
    assert [p.read() for p in _pictures(_write(tmp_path / "c.parquet", md5=fixed))] == [b"12345678"]


def test_the_struct_of_hugging_face_gives_bytes_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(B)
    images = [
        {"bytes": A, "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": B, "path": None},
        None,
    ]
    found = _pictures(_write(tmp_path / "a.parquet", image=pa.array(images, STRUCT), label=[1, 0, 1, 2]))
    assert [p.id for p in found] == ["a.jpg", "b.jpg", "row/000002", "row/000003"]
    assert [p.label for p in found] == ["1", "0", "1", None]
    assert [p.read() for p in found[:3]] == [A, tmp_path / "b.jpg", B]
    with pytest.raises(OSError, match=r"a\.parquet#row/000003: neither bytes nor a path"):
        found[3].read()


def _hugging_face(file: Path, features: Any, **columns: Any) -> Path:
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), file)
    return file


def _classes(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def test_the_metadata_of_hugging_face_tell_the_image_and_the_names_of_its_classes(tmp_path: Path) -> None:
    sounds, images = ([{"bytes": data, "path": path}] * 3 for data, path in ((b"x", "a.wav"), (A, "a.jpg")))
    columns = {"audio": pa.array(sounds, STRUCT), "img": pa.array(images, STRUCT)}
    features = {"audio": {"_type": "Audio"}, "img": {"_type": "Image"}, "tags": [{"_type": "Value"}]}
    file = _hugging_face(
        tmp_path / "a.parquet", features | {"kind": _classes("cat", "dog")}, **columns, kind=[1, 0, -1]
    )
    assert [(p.read(), p.label) for p in _pictures(file)] == [(A, "dog"), (A, "cat"), (A, None)]
    assert [p.label for p in _pictures(file, label_column="kind")] == ["dog", "cat", None]
    two = features | {"fine": _classes("cat"), "coarse": _classes("animal")}
    file = _hugging_face(tmp_path / "b.parquet", two, **columns, fine=[0] * 3, coarse=[0] * 3)
    assert {p.label for p in _pictures(file)} == {None}
    assert {p.label for p in _pictures(file, label_column="coarse")} == {"animal"}


def _label_left_out(file: Path, labels: list[str | None]) -> str:
    source = open_source(file)
    for _ in range(2):
        assert [(p.read(), p.label) for p in source.pictures()] == list(zip([A, B], labels, strict=True))
        [left_out] = source.omissions.all()  # type: ignore[attr-defined]
        assert (left_out.what, left_out.count) == ("label", 1)
    return f"{left_out.reason}: {left_out.examples[0]}"


@pytest.mark.parametrize("number", [1, -2, 2**40])
def test_an_image_whose_number_no_class_has_stays_without_class(tmp_path: Path, number: int) -> None:
    features = {"label": _classes("cat")}
    file = _hugging_face(tmp_path / "a.parquet", features, image=[A, B], label=[number, 0])
    told = f"a.parquet#row/000000: {number}; the names of classes are 1, from 0"
    assert _label_left_out(file, [None, "cat"]) == f"it is the number of no class: {told}"


@pytest.mark.parametrize("about", ["{", "[]", '{"info": {"features": ["label"]}}', '{"info": 1}'])
def test_broken_metadata_are_refused(tmp_path: Path, about: str) -> None:
    table = pa.table({"image": [A]}).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: its metadata 'huggingface': "):
        open_source(tmp_path / "a.parquet")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([[A], [B]], names=["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: 2 of its columns are named 'image'"):
        open_source(tmp_path / "a.parquet")


def test_paths_are_relative_to_the_file_and_ids_may_have_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(A)
    rows = {"file": ["a.jpg", "gone.jpg", "https://example.org/x.jpg"], "class": ["c", "d", "e"]}
    found = _pictures(_write(tmp_path / "x.parquet", **rows), strict=True)
    assert [p.id for p in found] == rows["file"]
    assert [p.label for p in found] == rows["class"]
    assert (found[0].read(), found[2].read()) == (tmp_path / "a.jpg", rows["file"][2])
    assert (found[0].stamp[:7], found[1].stamp) == ("sha256:", "missing")
    assert [p.id for p in _pictures(_write(tmp_path / "y.parquet", id=[7, 7, None], **rows))] == [
        "7",
        "7#2",
        "https://example.org/x.jpg",
    ]


def test_columns_are_told_by_name_or_by_index(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.parquet", thumb=[b"x"], full=[A], kind=["cat"], label=["no"])
    with pytest.raises(InputError, match="which of its columns thumb, full holds the image"):
        _pictures(file)
    assert _pictures(file, path_column="0")[0].read() == b"x"
    (picture,) = _pictures(file, path_column="full", label_column="2")
    assert (picture.read(), picture.label) == (A, "cat")
    with pytest.raises(
        InputError, match="path_column is 'big', and its columns are thumb, full, kind, label"
    ):
        _pictures(file, path_column="big")


def test_the_files_of_a_folder_come_sorted_and_keep_their_ids(tmp_path: Path) -> None:
    for name, data in (("b.parquet", [B]), ("a.parquet", [A, B, A]), ("sub/c.parquet", [A])):
        _write(tmp_path / name, image=data)
    ids = [f"a.parquet!row/00000{row}" for row in range(3)]
    found = _pictures(tmp_path)
    assert [p.id for p in found] == [*ids, "b.parquet!row/000000", "sub/c.parquet!row/000000"]
    assert found[3].uri == f"{tmp_path}/b.parquet#row/000000"


def test_a_stamp_changes_with_its_bytes_alone(tmp_path: Path) -> None:
    first = [p.stamp for p in _pictures(_write(tmp_path / "a.parquet", image=[A, B]))]
    other = [p.stamp for p in _pictures(_write(tmp_path / "a.parquet", n=[0, 0], image=[A, B[:-1]]))]
    assert [a == b for a, b in zip(first, other, strict=True)] == [True, False]


@pytest.mark.parametrize("label", [["cat"], {"name": "cat"}])
def test_an_image_whose_label_is_none_stays_without_class(tmp_path: Path, label: Any) -> None:
    file = _write(tmp_path / "a.parquet", image=[A, B], label=[label, None])
    told = f"a.parquet#row/000000: a label is a text or a number, not {type(label).__name__}"
    assert _label_left_out(file, [None, None]) == f"it is malformed: {told}"


def test_row_groups_are_read_when_their_turn_comes(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [A, B]}), file, row_group_size=1, compression="zstd")
    second = pq.ParquetFile(file).metadata.row_group(1).column(0)
    start = second.dictionary_page_offset or second.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + second.total_compressed_size] = bytes(second.total_compressed_size)
    file.write_bytes(data)
    pictures = open_source(file).pictures()
    assert [picture.read() for picture in islice(pictures, 1)] == [A]
    with pytest.raises(InputError, match=r"a\.parquet: row group 1"):
        next(pictures)


@pytest.mark.parametrize("data", [b"", b"no parquet", b"PAR1" + bytes(20) + b"PAR1"])
def test_a_broken_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet"):
        open_source(tmp_path / "a.parquet")


def test_files_without_rows_or_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no parquet file with a row"):
        open_source(_write(tmp_path / "a.parquet", image=pa.array([], pa.binary())))
    with pytest.raises(InputError, match=r"which of its columns \['x'\] holds the image\? Give path_column"):
        open_source(_write(tmp_path / "b.parquet", x=[1]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no parquet file with a row"):
        open_source(tmp_path / "empty", SourceOptions(kind="parquet"))


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _write(tmp_path / "a.parquet", image=[A])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'pixvec\[parquet\]'"):
        open_source(file)
