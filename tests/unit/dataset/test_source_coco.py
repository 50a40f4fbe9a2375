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


@pytest.mark.parametrize(
    "images",
    [".", "images", "data", "../images", "../data", "../train2017", "../val2017", "../val2014"],
)
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


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "{root}/secret.png"])
def test_a_name_that_leads_out_of_the_folder_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    images = [{"id": 1, "file_name": name.format(root=tmp_path)}]
    (picture,) = _pictures(_write(tmp_path / "project" / "i.json", images=images))
    with pytest.raises(OSError, match="leads out of"):
        picture.read()
    assert picture.stamp == "missing"


def test_an_image_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    for name in ("images", "annotations/data", "val2017"):
        (tmp_path / name).mkdir(parents=True)
    picture = _pictures(_write(tmp_path / "annotations" / "i.json"))[0]
    with pytest.raises(OSError, match=r".") as caught:
        picture.read()
    assert str(caught.value) == "no such file in the folder of i.json, data, ../images, .., ../val2017"


POLYGONS = [[10, 10, 90, 10, 90, 60], [5, 20, 8, 20, 8, 30]]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (_mark(category_id=2), "its category_id is of no category"),
        (_mark(category_id=None), "it has no category_id"),
        ({"image_id": 5, "bbox": [1, 2, 3, 4]}, "it has no category_id"),
        (_mark(image_id=77), "its image_id is of no image"),
        (_mark(image_id=None), "an id is neither a number nor a text"),
        (_mark(image_id=[5]), "an id is neither a number nor a text"),
        (_mark(image_id=True), "an id is neither a number nor a text"),
        ({"category_id": 1, "bbox": [1, 2, 3, 4]}, "it has no 'image_id'"),
        (_mark(bbox=[]), "it has no bbox"),
        (_mark(bbox=None), "it has no bbox"),
        (
            _mark(bbox=None, segmentation={"counts": [1], "size": [8, 8]}),
            "it has no bbox, and its segmentation",
        ),
        (_mark(bbox=None, segmentation=[[1, 2, 3, 4]]), "it has no bbox, and its segmentation"),
        (_mark(bbox=None, keypoints=[1, 2, 2]), "it has keypoints, and no bbox"),
        (_mark(bbox=[1, 2, 3]), "its bbox is not [left, top, width, height] in pixels"),
        (_mark(bbox=[1, 2, 3, 4, 0.5]), "its bbox is not"),
        (_mark(bbox=[1, float("nan"), 3, 4]), "its bbox is not"),
        (_mark(bbox=[10**300, 2, 3, 4]), "its bbox is not"),
        (_mark(bbox=[10**400, 2, 3, 4]), "its bbox is not"),
        (_mark(bbox=[1, 2, "3", 4]), "its bbox is not"),
        (_mark(bbox=[1, 2, None, 4]), "its bbox is not"),
        (_mark(bbox={"x": 1}), "its bbox is not"),
        (_mark(bbox=[1, 2, float("inf"), 4]), "its bbox is not"),
        (_mark(bbox=None, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "a polygon of its segmentation is not"),
        (_mark(iscrowd=1), "it marks a crowd"),
        ({"image_id": 5, "caption": "a cat", "category_id": 1}, "a caption marks no object"),
        ("text", "it is not an object of JSON"),
        (None, "it is not an object of JSON"),
    ],
)
def test_an_odd_annotation_is_counted_and_the_others_stay(
    tmp_path: Path, annotation: Any, reason: str
) -> None:
    _put(tmp_path)
    source = open_source(_write(tmp_path / "i.json", _mark(), annotation, _mark(id=12)))
    first, second = source.pictures()
    assert [marked.id for marked in first.objects] == ["11", "12"]
    assert second.objects == ()
    assert Path(str(second.read())).read_bytes() == PNG
    [left_out] = source.omissions.all()  # type: ignore[attr-defined]
    assert (left_out.what, left_out.count) == ("annotation", 1)
    assert left_out.reason.startswith(reason)
    assert left_out.examples[0].startswith("i.json: annotations[1]")


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3, 4, 5, 6, 7]], [1, 2, 3, 4, 5, 6], [["a", 1, 2, 3, 4, 5]]]
)
def test_an_odd_outline_is_counted_and_the_object_has_its_box(tmp_path: Path, segmentation: Any) -> None:
    _put(tmp_path)
    source = open_source(_write(tmp_path / "i.json", _mark(segmentation=segmentation)))
    assert next(source.pictures()).objects == (Annotation("11", "dog", (10, 20, 16, 25), 12.5),)
    [left_out] = source.omissions.all()  # type: ignore[attr-defined]
    assert (left_out.what, left_out.count) == ("outline", 1)


def test_a_box_is_that_of_all_polygons_where_there_is_no_bbox(tmp_path: Path) -> None:
    [found] = _boxes(tmp_path, _mark(bbox=None, segmentation=POLYGONS, area="?"))
    assert (found.box, found.area) == ((5, 10, 90, 60), 85 * 50)
    assert found.outline == ((10, 10), (90, 10), (90, 60))


def test_an_area_that_is_no_measure_is_the_boxs(tmp_path: Path) -> None:
    found = _boxes(tmp_path, *(_mark(area=area) for area in (float("nan"), "9", -1, True)))
    assert [marked.area for marked in found] == [30.0] * 4


@pytest.mark.parametrize(("image_id", "category_id"), [("5", "90"), (5.0, 90.0), (" 5 ", 90), (5, "90")])
def test_ids_are_the_same_as_numbers_and_as_texts(tmp_path: Path, image_id: Any, category_id: Any) -> None:
    [found] = _boxes(tmp_path, _mark(image_id=image_id, category_id=category_id))
    assert found.label == "dog"


def test_an_id_of_the_same_type_goes_first(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "b.png"}, {"id": "1", "file_name": "sub/a.png"}]
    _put(tmp_path)
    marks = _mark(image_id="1"), _mark(image_id=1, id=12)
    first, second = _pictures(_write(tmp_path / "i.json", *marks, images=images))
    assert [first.objects[0].id, second.objects[0].id] == ["12", "11"]


def _left_out(source: Any) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in source.omissions.all()]


def test_two_images_of_one_id_are_both_taken_without_its_annotations(tmp_path: Path) -> None:
    images = [
        {"id": 5, "file_name": "b.png"},
        {"id": 5, "file_name": "sub/a.png"},
        IMAGES[0],
        {"file_name": "c"},
    ]
    _put(tmp_path)
    source = open_source(_write(tmp_path / "i.json", _mark(), images=images))
    assert [(one.id, one.objects) for one in source.pictures()] == [
        *(("b.png", ()), ("sub/a.png", ()), ("c", ()))
    ]
    assert sorted(_left_out(source)) == [
        ("annotation", "its image_id is of several images"),
        ("image entry", "it repeats one before it"),
        ("image id", "it has no id, so that no annotation can refer to it"),
        ("image id", "its id is that of another image"),
    ]


def test_an_entry_with_an_empty_file_name_says_so(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": ""}, IMAGES[0]]
    picture, _ = _pictures(_write(tmp_path / "i.json", images=images))
    assert (picture.id, picture.uri) == ("images[0]", str(tmp_path / "i.json"))
    with pytest.raises(OSError, match=r"^its file_name is empty$"):
        picture.read()


def test_an_entry_without_a_file_name_is_found_by_its_url_or_says_so(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/sets/{}"
    images: list[Any] = [
        {"id": 1, "coco_url": url.format("b.png")},
        {"id": 2, "file_name": None, "coco_url": url.format("far%20off.png")},
        *({"id": 3, "file_name": "gone.png", "coco_url": url.format("gone.png")}, {"id": 4}, "text"),
    ]
    _put(tmp_path)
    near, far, gone, without, text = _pictures(_write(tmp_path / "i.json", images=images))
    assert near.read() == tmp_path / "b.png"
    assert (far.id, far.read()) == ("far off.png", url.format("far%20off.png"))
    for picture, said in (
        (gone, "^no such file"),
        (without, "^it has no 'file_name'$"),
        (text, "^it is 'text'"),
    ):
        with pytest.raises(OSError, match=said):
            picture.read()


def test_categories_that_are_missing_or_ambiguous(tmp_path: Path) -> None:
    _put(tmp_path)
    file = tmp_path / "i.json"
    file.write_text(json.dumps({"images": IMAGES, "annotations": [_mark()]}))
    assert _pictures(file)[0].objects[0].label == "90"
    categories = [*CATEGORIES, {"id": 90, "name": "wolf"}, {"id": 91}, "text"]
    content = {"images": IMAGES, "annotations": [_mark(), _mark(category_id=1)], "categories": categories}
    file.write_text(json.dumps(content))
    source = open_source(file)
    assert [marked.label for marked in next(source.pictures()).objects] == ["cat"]
    assert sorted(_left_out(source)) == [
        ("annotation", "its category_id is of several categories"),
        ("category entry", "it has no 'name'"),
        ("category entry", "it is not an object of JSON"),
        ("category entry", "its id is that of another category"),
    ]


@pytest.mark.parametrize("annotations", [None, {"1": {}}])
def test_annotations_that_are_no_list_leave_the_images(tmp_path: Path, annotations: Any) -> None:
    (tmp_path / "i.json").write_text(json.dumps({"images": IMAGES, "annotations": annotations}))
    source = open_source(tmp_path / "i.json")
    assert len(list(source.pictures())) == 2
    assert _left_out(source) == [("list of annotations", "it is malformed")]


@pytest.mark.parametrize("name", [r"sub\b.png", r"images\sub\b.png", r".\images\sub\b.png"])
def test_backslashes_are_slashes_where_there_is_no_such_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "b.png").write_bytes(PNG)
    (picture,) = _pictures(_write(tmp_path / "i.json", images=[{"id": 1, "file_name": name}]))
    assert Path(str(picture.read())).read_bytes() == PNG
    (picture,) = _pictures(_write(tmp_path / "i.json", images=[{"id": 1, "file_name": rf"..\..\{name}"}]))
    with pytest.raises(OSError, match=r"not in|leads out of"):
        picture.read()


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("instances_default.json", "images/default"),
        ("instances_val2017.json", "images/val2017"),
        ("instances_all.json", "images/first"),
        ("train.json", "train"),
    ],
)
def test_images_are_found_in_the_folder_of_their_subset(tmp_path: Path, file: str, folder: str) -> None:
    written = _write(tmp_path / "annotations" / file)
    _put(tmp_path / folder)
    assert [picture.read() for picture in _pictures(written)] == [
        tmp_path / folder / name for name in ("b.png", "sub/a.png")
    ]


def test_of_two_files_of_one_name_the_subsets_own_is_taken_or_neither(tmp_path: Path) -> None:
    for folder in ("train2017", "val2017"):
        _put(tmp_path / folder)
    own = _pictures(_write(tmp_path / "annotations" / "instances_val2017.json"))[0]
    assert own.read() == tmp_path / "val2017" / "b.png"
    either = _pictures(_write(tmp_path / "annotations" / "all.json"))[0]
    with pytest.raises(OSError, match=r"which file is meant\? .*train2017/b\.png, .*val2017/b\.png"):
        either.read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "it holds a list; it must hold an object"),
        ('{"images": {"1": {}}}', "its images is a dict; it must be a list"),
        (
            '{"images": [{"id": 1, "file_name": null}]}',
            r"images\[0\]: its file_name is None; it must be a text",
        ),
        ("{}", "it has no 'images'"),
        ('{"images": []}', "list of images is empty"),
        ('{"images": [{"id": 1}]}', "images\\[0\\]: it has no 'file_name'"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        open_source(tmp_path / "i.json")
    assert "i.json" in str(caught.value)
