"""What is made of a dataset, through the command line, on one that a real server made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import cosine_similarity
from support import photos
from support.servers import Server
from typer.testing import CliRunner

import pixvec
from pixvec import dataset
from pixvec.cli import app

pytestmark = pytest.mark.timeout(120)
COUNT = 60


@pytest.fixture(scope="module")
def made(tiny_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of digits, six of each class."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype(np.uint8)
    order = np.argsort(digits.target, kind="stable")
    chosen = [i for digit in range(10) for i in order[digits.target[order] == digit][: COUNT // 10]]
    images = {f"{i:04}": (np.repeat(pixels[i][:, :, None], 3, 2), str(digits.target[i])) for i in chosen}
    out = tmp_path_factory.mktemp("digits") / "digits"
    with pixvec.Client(tiny_server.target) as client:
        assert dataset.embed(images, out, client).embedded == COUNT
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "digits"))


@pytest.fixture
def run() -> Callable[..., Any]:
    def run(*words: object, code: int = 0) -> Any:
        told = CliRunner().invoke(app, ["dataset", *map(str, words)])
        assert told.exit_code == code, told.output
        return json.loads(told.stdout.splitlines()[-1]) if "--json" in words else told.output

    return run


def test_what_failed_is_named(tiny_server: Server, run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "good.png").write_bytes(photos.data("text.png"))
    for i in range(22):
        (tmp_path / "photos" / f"bad{i:02}.png").write_bytes(b"no image")
    words = ("embed", tmp_path / "photos", "--out", tmp_path / "out", "--target", tiny_server.target)
    told = run(*words, code=3)
    assert "embedded 1, reused 0, removed 0, failed 22" in told
    assert "error: bad00.png: " in told
    assert "bad20.png" not in told
    assert "and 2 more" in told
    assert "--device is of a server" in run(*words, "--device", "cpu", code=1)


def _coco(folder: Path, *annotations: dict[str, Any]) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "one.png").write_bytes(photos.data("text.png"))
    content = {
        "images": [{"id": 1, "file_name": "one.png", "width": 448, "height": 172}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "text"}],
    }
    (folder / "ann.json").write_text(json.dumps(content))
    return folder / "ann.json"


GOOD = {"id": 1, "image_id": "1", "category_id": 1, "bbox": [5, 5, 40, 40]}


def test_odd_annotations_and_files_are_told_and_the_rest_is_embedded(
    tiny_server: Server, run: Callable[..., Any], tmp_path: Path
) -> None:
    file = _coco(
        tmp_path / "set",
        GOOD,
        GOOD | {"bbox": []},
        GOOD | {"category_id": 7},
        GOOD | {"bbox": [900, 5, 9, 9]},
    )
    words = ("embed", file, "--target", tiny_server.target, "--out")
    told = run(*words, tmp_path / "images")
    assert "1 rows; embedded 1" in told
    assert "left out 1 annotation: it has no bbox (ann.json: annotations[1])" in told
    assert (
        "left out 1 annotation: its category_id is of no category (ann.json: annotations[2]: category_id 7)"
        in told
    )
    assert "left out 1 annotation: its box covers nothing of its image (one.png, object 1#2)" in told
    counts = run(*words, tmp_path / "objects", "--instances", "objects", "--json")
    assert (counts["total"], counts["embedded"], counts["failed"]) == (1, 1, 0)
    assert {one["reason"]: one["count"] for one in counts["left_out"]}["it has no bbox"] == 1
    [row] = dataset.read(tmp_path / "objects").rows
    assert (row.object, row.label, row.box) == ("1", "text", (5, 5, 45, 45))
    about = dataset.read(tmp_path / "objects").about["counts"]
    assert about["left_out"] == counts["left_out"]


def test_objects_of_which_none_can_be_taken_are_an_error_that_keeps_what_was_there(
    tiny_server: Server, run: Callable[..., Any], tmp_path: Path
) -> None:
    good = _coco(tmp_path / "good", GOOD)
    words = ("--target", tiny_server.target, "--out", tmp_path / "out", "--instances", "objects")
    run("embed", good, *words)
    odd = _coco(tmp_path / "odd", GOOD | {"image_id": 9}, GOOD | {"bbox": [1, 1, 2, 2]})
    told = run("embed", odd, *words, code=1)
    assert "error: instances is objects, and this source of kind coco has none that can be embedded" in told
    assert "1 are smaller than 9 square pixels" in told
    assert "left out 1 annotation: its image_id is of no image (ann.json: annotations[0]: image_id 9)" in told
    assert "kind folder has none" in run("embed", tmp_path / "odd" / "images", *words, code=1)
    assert len(dataset.read(tmp_path / "out").rows) == 1


def test_files_left_out_do_not_change_the_exit_code(
    tiny_server: Server, run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("good.jfif", "a.heic", "b.HEIC", "._good.png", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(photos.data("text.png"))
    words = ("embed", tmp_path / "photos", "--out", tmp_path / "out", "--target", tiny_server.target)
    for told in (run(*words), run(*words)):  # also where nothing is to be embedded
        heic = "the HEIC format is not supported: convert it to JPEG or PNG (a.heic, b.HEIC)"
        assert f"left out 2 files: {heic}" in told
        assert "left out 1 file: metadata of an operating system (._good.png)" in told
        assert "left out 1 file: its suffix is not that of an image (notes.txt)" in told


def test_a_map_is_kept_as_long_as_the_vectors_are_the_same(folder: Path, run: Callable[..., Any]) -> None:
    told = run("project", folder, "--method", "pca", "--json")
    assert told == {"method": "pca", "metric": "euclidean", "rows": COUNT}
    [file] = (folder / "projections").iterdir()
    written = file.stat().st_mtime_ns
    xy = dataset.project(folder, "pca")
    assert xy.shape == (COUNT, 2)
    assert file.stat().st_mtime_ns == written
    dataset.project(folder, "pca", seed=1)
    assert file.stat().st_mtime_ns != written
    file.write_bytes(b"no map")
    assert "is damaged: delete it" in run("project", folder, "--method", "pca", code=1)


def test_an_analysis_is_columns_and_a_summary(folder: Path, run: Callable[..., Any]) -> None:
    told = run("analyse", folder, "-k", 4, "--clusters", 10, "--show", 3, "--json")
    table = pq.read_table(folder / "analysis.parquet")
    found, held = dataset.analyse(folder, k=4, clusters=10), dataset.read(folder)
    assert table.column("id").to_pylist() == [row.id for row in held.rows]
    np.testing.assert_array_equal(np.array(table.column("neighbours").to_pylist()), found.neighbours)
    assert found.neighbours.shape == (COUNT, 4)
    cosines = cosine_similarity(held.vectors.astype(np.float64))
    np.fill_diagonal(cosines, -2)
    nearest = np.sort(1 - cosines, axis=1)[:, :4]
    np.testing.assert_allclose(found.outlier, nearest.mean(1), atol=1e-6)
    worst = np.argsort(-found.outlier, kind="stable")[:3]
    assert [row["id"] for row in told["outliers"]] == [held.rows[i].id for i in worst]
    assert told["clusters"] == 10
    assert told["rows"] == COUNT
    below = float(np.quantile(found.distances[:, 0], 0.2))
    told = run("analyse", folder, "-k", 4, "--duplicates-below", below, "--json")
    groups = dataset.analyse(folder, k=4, duplicates_below=below).duplicate
    sizes = sorted(np.bincount(groups[groups >= 0]).tolist(), reverse=True)
    assert [len(group) for group in told["near_copies"]] == sizes[:10]
    assert {one["id"] for one in told["near_copies"][0]} < {row.id for row in held.rows}
    said = run("analyse", folder, "-k", 4)
    assert f"neighbours of {COUNT} rows" in said
    assert "groups of near copies" in said


def test_an_evaluation_is_told_and_drawn(folder: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    told = run("evaluate", folder, "--json", "--plot", tmp_path / "plot.png")
    held = dataset.read(folder)
    cosines = cosine_similarity(held.vectors.astype(np.float64))
    np.fill_diagonal(cosines, -2)
    labels = np.array(held.labels)
    assert told["top1_accuracy"] == pytest.approx((labels[cosines.argmax(1)] == labels).mean(), abs=1e-9)
    assert told["accuracy_upper_bound"] == 1.0
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "pr_auc" in run("evaluate", folder)


def test_a_dataset_without_classes_cannot_be_evaluated(
    tiny_server: Server, run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(photos.data("text.png"))
    run("embed", tmp_path / "photos", "--out", tmp_path / "out", "--target", tiny_server.target)
    assert "has no classes to judge by" in run("evaluate", tmp_path / "out", code=1)


def test_two_datasets_are_compared_by_their_neighbourhoods(
    folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    told = run("evaluate", folder, "--against", folder, "--json")
    assert told == {"rows": COUNT, "overlap_at_5": 1.0, "same_nearest": 1.0}
    with pytest.raises(pixvec.InputError, match="in common"):
        dataset.compare(folder, folder, k=COUNT)


def test_what_has_been_made_goes_along_into_an_export(
    folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    atlas = tmp_path / "atlas.parquet"
    assert "dataset project" in run("export", folder, "--format", "atlas", "--out", atlas, code=1)
    dataset.project(folder, "pca")
    dataset.analyse(folder, k=3)
    assert "wrote 1 files" in run("export", folder, "--format", "atlas", "--out", atlas)
    assert pq.read_table(atlas).num_rows == COUNT


def test_a_page_is_written_of_the_maps_and_columns_there_are(
    folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    dataset.project(folder, "pca", "cosine")
    dataset.analyse(folder, k=3)
    page = tmp_path / "page"
    told = run("explore", folder, "--export", page, code=3)
    assert f"{COUNT} images cannot be read" in told  # they were arrays, which are nowhere on disk
    script = (page / "data.js").read_text()
    for shown in ("pca, cosine", "outlier", "label noise", "cluster"):
        assert shown in script
    assert "holds something else" in run("explore", folder, "--export", folder, code=1)


def test_the_list_of_models_says_which_datasets_each_has_made(folder: Path, tiny_server: Server) -> None:
    def listed(*words: object) -> Any:
        told = CliRunner().invoke(app, ["models", *map(str, words), "--target", tiny_server.target])
        assert told.exit_code == 0, told.output
        return told.stdout

    assert json.loads(listed("--datasets", folder.parent, "--json"))[0]["datasets"] == [str(folder)]
    assert json.loads(listed("tiny", "--datasets", folder, "--json"))["datasets"] == [str(folder)]
    assert "datasets" in listed("--datasets", folder)
    about = json.loads((folder / "dataset.json").read_text())
    about["origin"]["space"] = "s1-another"
    (folder / "dataset.json").write_text(json.dumps(about))
    assert json.loads(listed("--datasets", folder, "--json"))[0]["datasets"] == []
    assert "datasets" not in json.loads(listed("--json"))[0]
    (folder / "dataset.json").write_text("[]")
    told = CliRunner().invoke(app, ["models", "--datasets", str(folder), "--target", tiny_server.target])
    assert told.exit_code == 1
    assert "is no description of a dataset" in told.output


def test_commands_say_what_is_no_dataset(run: Callable[..., Any], tmp_path: Path) -> None:
    for words in (
        ["project"],
        ["analyse"],
        ["evaluate"],
        ["explore"],
        ["export", "--format", "npy", "--out", "x"],
    ):
        assert "holds no dataset" in run(words[0], tmp_path, *words[1:], code=1)
    assert "no such file" in run("embed", tmp_path / "none", "--out", tmp_path / "out", code=1)
