"""Images that cannot be read: their rows, and those of their objects, fail and are not dropped."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import photos
from unit.client.archives import write
from unit.client.fake import serving

from pixvec import Client, InputError, dataset

PNG = photos.encode(photos.image("chelsea.png").resize((100, 80)), "PNG")
VOC = """<annotation><size><width>100</width><height>80</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def client() -> Iterator[Client]:
    with serving() as running, Client(running.target, timeout=10) as made:
        yield made


def _coco(folder: Path, *names: str) -> Path:
    images = [{"id": i, "file_name": name, "width": 100, "height": 80} for i, name in enumerate(names)]
    marks = [
        {"id": 10 * i + n, "image_id": i, "category_id": 1, "bbox": [n, n, 30, 30]}
        for i in range(len(names))
        for n in (1, 2)
    ]
    folder.mkdir()
    file = folder / "instances.json"
    held = {"images": images, "annotations": marks, "categories": [{"id": 1, "name": "cat"}]}
    file.write_text(json.dumps(held))
    return file


def _voc(folder: Path, *names: str) -> Path:
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "JPEGImages" / "ok.jpg").write_bytes(PNG)
    for name in names:
        (folder / "Annotations" / f"{name}.xml").write_text(VOC)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names))
    return folder


def _embed(
    given: Path, client: Client, instances: Any, **options: Any
) -> tuple[dataset.Counts, dict[Any, str]]:
    source = dataset.open_source(given, dataset.SourceOptions(**options))
    out = given.parent / f"{instances}.pixvec"
    counts = dataset.embed(source, out, client, dataset.EmbedSettings(instances=instances))
    rows = pq.read_table(out / "embeddings.parquet", columns=["id", "object", "status"]).to_pylist()
    return counts, {(row["id"], row["object"]): row["status"] for row in rows}


@pytest.mark.parametrize("instances", ["objects", "both"])
def test_objects_of_an_image_that_is_not_there_fail(tmp_path: Path, client: Client, instances: str) -> None:
    file = _coco(tmp_path / "c", "ok.png", "gone.png", "link.png")
    (file.parent / "ok.png").write_bytes(PNG)
    (file.parent / "link.png").symlink_to("nowhere.png")
    counts, rows = _embed(file, client, instances)
    objects = {name: status for name, status in rows.items() if name[1] is not None}
    assert objects == {
        **dict.fromkeys([("ok.png", "1"), ("ok.png", "2")], "ok"),
        **dict.fromkeys([("gone.png", "11"), ("gone.png", "12")], "failed"),
        **dict.fromkeys([("link.png", "21"), ("link.png", "22")], "failed"),
    }
    assert counts.failed == (4 if instances == "objects" else 6)


def test_a_source_whose_images_are_all_gone_has_failed_rows(tmp_path: Path, client: Client) -> None:
    counts, rows = _embed(_coco(tmp_path / "c", "gone.png"), client, "objects")
    assert rows == dict.fromkeys([("gone.png", "1"), ("gone.png", "2")], "failed")
    assert (counts.failed, counts.total, counts.left_out) == (2, 2, ())


def test_objects_of_an_image_that_a_split_names_and_that_is_gone_fail(tmp_path: Path, client: Client) -> None:
    counts, rows = _embed(_voc(tmp_path / "v", "ok", "gone"), client, "objects", splits=("train",))
    assert rows == {("ok.jpg", "0"): "ok", ("gone.jpg", "0"): "failed"}
    assert counts.left_out == ()


def test_a_broken_image_without_objects_fails_and_a_good_one_is_empty(tmp_path: Path, client: Client) -> None:
    folder = _voc(tmp_path / "v", "ok")
    shutil.copy(folder / "JPEGImages" / "ok.jpg", folder / "JPEGImages" / "plain.jpg")
    (folder / "JPEGImages" / "link.jpg").symlink_to("nowhere.jpg")
    counts, rows = _embed(folder, client, "objects")
    assert rows == {("ok.jpg", "0"): "ok", ("plain.jpg", None): "empty", ("link.jpg", None): "failed"}
    assert counts.failed == 1


def _errors(given: Path, client: Client, **options: Any) -> dict[str, str]:
    """Return the errors of the failed rows of a dataset by their ids."""
    out = given.parent / f"{given.name}.pixvec"
    dataset.embed(dataset.open_source(given, dataset.SourceOptions(**options)), out, client)
    return {row.id: row.error for row in dataset.read(out).failed}


def test_the_error_of_a_row_has_no_name_of_the_row_before_it(tmp_path: Path, client: Client) -> None:
    long = f"{'x' * 5000}.png"
    file = _coco(tmp_path / "c", "gone.png", "", "../out.png", long)
    assert _errors(file, client) == {
        "gone.png": "no such file in the folder of instances.json, ..",
        "images[1]": "its file_name is empty",
        "../out.png": f"the name '../out.png' leads out of {file.parent}",
        long: "File name too long",
    }
    folder = tmp_path / "f" / "sub"
    folder.mkdir(parents=True)
    (folder / "broken.jpg").symlink_to("nowhere.jpg")
    (folder / "pipe.jpg").mkdir()
    (folder / "a.jpg").write_bytes(PNG)
    (tmp_path / "f" / "list.csv").write_text("cat,sub/broken.jpg\ncat,sub/pipe.jpg\n")
    assert _errors(folder, client) == {"broken.jpg": "No such file or directory"}
    assert _errors(tmp_path / "f" / "list.csv", client) == {
        "sub/broken.jpg": "No such file or directory",
        "sub/pipe.jpg": "not a regular file",
    }
    (tmp_path / "a.tar").write_bytes(b"no archive")
    assert _errors(tmp_path / "a.tar", client)["a.tar"].startswith("the archive cannot be read to its end: ")
    voc = _voc(tmp_path / "v", "gone")
    assert _errors(voc, client, splits=("train",)) == {
        "gone.jpg": "a list of ImageSets names it; it is not there"
    }


def test_a_name_of_any_length_is_printed_short(tmp_path: Path) -> None:
    file = _coco(tmp_path / "c", "ok.png", "y" * 200_000)
    (file.parent / "ok.png").write_bytes(PNG)
    with serving() as running:
        command = [sys.executable, "-m", "pixvec", "dataset", "embed", str(file), "--target", running.target]
        command += ["--out", str(tmp_path / "out")]
        run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 3
    assert "(200000 characters): File name too long\n" in run.stderr
    assert len(run.stdout + run.stderr) < 1000


def test_where_no_object_can_be_taken_the_error_counts_the_broken_images(
    tmp_path: Path, client: Client
) -> None:
    (tmp_path / "a.tar").write_bytes(write(tmp_path / "whole.tar", [("1.jpg", PNG)]).read_bytes()[:700])
    with pytest.raises(InputError, match=r"give one with annotations.*; 1 of its 1 images cannot be read"):
        _embed(tmp_path / "a.tar", client, "objects")
