"""A Supervisely project as a source."""

import base64
import json
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import photos

from pixvec import InputError
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions
from pixvec.dataset.sources import open_source

CLASSES = [
    {"title": "car", "shape": "rectangle", "color": "#FF8000"},
    {"title": "lake", "shape": "polygon", "color": "#0000ff"},
    {"title": "odd", "shape": "any", "color": "red; }"},
]
PNG = photos.encode(photos.image("chelsea.png").resize((100, 80)), "PNG")


def _project(root: Path, datasets: dict[str, dict[str, list[Any] | None]]) -> Path:
    root.mkdir(exist_ok=True)
    (root / "meta.json").write_text(json.dumps({"classes": CLASSES, "tags": [], "projectType": "images"}))
    for dataset, images in datasets.items():
        for kind in ("img", "ann"):
            (root / dataset / kind).mkdir(parents=True, exist_ok=True)
        for name, objects in images.items():
            (root / dataset / "img" / name).write_bytes(PNG)
            if objects is not None:
                annotation = {"size": {"width": 100, "height": 80}, "objects": objects}
                (root / dataset / "ann" / f"{name}.json").write_text(json.dumps(annotation))
    return root


def _object(shape: str, exterior: Any, **more: Any) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": more.pop("interior", [])}
    return {"id": 7, "classTitle": "car", "geometryType": shape, "points": points} | more


def _one(tmp_path: Path, *objects: Any) -> Picture:
    (picture,) = open_source(_project(tmp_path, {"ds": {"a.png": list(objects)}})).pictures()
    return picture


def _bitmap(png: bytes, origin: Any = (10, 20)) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(png)).decode()
    return {
        "id": 9,
        "classTitle": "car",
        "geometryType": "bitmap",
        "bitmap": {"data": data, "origin": origin},
    }


def test_the_datasets_of_a_project_come_in_order_nested_ones_too(tmp_path: Path) -> None:
    images: dict[str, list[Any] | None] = {"b.png": [], "a.png": None}
    _project(tmp_path, {"train": images, "train/datasets/night": {"c.png": []}, "test": {"a.png": []}})
    (tmp_path / "train" / "datasets" / "again").symlink_to(tmp_path / "train")
    source = open_source(tmp_path)
    found = [picture.id for picture in source.pictures()]
    assert found == ["test/a.png", "train/a.png", "train/b.png", "train/night/c.png"]
    assert (source.kind, source.total) == ("supervisely", 4)
    assert source.colours == {"car": "#ff8000", "lake": "#0000ff"}
    assert next(source.pictures()).read() == tmp_path / "test/img/a.png"


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (("test",), ["test/a.png"]),
        (("train",), ["train/a.png", "train/night/c.png"]),
        (("train/night",), ["train/night/c.png"]),
    ],
)
def test_splits_take_datasets_with_those_in_them(
    tmp_path: Path, splits: tuple[str, ...], found: list[str]
) -> None:
    _project(tmp_path, {name: {"a.png": []} for name in ("train", "train2", "test")})
    _project(tmp_path, {"train/datasets/night": {"c.png": []}})
    source = open_source(tmp_path, SourceOptions(splits=splits))
    assert [picture.id for picture in source.pictures()] == found
    with pytest.raises(InputError, match="no dataset val; it has test, train, train/night, train2"):
        open_source(tmp_path, SourceOptions(splits=("test", "val")))


def test_both_corners_of_a_rectangle_belong_to_it(tmp_path: Path) -> None:
    picture = _one(
        tmp_path, _object("rectangle", [[10, 20], [19, 24]]), _object("rectangle", [[5, 9], [3, 4]])
    )
    assert picture.objects == (
        Annotation("7", "car", (10, 20, 20, 25), 50.0),
        Annotation("7#2", "car", (3, 4, 6, 10), 18.0),
    )


def test_a_box_is_cut_to_the_image_and_one_outside_it_has_no_area(tmp_path: Path) -> None:
    inside, outside = _object("rectangle", [[-5, 70], [300, 90]]), _object("rectangle", [[100, 0], [120, 9]])
    found = _one(tmp_path, inside, outside).objects
    assert [(marked.box, marked.area) for marked in found] == [
        ((0, 70, 100, 80), 1000.0),
        ((0, 0, 0, 0), 0.0),
    ]


def test_a_polygon_has_its_outline_and_its_area_without_holes(tmp_path: Path) -> None:
    corners, hole = [[10, 10], [30, 10], [30.5, 20], [10, 20]], [[12, 12], [14, 12], [14, 14], [12, 14]]
    (marked,) = _one(tmp_path, _object("polygon", corners, interior=[hole], classTitle="lake", id=4)).objects
    assert (marked.id, marked.label, marked.box) == ("4", "lake", (10, 10, 31, 21))
    assert marked.area == pytest.approx(202.5 - 4)
    assert marked.outline == ((10, 10), (30, 10), (30.5, 20), (10, 20))


@pytest.mark.parametrize("shape", ["line", "polyline"])
def test_a_line_is_as_large_as_it_is_long(tmp_path: Path, shape: str) -> None:
    (marked,) = _one(tmp_path, _object(shape, [[0, 0], [3, 4], [3, 10]])).objects
    assert (marked.box, marked.area, len(marked.outline)) == ((0, 0, 4, 11), 11.0, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA"])
def test_a_bitmap_is_the_pixels_that_are_set(tmp_path: Path, mode: str) -> None:
    mask = Image.new("L", (30, 12))
    mask.paste(255, (4, 2, 14, 7))
    options: dict[str, Any] = {}
    picture = mask.convert(mode) if mode in {"L", "1"} else Image.new(mode, mask.size)
    if mode == "RGBA":
        picture.putalpha(mask)
    if mode == "P":
        picture = mask.point(lambda value: min(value, 1))
        picture.putpalette([0, 0, 0, 255, 255, 255])
        options = {"transparency": 0}
    (marked,) = _one(tmp_path, _bitmap(photos.encode(picture, "PNG", **options))).objects
    assert marked == Annotation("9", "car", (14, 22, 24, 27), 50.0)


def test_an_empty_bitmap_has_no_area_and_other_geometries_are_no_objects(tmp_path: Path) -> None:
    empty = _bitmap(photos.encode(Image.new("L", (4, 4)), "PNG"))
    found = _one(tmp_path, empty, _object("point", [[1, 1]]), _object("cuboid", [])).objects
    assert found == (Annotation("9", "car", (0, 0, 0, 0), 0.0),)


@pytest.mark.parametrize(("size", "box"), [((15.5, 80), (10, 20, 15, 25)), (("100", "22"), (10, 20, 20, 22))])
def test_a_size_that_is_no_whole_number_is_made_one(tmp_path: Path, size: Any, box: tuple[int, ...]) -> None:
    _project(tmp_path, {"ds": {"a.png": []}})
    told = {
        "size": {"width": size[0], "height": size[1]},
        "objects": [_object("rectangle", [[10, 20], [19, 24]])],
    }
    (tmp_path / "ds" / "ann" / "a.png.json").write_text(json.dumps(told))
    (marked,) = next(open_source(tmp_path).pictures()).objects
    assert marked.box == box
    assert all(isinstance(edge, int) for edge in marked.box)


def _tagged(root: Path, *tags: Any) -> Path:
    _project(root, {"ds": {"a.png": []}})
    known = [{"name": name, "color": "#00FF00"} for name in ("cat", "dog", "season", "car")]
    (root / "meta.json").write_text(json.dumps({"classes": CLASSES, "tags": known}))
    annotation = {"size": {"width": 100, "height": 80}, "objects": [], "tags": tags}
    (root / "ds" / "ann" / "a.png.json").write_text(json.dumps(annotation))
    return root


CAT, DOG = {"name": "cat", "value": None}, {"name": "dog"}
WINTER, SPRING = {"name": "season", "value": "winter"}, {"name": "season", "value": "spring"}


@pytest.mark.parametrize(
    ("tags", "chosen", "label"),
    [
        ([CAT], None, "cat"),
        ([CAT, WINTER, CAT], None, "cat"),
        ([CAT, DOG], None, None),
        ([WINTER], None, None),
        ([], None, None),
        ([CAT, WINTER], "season", "winter"),
        ([WINTER, SPRING], "season", None),
        ([CAT, DOG], "dog", "dog"),
        ([CAT, WINTER | {"value": 3}], "season", "3"),
    ],
)
def test_a_tag_is_the_class_of_an_image(
    tmp_path: Path, tags: list[Any], chosen: str | None, label: str | None
) -> None:
    source = open_source(_tagged(tmp_path, *tags), SourceOptions(label_column=chosen))
    assert [picture.label for picture in source.pictures()] == [label]
    assert (source.colours["cat"], source.colours["car"]) == ("#00ff00", "#ff8000")


def test_a_tag_that_the_project_does_not_have_is_refused(tmp_path: Path) -> None:
    said = r"meta\.json: label_column is 'kind', and its tags are cat, dog, season, car"
    with pytest.raises(InputError, match=said):
        open_source(_tagged(tmp_path), SourceOptions(label_column="kind"))


@pytest.mark.parametrize("tag", ["cat", {"value": 1}, WINTER | {"value": [1]}])
def test_a_broken_tag_is_counted_and_its_image_stays(tmp_path: Path, tag: Any) -> None:
    source = open_source(_tagged(tmp_path, tag), SourceOptions(label_column="season"))
    (picture,) = source.pictures()
    assert (picture.label, picture.read()) == (None, tmp_path / "ds/img/a.png")
    assert [(one.what, one.count) for one in source.omissions.all()] == [("tag", 1)]  # type: ignore[attr-defined]


def test_the_class_tells_the_geometry_where_the_object_does_not(tmp_path: Path) -> None:
    entry = _object("", [[10, 20], [19, 24]])
    del entry["geometryType"]
    assert _one(tmp_path, entry).objects[0].box == (10, 20, 20, 25)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png() -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_object("rectangle", [[1, 2]], points={}), "it has no 'exterior'"),
        (_object("polygon", []), "objects\\[1\\]"),
        (_object("polygon", [[float("nan"), 1]]), "nan is no measure"),
        (_object("rectangle", [["a", 1], [2, 3]]), "must be real number"),
        (_object("rectangle", [[1e300, 1], [2, 3]]), "is no image's"),
        ({"id": 1}, "it has no 'classTitle'"),
        ("text", "objects\\[1\\]"),
        (_bitmap(PNG, origin=[1]), "objects\\[1\\]"),
        (_bitmap(b"no png"), "no PNG"),
        (_bitmap(PNG[:200]), "no PNG"),
        (_bitmap(bytes(40 << 20)), "unpacks to more than"),
        (_bitmap(_huge_png()), "100000x100000 pixels"),
        (_bitmap(b"") | {"bitmap": {"data": "AAAA", "origin": [0, 0]}}, "zlib cannot unpack"),
        (_bitmap(b"") | {"bitmap": {"data": "*", "origin": [0, 0]}}, "objects\\[1\\]"),
    ],
)
def test_an_odd_object_is_counted_and_the_others_stay(tmp_path: Path, broken: Any, said: str) -> None:
    good = _object("rectangle", [[10, 20], [19, 24]])
    source = open_source(_project(tmp_path, {"ds": {"a.png": [good, broken], "b.png": [good]}}))
    first, second = source.pictures()
    assert (len(first.objects), len(second.objects)) == (1, 1)
    assert first.read() == tmp_path / "ds/img/a.png"
    [left_out] = source.omissions.all()  # type: ignore[attr-defined]
    assert (left_out.what, left_out.count) == ("annotation", 1)
    assert "a.png.json: objects[1]" in left_out.examples[0]
    assert re.search(said, f"{left_out.reason} {left_out.examples[0]}")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"size": {"width": "x"}}', "[" * 100_000])
def test_one_broken_annotation_file_of_many_is_counted(tmp_path: Path, text: str) -> None:
    good = _object("rectangle", [[10, 20], [19, 24]])
    _project(tmp_path, {"ds": {"a.png": [good], "b.png": [good]}})
    (tmp_path / "ds" / "ann" / "a.png.json").write_text(text)
    source = open_source(tmp_path)
    assert [len(picture.objects) for picture in source.pictures()] == [0, 1]
    [left_out] = source.omissions.all()  # type: ignore[attr-defined]
    assert (left_out.what, left_out.count) == ("annotation file", 1)
    assert "a.png.json" in left_out.examples[0]


def test_annotation_files_without_an_image_are_counted(tmp_path: Path) -> None:
    images: dict[str, list[Any] | None] = {"a.png": [], "link.png": [], "gone.png": [], "raw.xyz": []}
    _project(tmp_path, {"ds": images, "ds/datasets/night": {"gone.png": []}, "other": {"gone.png": []}})
    for dataset in ("ds", "ds/datasets/night"):
        (tmp_path / dataset / "img" / "gone.png").unlink()
    (tmp_path / "ds/img/link.png").unlink()
    (tmp_path / "ds/img/link.png").symlink_to("nowhere.png")
    (tmp_path / "ds/datasets/night/img/b.png").write_bytes(PNG)
    (tmp_path / "ds" / "ann" / "notes.txt").write_text("x")
    source = open_source(tmp_path, SourceOptions(splits=("ds",)))
    for _ in range(2):
        assert [picture.id for picture in source.pictures()] == ["ds/a.png", "ds/link.png", "ds/night/b.png"]
        found = [one for one in source.omissions.all() if one.what == "annotation file"]  # type: ignore[attr-defined]
        assert [(one.reason, one.count, one.examples) for one in found] == [
            (
                "it has no image of its name",
                3,
                ("ds/ann/gone.png.json", "ds/ann/raw.xyz.json", "ds/night/ann/gone.png.json"),
            )
        ]


def test_a_stamp_is_the_images(tmp_path: Path) -> None:
    project = _project(tmp_path, {"ds": {"a.png": [], "b.png": []}})
    before = [picture.stamp for picture in open_source(project, SourceOptions(strict=True)).pictures()]
    (project / "ds" / "img" / "b.png").write_bytes(photos.data("moon.png"))
    after = [picture.stamp for picture in open_source(project, SourceOptions(strict=True)).pictures()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize(
    "meta", ["{", "[]", "{}", '{"classes": {}}', '{"classes": [{"shape": "any"}]}', "[" * 100_000]
)
def test_a_broken_meta_is_refused(tmp_path: Path, meta: str) -> None:
    _project(tmp_path, {"ds": {"a.png": []}})
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(InputError, match=r"meta\.json"):
        open_source(tmp_path)


def test_a_project_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in the img folder of a dataset: ds"):
        open_source(_project(tmp_path, {"ds": {}}))


def test_a_bitmap_without_pillow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'pixvec\[cli\]'"):
        _one(tmp_path, _bitmap(PNG))
