"""Each export, read back by the program it is for, or by the library that it reads with."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pixvec import InputError
from pixvec.dataset._rows import Row
from pixvec.dataset.exports import FORMS, Exported, export

VECTORS = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)
ROWS = (
    Row("a/1.png", "/photos/a/1.png", "7-1", "m", label="cat"),
    Row("a/1.png", "/photos/a/1.png", "7-1", "m", object="9", label="whisker\tlong", box=(1, 2, 30, 40)),
    Row("b/2.png", "https://host/2.png", "8-1", "m", label='quo"te, comma'),
    Row("../../3.png", "/photos/3.png", "9-1", "m"),
)
XY = np.arange(8, dtype=np.float32).reshape(4, 2)
WHAT = Exported(
    ROWS,
    VECTORS,
    {"options": {"instances": "both", "expand_px": 3}, "origin": {"space": "s1"}},
    {("umap", "cosine"): XY},
    np.array([[1, 2], [0, 2], [1, 0], [2, 1]]),
    np.array([[0.1, 0.2]] * 4, np.float32),
)


def test_npy(tmp_path: Path) -> None:
    files = export(WHAT, "npy", tmp_path / "set")
    assert [file.name for file in files] == ["set_data.npy", "set_labels.npy"]
    np.testing.assert_array_equal(np.load(files[0], allow_pickle=False), VECTORS)
    labels = np.load(files[1], allow_pickle=False)
    assert labels.tolist() == [[row.label or ""] for row in ROWS]


def test_csv_has_a_class_and_a_column_for_each_number(tmp_path: Path) -> None:
    [file] = export(WHAT, "csv", tmp_path / "set.csv")
    with file.open(newline="", encoding="utf-8") as lines:
        head, *rows = csv.reader(lines)
    assert head == ["Class", "n0", "n1", "n2", "n3", "n4"]
    assert [row[0] for row in rows] == [row.label or "" for row in ROWS]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], np.float32), VECTORS)


@pytest.mark.parametrize("label", ["a\rb", "a\nb", "a\r\nb", "größe 猫", ' "x", ', "1", "NA", "-"])
def test_csv_keeps_a_class_whatever_it_is_called(label: str, tmp_path: Path) -> None:
    rows = tuple(replace(row, label=label) for row in ROWS)
    [file] = export(replace(WHAT, rows=rows), "csv", tmp_path / "set.csv")
    with file.open(newline="", encoding="utf-8") as lines:
        _, *read = csv.reader(lines)
    assert [row[0] for row in read] == [label] * 4


def test_npys_of_one_name_are_refused(tmp_path: Path) -> None:
    rows = (replace(ROWS[0], id="a/1.png.9"), ROWS[1])
    with pytest.raises(InputError, match=r"1\.png\.9\.npy would be of .*: export as npy or csv"):
        export(Exported(rows, VECTORS[:2]), "npys", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_npys_are_named_as_images_stay_inside_and_stay_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = export(WHAT, "npys", out)
    names = [str(file.relative_to(out)) for file in files]
    assert names == ["a/1.png.npy", "a/1.png.9.npy", "b/2.png.npy", "3.png.npy"]
    for file, vector in zip(files, VECTORS, strict=True):
        np.testing.assert_array_equal(np.load(file), vector)
    np.save(files[0], np.zeros(1))
    files[1].unlink()
    assert export(WHAT, "npys", out) == [files[1]]
    assert np.load(files[0]).tolist() == [0.0]


def test_tensorboard_has_a_line_for_each_row_whatever_a_class_is_called(tmp_path: Path) -> None:
    tensors, metadata = export(WHAT, "tensorboard", tmp_path)
    np.testing.assert_array_equal(np.loadtxt(tensors, np.float32, delimiter="\t"), VECTORS)
    head, *lines = metadata.read_text().splitlines()
    assert head.split("\t") == ["class", "id"]
    assert [line.split("\t")[0] for line in lines] == ["cat", "whisker long", 'quo"te, comma', ""]


def test_atlas_has_what_its_reader_asks_for(tmp_path: Path) -> None:
    photo = tmp_path / "1.png"
    Image.new("RGB", (600, 400), "red").save(photo)
    rows = [replace(row, uri=str(photo)) for row in ROWS[:3]] + [replace(ROWS[3], uri="gone.png")]
    told: list[tuple[int, int]] = []
    what, progress = replace(WHAT, rows=rows), lambda done, total: told.append((done, total))
    [file] = export(what, "atlas", tmp_path / "atlas.parquet", progress)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    held = pq.read_table(file)
    assert {name: str(held.schema.field(name).type) for name in ("x", "y", "image", "label")} == {
        "x": "float", "y": "float", "image": "struct<bytes: binary>", "label": "string",
    }  # fmt: skip
    # It stacks the lists of all rows: each has as many, of zero-based rows of this very file.
    assert {field.name for field in held.schema.field("neighbors").type} == {"ids", "distances"}
    table = held.to_pydict()
    assert {(len(near["ids"]), len(near["distances"])) for near in table["neighbors"]} == {(2, 2)}
    assert table["x"] == XY[:, 0].tolist()
    assert table["y"] == XY[:, 1].tolist()
    assert table["neighbors"][3]["ids"] == [2, 1]
    sizes = [image and Image.open(io.BytesIO(image["bytes"])).size for image in table["image"]]
    assert sizes == [(256, 171), (29, 38), (256, 171), None]
    with pytest.raises(InputError, match="dataset project"):
        export(replace(WHAT, projections={}), "atlas", file)


def test_supervisely_has_the_apps_files(tmp_path: Path) -> None:
    files = export(WHAT, "supervisely", tmp_path / "out")
    assert [file.name for file in files] == [
        "embeddings.pt", "cfg.json", "info.json", "projections_umap_cosine.pt",
    ]  # fmt: skip
    np.testing.assert_array_equal(torch.load(files[0], weights_only=False), VECTORS)
    np.testing.assert_array_equal(torch.load(files[3], weights_only=False), XY)
    assert json.loads(files[1].read_text())["expand_hw"] == [3, 3]
    info = json.loads(files[2].read_text())
    assert info["crop_yxyx"] == [None, [2, 1, 40, 30], None, None]
    assert info["object_cls"] == [None, "whisker\tlong", None, None]
    assert {len(values) for values in info.values()} == {4}


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'xml'.*npy, csv"):
        export(WHAT, "xml", tmp_path / "x")
    for form in FORMS:
        with pytest.raises(InputError, match="no vectors"):
            export(Exported((), np.empty((0, 5), np.float32)), form, tmp_path / "x")
