"""A COCO file as a source."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import photos

from pixvec import InputError
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions
from pixvec.dataset.sources import open_source

IMAGES = [
    {"id": 5, "file_name": "b.png", "width": 100, "height": 80},
    {"id": 3, "file_name": "sub/a.png", "width": 100, "height": 80},
]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}]
PNG = photos.encode(photos.image("chelsea.png").resize((100, 80)), "PNG")


def _mark(**more: Any) -> dict[str, Any]:
    return {
        "id": 11,
        "image_id": 5,
        "category_id": 90,
        "bbox": [10.2, 20.7, 5.1, 4.0],
        "area": 12.5,
        "iscrowd": 0,
    } | more


def _write(file: Path, *annotations: Any, images: Any = IMAGES) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return file


def _put(folder: Path, data: bytes = PNG) -> None:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("b.png", "sub/a.png"):
        (folder / name).write_bytes(data)


def _pictures(file: Path, options: SourceOptions | None = None) -> list[Picture]:
    return list(open_source(file, options or SourceOptions()).pictures())


def _boxes(tmp_path: Path, *annotations: Any) -> list[Annotation]:
    _put(tmp_path)
    return list(_pictures(_write(tmp_path / "i.json", *annotations))[0].objects)


@pytest.mark.parametrize("images", [".", "images", "../images", "../train2017", "../val2017", "../val2014"])
def test_images_are_found_where_coco_has_them_in_the_order_of_the_file(tmp_path: Path, images: str) -> None:
    file = _write(
        tmp_path / "annotations" / "instances_val2014.json", _mark(), _mark(image_id=3, id=12, category_id=1)
    )
    _put(file.parent / images)
    source = open_source(file)
    first, second = source.pictures()
    assert (source.kind, source.total, dict(source.colours)) == ("coco", 2, {})
    assert (first.id, second.id, first.label) == ("b.png", "sub/a.png", None)
    assert [marked.label for picture in (first, second) for marked in picture.objects] == ["dog", "cat"]
    assert all(Path(str(picture.read())).read_bytes() == PNG for picture in (first, second))


def test_a_box_becomes_the_whole_pixels_that_cover_it(tmp_path: Path) -> None:
    assert _boxes(tmp_path, _mark()) == [Annotation("11", "dog", (10, 20, 16, 25), 12.5)]
    beyond = _mark(bbox=[90, 70, 10.4, 10.1])
    found = _boxes(tmp_path, beyond, *(_mark(area=area, bbox=[0, 0, 4, 5]) for area in (None, 0)))
    assert [(marked.id, marked.box, marked.area) for marked in found] == [
        ("11", (90, 70, 100, 80), 12.5),
        ("11#2", (0, 0, 4, 5), 20.0),
        ("11#3", (0, 0, 4, 5), 20.0),
    ]


def test_crowds_and_annotations_of_other_images_are_kept_out(tmp_path: Path) -> None:
    crowd = _mark(iscrowd=1, segmentation={"counts": [1, 2], "size": [80, 100]})
    found = _boxes(tmp_path, crowd, _mark(image_id=77), _mark(iscrowd="1"), _mark(iscrowd="0", id=12))
    assert [marked.id for marked in found] == ["12"]


@pytest.mark.parametrize("bbox", [[5.5, 5.5, 0, 3], [50, 50, -20, 10], [100, 0, 9, 9], [-9, -9, 9, 9]])
def test_a_box_of_no_extent_in_the_image_is_an_object_without_area(tmp_path: Path, bbox: Any) -> None:
    (found,) = _boxes(tmp_path, _mark(bbox=bbox, segmentation=[[1, 1, 9, 1, 9, 9]]))
    assert found == Annotation("11", "dog", (0, 0, 0, 0), 0.0)


def test_the_outline_is_the_largest_polygon_and_a_run_length_has_none(tmp_path: Path) -> None:
    small, large = [1, 1, 3, 1, 3, 3, 2, 4, 1, 3], [10, 10, 30.5, 10, 30, 20, 10, 20]
    polygons, runs = (
        _mark(segmentation=[small, large, [1, 2]]),
        _mark(segmentation={"counts": "x", "size": [80, 100]}),
    )
    found = _boxes(tmp_path, polygons, runs)
    assert [marked.outline for marked in found] == [((10, 10), (30.5, 10), (30, 20), (10, 20)), ()]


def test_a_stamp_changes_with_the_image(tmp_path: Path) -> None:
    file, strict = _write(tmp_path / "i.json"), SourceOptions(strict=True)
    _put(tmp_path)
    before = [picture.stamp for picture in _pictures(file, strict)]
    (tmp_path / "b.png").write_bytes(photos.data("moon.png"))
    after = [picture.stamp for picture in _pictures(file, strict)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]
    assert before[0].startswith("sha256:")


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{root}/secret.png", ""])
def test_a_name_that_leads_out_of_the_folder_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    images = [{"id": 1, "file_name": name.format(root=tmp_path)}]
    (picture,) = _pictures(_write(tmp_path / "project" / "i.json", images=images))
    with pytest.raises(OSError, match="leads out of"):
        picture.read()
    assert picture.stamp == "missing"


def test_an_image_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    picture = _pictures(_write(tmp_path / "i.json"))[0]
    with pytest.raises(OSError, match=r"b\.png: not in .*images.*val2017"):
        picture.read()


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (_mark(category_id=2), "annotations\\[1\\]: its category_id is 2, which no category has"),
        (_mark(bbox=[1, 2, 3]), r"its bbox is \[1, 2, 3\]; it must be \[left, top, width, height\]"),
        (_mark(bbox=[1, float("nan"), 3, 4]), r"annotations\[1\]: a box of \(1, nan, 4, nan\)"),
        (_mark(bbox=[10**300, 2, 3, 4]), r"annotations\[1\]: a box of \(1e\+300, 2, "),
        (_mark(bbox=[1, 2, "3", 4]), "annotations\\[1\\]"),
        (_mark(bbox=[1, 2, float("inf"), 4]), "annotations\\[1\\]"),
        (_mark(area=float("nan")), "nan is no measure"),
        (_mark(image_id=[5]), "annotations\\[1\\]: unhashable"),
        (_mark(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r"is \[1, 2, .*; it must be \[x, y, x, y, …\]"),
        (_mark(segmentation=[1, 2, 3, 4, 5, 6]), r"a polygon of its segmentation is 1; it must be"),
        ({"image_id": 5, "caption": "a cat"}, "annotations\\[1\\]: it is a caption.*the file of instances"),
        ("text", "annotations\\[1\\]"),
    ],
)
def test_a_broken_annotation_is_refused_by_its_place(tmp_path: Path, annotation: Any, said: str) -> None:
    file = _write(tmp_path / "i.json", _mark(), annotation)
    with pytest.raises(InputError, match=said) as caught:
        open_source(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "it holds a list; it must hold an object"),
        ('{"images": {"1": {}}}', "its images is a dict; it must be a list"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": null}', "its annotations is a NoneType"),
        (
            '{"images": [{"id": 1, "file_name": null}]}',
            r"images\[0\]: its file_name is None; it must be a text",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
            r"images\[1\]: its id 1 is that of an image before it",
        ),
        (
            (
                '{"images": [{"id": 1, "file_name": "a"}], '
                '"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}'
            ),
            r"categories\[1\]: its id 1 is that of another category",
        ),
        ("{}", "it has no 'images'"),
        ('{"images": []}', "list of images is empty"),
        ('{"images": [{"id": 1}]}', "images\\[0\\]: it has no 'file_name'"),
        ('{"images": [{"id": [], "file_name": "a"}]}', "images\\[0\\]: unhashable"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 1}]}',
            "categories\\[0\\]: it has no 'name'",
        ),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        open_source(tmp_path / "i.json")
    assert "i.json" in str(caught.value)
