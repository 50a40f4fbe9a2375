"""A tree of folders as a source."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import photos
from unit.client.archives import write

from pixvec import InputError
from pixvec.dataset._pictures import Picture, SourceOptions
from pixvec.dataset.sources import KINDS, open_source


def _tree(root: Path) -> None:
    for name, photo in (("b/two.JPG", "china.jpg"), ("b/one.png", "brick.png"), ("a/x/deep.png", "cell.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photos.data(photo))
    (root / "top.png").write_bytes(photos.data("moon.png"))
    (root / "b" / "notes.txt").write_text("no image")
    (root / "b" / ".hidden.png").write_bytes(b"")
    (root / ".cache").mkdir()
    (root / ".cache" / "thumb.png").write_bytes(b"")


def _pictures(given: Path, options: SourceOptions | None = None) -> list[Picture]:
    return list(open_source(given, options or SourceOptions()).pictures())


def test_images_come_sorted_with_the_name_of_their_folder_and_nothing_hidden(tmp_path: Path) -> None:
    _tree(tmp_path)
    source = open_source(tmp_path)
    found = [(picture.id, picture.label) for picture in source.pictures()]
    assert found == [("a/x/deep.png", "x"), ("b/one.png", "b"), ("b/two.JPG", "b"), ("top.png", None)]
    assert (source.kind, source.total, dict(source.colours)) == ("folder", 4, {})
    assert [picture.read() for picture in source.pictures()] == [tmp_path / name for name, _ in found]
    assert next(source.pictures()).uri == str(tmp_path / "a/x/deep.png")


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    _tree(tmp_path / "tree")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(photos.data("moon.png"))
    (tmp_path / "tree" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "a" / "up").symlink_to(tmp_path / "tree")
    (tmp_path / "tree" / "self").symlink_to(tmp_path / "tree" / "self")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "tree" / "a")
    names = [picture.id for picture in _pictures(tmp_path / "tree")]
    assert names == ["a/x/deep.png", "b/one.png", "b/two.JPG", "linked/far.png", "top.png"]


def test_a_stamp_changes_with_the_file_and_a_strict_one_with_its_content_alone(tmp_path: Path) -> None:
    _tree(tmp_path)
    file, strict = tmp_path / "top.png", SourceOptions(strict=True)
    quick, content = _pictures(tmp_path)[-1].stamp, _pictures(tmp_path, strict)[-1].stamp
    assert _pictures(tmp_path)[-1].stamp == quick
    os.utime(file, ns=(1, 1))
    assert _pictures(tmp_path)[-1].stamp != quick
    assert _pictures(tmp_path, strict)[-1].stamp == content
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert _pictures(tmp_path, strict)[-1].stamp != content


def test_what_cannot_be_read_is_yielded_and_says_why(tmp_path: Path) -> None:
    _tree(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = {picture.id: picture for picture in _pictures(tmp_path, SourceOptions(strict=True))}
    assert found["pipe.png"].stamp == found["broken.png"].stamp == "missing"
    with pytest.raises(OSError, match="not a regular file"):
        found["pipe.png"].read()
    with pytest.raises(OSError, match="No such file"):
        found["broken.png"].read()


def test_a_name_that_is_no_text_is_made_one(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(photos.data("moon.png"))
    (picture,) = _pictures(tmp_path)
    assert picture.id == "caf\\udce9.png"
    assert Path(str(picture.read())).read_bytes() == photos.data("moon.png")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "no such file or folder"),
        ("empty", "no images below"),
        ("x.doc", "tar archive; options.kind"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.doc").write_bytes(b"")
    with pytest.raises(InputError, match=said) as caught:
        open_source(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_kind_can_be_given_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("cat,a.png\n")
    assert open_source(tmp_path / "list.txt", SourceOptions(kind="csv")).kind == "csv"
    with pytest.raises(InputError, match="kind is 'cvs'; it must be one of folder, csv, npy, coco") as caught:
        open_source(tmp_path, SourceOptions(kind="cvs"))
    assert all(kind in str(caught.value) for kind in KINDS)
    with pytest.raises(InputError, match="give a mapping"):
        open_source(tmp_path, SourceOptions(kind="mapping"))
    with pytest.raises(InputError, match="a mapping was given"):
        open_source({"a": b"x"}, SourceOptions(kind="folder"))


def test_a_kind_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("cat\ta.png\n")
    np.save(tmp_path / "b.npy", np.zeros((1, 2, 2, 3), np.uint8))
    (tmp_path / "c.json").write_text('{"images": [{"id": 1, "file_name": "a.png"}]}')
    kinds = [open_source(tmp_path / name).kind for name in ("a.tsv", "b.npy", "c.json")]
    assert kinds == ["csv", "npy", "coco"]
    assert open_source({"a": b"x"}).kind == "mapping"


def test_archives_and_tables_are_found_however_deep_where_there_is_no_image(tmp_path: Path) -> None:
    data = tmp_path / "repository" / "data"
    data.mkdir(parents=True)
    write(data / "shard.TAR", [("1.jpg", photos.data("china.jpg"))])
    assert open_source(tmp_path).kind == "tar"
    pq.write_table(pa.table({"image": [b"x"]}), data / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="say by --kind tar or --kind parquet which"):
        open_source(tmp_path)
    (data / "shard.TAR").unlink()
    assert open_source(tmp_path).kind == "parquet"
    (data / "a.png").write_bytes(b"x")
    assert open_source(tmp_path).kind == "folder"


def test_a_folder_with_a_coco_file_is_read_by_it_and_one_of_several_must_be_named(tmp_path: Path) -> None:
    inner = tmp_path / "only" / "subfolder"
    _tree(inner / "images" / "default")
    (inner / "annotations").mkdir()
    content = '{"images": [{"id": 1, "file_name": "top.png"}]}'
    (inner / "annotations" / "instances_default.json").write_text(content)
    source = open_source(tmp_path)
    assert (source.kind, [picture.id for picture in source.pictures()]) == ("coco", ["top.png"])
    (inner / "annotations" / "instances_other.json").write_text(content)
    with pytest.raises(InputError, match=r"has 2 COCO files.*instances_other\.json.*--kind folder"):
        open_source(tmp_path)
    assert open_source(tmp_path, SourceOptions(kind="folder")).total == 4


def _voc(folder: Path) -> None:
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"x")


def _supervisely(folder: Path) -> None:
    (folder / "ds" / "img").mkdir(parents=True)
    (folder / "ds" / "img" / "a.jpg").write_bytes(b"x")
    (folder / "meta.json").write_text('{"classes": [], "tags": []}')


def _coco(file: str) -> Callable[[Path], None]:
    def write_to(folder: Path) -> None:
        held = {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
        }
        for at in (folder / file, folder / "data" / "a.jpg"):
            at.parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / "a.jpg").write_bytes(b"x")
        (folder / file).write_text(json.dumps(held))

    return write_to


FORMS = {
    "coco of Roboflow": ("coco", _coco("_annotations.coco.json")),
    "coco of FiftyOne": ("coco", _coco("labels.json")),
    "coco of Label Studio": ("coco", _coco("result.json")),
    "coco of one's own": ("coco", _coco("annotations/train.json")),
    "keypoints": ("coco", _coco("annotations/person_keypoints_val2017.json")),
    "voc": ("voc", _voc),
    "supervisely": ("supervisely", _supervisely),
}


@pytest.mark.parametrize(("kind", "fill"), FORMS.values(), ids=FORMS)
def test_an_annotated_dataset_is_never_read_as_a_plain_folder(
    tmp_path: Path, kind: str, fill: Callable[[Path], None]
) -> None:
    fill(tmp_path / "alone")
    assert open_source(tmp_path / "alone").kind == kind
    outer = tmp_path / "export"
    fill(outer / "train")
    (outer / "README.roboflow.txt").write_text("x")
    source = open_source(outer)
    [picture] = source.pictures()
    assert (source.kind, picture.stamp != "missing") == (kind, True)
    fill(outer / "valid")
    with pytest.raises(InputError, match=r"has 2 annotated datasets: .*train.*valid.*--kind folder"):
        open_source(outer)
    assert open_source(outer, SourceOptions(kind="folder")).total == 2


@pytest.mark.parametrize("fill", [_voc, _coco("_annotations.coco.json")])
def test_annotated_datasets_two_folders_below_are_named(tmp_path: Path, fill: Callable[[Path], None]) -> None:
    fill(tmp_path / "VOCdevkit" / "VOC2007")
    fill(tmp_path / "VOCdevkit" / "VOC2012")
    (tmp_path / "README.txt").write_text("x")
    with pytest.raises(InputError, match=r"has 2 annotated datasets: .*VOC2007.*VOC2012"):
        open_source(tmp_path)


def test_an_annotated_dataset_that_a_link_leads_to_again_is_one(tmp_path: Path) -> None:
    _coco("_annotations.coco.json")(tmp_path / "train")
    for name, to in (("again", "train"), ("zoo", "train"), ("self", "."), ("nowhere", "nowhere")):
        (tmp_path / name).symlink_to(to)
    assert (open_source(tmp_path).kind, open_source(tmp_path).total) == ("coco", 1)


def test_images_beside_an_annotated_dataset_are_not_dropped(tmp_path: Path) -> None:
    _coco("_annotations.coco.json")(tmp_path / "train")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.jpg").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"has images beside an annotated dataset: give .*train/_annotations"
    ):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", '{"classes": ["cat"], "labels": {"a": 0}}', '{"images": [], "annotations": []}']
)
def test_json_without_boxes_leaves_a_folder_plain(tmp_path: Path, text: str) -> None:
    _tree(tmp_path)
    (tmp_path / "labels.json").write_text(text)
    assert open_source(tmp_path).kind == "folder"


@pytest.mark.parametrize(
    "layout", ["images/train|labels/train", "train/images|train/labels", "images|labels"]
)
def test_the_layout_of_yolo_is_named_and_not_guessed(tmp_path: Path, layout: str) -> None:
    images, labels = layout.split("|")
    _tree(tmp_path / images)
    (tmp_path / labels).mkdir(parents=True)
    (tmp_path / labels / "top.txt").write_text("0 0.5 0.5 1 1\n")
    with pytest.raises(InputError, match=r"as YOLO's datasets are.*--kind folder"):
        open_source(tmp_path)
    assert open_source(tmp_path, SourceOptions(kind="folder")).total == 4


@pytest.mark.parametrize("name", ["metadata.csv", "labels.csv", "Train.TSV", "list.jsonl", "data.parquet"])
def test_a_list_beside_the_images_is_pointed_out(tmp_path: Path, name: str) -> None:
    _tree(tmp_path)
    (tmp_path / name).write_text("file_name,label\ntop.png,cat\n")
    reasons = {one.reason: one.examples for one in open_source(tmp_path).omissions.all()}  # type: ignore[attr-defined]
    [reason] = [reason for reason in reasons if "to take its classes" in reason]
    assert reasons[reason] == (name,)


@pytest.mark.parametrize("kind", ["folder", "mapping"])
def test_splits_of_what_has_none_are_refused(tmp_path: Path, kind: str) -> None:
    _tree(tmp_path)
    given: Any = tmp_path if kind == "folder" else {"a": b"x"}
    with pytest.raises(InputError, match=f"splits is a, but a source of kind {kind} has none: leave it out"):
        open_source(given, SourceOptions(splits=("a",)))


def test_importing_the_sources_loads_no_reader_of_files() -> None:
    # The package they are in is stood for by its folder: what it imports itself is not their doing.
    code = """
import importlib.util, sys, types
name = "pixvec.dataset"
package = sys.modules[name] = types.ModuleType(name)
package.__path__ = importlib.util.find_spec("pixvec").submodule_search_locations[0] + "/dataset",
import pixvec.dataset.sources
print(*{"PIL", "pyarrow", "pandas"}.intersection(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
