"""A folder in the form of Pascal VOC as a source."""

from pathlib import Path
from typing import Any

import pytest
from support import photos

from pixvec import InputError
from pixvec._omissions import LeftOut
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions
from pixvec.dataset.sources import open_source

PNG = photos.encode(photos.image("chelsea.png").resize((100, 80)), "PNG")
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


def _object(left: object, top: object, right: object, bottom: object, name: str = "cat") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, right, bottom), strict=True)
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{part}<bndbox>{box}</bndbox></object>"


def _folder(root: Path, **annotations: str | None) -> Path:
    for name in ("JPEGImages", "Annotations"):
        (root / name).mkdir(exist_ok=True)
    for name, text in annotations.items():
        (root / "JPEGImages" / f"{name}.png").write_bytes(PNG)
        if text is not None:
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


def _only(source: Any) -> LeftOut:
    [left_out] = source.omissions.all()
    assert isinstance(left_out, LeftOut)
    return left_out


def _one(root: Path, text: str) -> Picture:
    (picture,) = open_source(_folder(root, a=text)).pictures()
    return picture


def test_images_come_sorted_with_the_objects_of_their_annotations(tmp_path: Path) -> None:
    whole = f"<annotation><filename>../../secret.png</filename>{SIZE}{_object(1, 1, 10, 20)}</annotation>"
    source = open_source(_folder(tmp_path, b=None, a=whole))
    first, second = source.pictures()
    assert (source.kind, source.total, dict(source.colours)) == ("voc", 2, {})
    assert (first.id, second.id) == ("a.png", "b.png")
    assert (len(first.objects), len(second.objects)) == (1, 0)
    assert first.read() == tmp_path / "JPEGImages" / "a.png"


def test_pixels_are_counted_from_1_and_the_last_belongs_to_the_box(tmp_path: Path) -> None:
    objects = _object(1, 1, 10, 20), _object(45.7, 2.2, 60.1, 9), _object(91, 71, 120, 90, " dog\n")
    inverted, outside = _object(5, 5, 4, 9), _object(101, 1, 120, 9)
    picture = _one(tmp_path, f"<annotation>{SIZE}{''.join(objects)}{inverted}{outside}</annotation>")
    assert picture.objects == (
        Annotation("0", "cat", (0, 0, 10, 20), 200.0),
        Annotation("1", "cat", (44, 1, 61, 9), 136.0),
        Annotation("2", "dog", (90, 70, 100, 80), 100.0),
        Annotation("3", "cat", (0, 0, 0, 0), 0.0),
        Annotation("4", "cat", (0, 0, 0, 0), 0.0),
    )


def test_an_annotation_without_a_size_is_taken_as_it_is(tmp_path: Path) -> None:
    picture = _one(tmp_path, f"<annotation>{_object(91, 71, 120, 90)}</annotation>")
    assert [marked.box for marked in picture.objects] == [(90, 70, 120, 90)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "declared",
    ["", '<!ENTITY x SYSTEM "file:///etc/passwd">', f'<!ENTITY l0 "ha">{LAUGHS}<!ENTITY x "&l11;">'],
)
def test_a_doctype_is_refused_before_anything_expands(tmp_path: Path, encoding: str, declared: str) -> None:
    text = f"<!DOCTYPE annotation [{declared}]><annotation>{'&x;' if declared else ''}</annotation>"
    _folder(tmp_path, a="")
    (tmp_path / "Annotations" / "a.xml").write_text(text, encoding=encoding)
    source = open_source(tmp_path)
    (picture,) = source.pictures()
    assert (picture.objects, picture.read()) == ((), tmp_path / "JPEGImages" / "a.png")
    assert "a.xml: it has a DOCTYPE, which is refused" in _only(source).examples[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no element found"),
        ("<annotation>", "no element found"),
        ("<annotation>&x;</annotation>", "undefined entity"),
        ('<?xml version="1.0" encoding="none-such"?><annotation/>', "unknown encoding: none-such"),
        ("<annotation>" + " " * (8 << 20) + "</annotation>", "more than 8388608 bytes"),
    ],
)
def test_an_annotation_that_is_no_xml_is_counted_and_its_image_stays(
    tmp_path: Path, text: str, said: str
) -> None:
    source = open_source(_folder(tmp_path, a=text, b=f"<annotation>{_object(1, 1, 9, 9)}</annotation>"))
    first, second = source.pictures()
    assert (first.read(), first.objects) == (tmp_path / "JPEGImages" / "a.png", ())
    assert [marked.label for marked in second.objects] == ["cat"]
    left_out = _only(source)
    assert (left_out.what, left_out.reason, left_out.count) == ("annotation file", "it cannot be read", 1)
    assert "a.xml: " in left_out.examples[0]
    assert said in left_out.examples[0]
    assert list(source.pictures()) != []
    assert _only(source).count == 1  # not counted twice


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (_object(1, 1, "x", 9), "its bndbox/xmax is not a number"),
        (_object("nan", 1, 2, 9), "its bndbox/xmin is not a number"),
        (_object(1, "", 2, 9), "its bndbox/ymin is not a number"),
        (_object("1e300", 1, 2, 9), "it is malformed"),
        (_object(1, 1, 2, 3, " "), "it has no name"),
        ("<object/>", "it has no name"),
        ("<object><name>a</name></object>", "it has no bndbox"),
        ("<object><name>a</name><bndbox><xmin>1</xmin></bndbox></object>", "it has no bndbox/ymin"),
        ("<object><name>a</name><polygon><x1>1</x1></polygon></object>", "it has no bndbox"),
    ],
)
def test_an_odd_object_is_counted_and_the_others_stay(tmp_path: Path, entry: str, reason: str) -> None:
    good = _object(1, 1, 10, 20)
    source = open_source(_folder(tmp_path, a=f"<annotation>{SIZE}{good}{entry}{good}</annotation>"))
    (picture,) = source.pictures()
    assert [marked.id for marked in picture.objects] == ["0", "2"]
    assert picture.read() == tmp_path / "JPEGImages" / "a.png"
    left_out = _only(source)
    assert (left_out.what, left_out.reason) == ("annotation", reason)
    assert left_out.examples[0].startswith("a.xml: object 1")


@pytest.mark.parametrize("size", ["", "<size><width>x</width><height>9</height></size>", "<size/>"])
def test_a_size_that_is_none_cuts_nothing(tmp_path: Path, size: str) -> None:
    picture = _one(tmp_path, f"<annotation>{size}{_object(91, 71, 120, 90)}</annotation>")
    assert [marked.box for marked in picture.objects] == [(90, 70, 120, 90)]


def test_an_annotation_without_an_image_is_counted(tmp_path: Path) -> None:
    _folder(tmp_path, a=None)
    (tmp_path / "Annotations" / "gone.xml").write_text("<annotation/>")
    left_out = _only(open_source(tmp_path))
    assert (left_out.reason, left_out.examples) == ("it has no image of its name", ("gone.xml",))


def test_voc_is_found_under_other_names_and_in_an_only_subfolder(tmp_path: Path) -> None:
    inner = tmp_path / "VOCdevkit" / "VOC2012"
    inner.mkdir(parents=True)
    _folder(inner, a=f"<annotation>{_object(1, 1, 10, 20)}</annotation>")
    source = open_source(tmp_path)
    assert (source.kind, next(source.pictures()).objects[0].label) == ("voc", "cat")
    (inner / "JPEGImages").rename(inner / "images")
    (inner / "Annotations").rename(inner / "annotations")
    source = open_source(tmp_path)
    assert (source.kind, next(source.pictures()).objects[0].label) == ("voc", "cat")


def _listed(root: Path, **lists: str) -> Path:
    _folder(root, **dict.fromkeys(("a", "b", "c", "two 1")))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, text in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text, encoding="utf-8-sig")
    return root


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        (("train",), ["a.png", "two 1.png"]),
        (("train", "val"), ["a.png", "b.png", "two 1.png"]),
        (("cat_train",), ["a.png", "c.png"]),
    ],
)
def test_splits_are_lists_of_imagesets(tmp_path: Path, splits: tuple[str, ...], found: list[str]) -> None:
    _listed(tmp_path, train="a\r\ntwo 1\n\n", val="b\na\n", cat_train="a  1\nb -1\nc  0\n")
    source = open_source(tmp_path, SourceOptions(splits=splits))
    assert [picture.id for picture in source.pictures()] == found
    assert source.total == len(found)


def test_an_image_that_a_split_lists_and_that_is_not_there_says_so(tmp_path: Path) -> None:
    source = open_source(_listed(tmp_path, val="../secret\nb\n"), SourceOptions(splits=("val",)))
    there, gone = source.pictures()
    assert (source.total, there.id, gone.id, gone.stamp) == (2, "b.png", "../secret.jpg", "missing")
    with pytest.raises(OSError, match="a list of ImageSets names it; it is not there"):
        gone.read()


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("test", "ImageSets/Main has no list 'test'; it has empty, odd, train"),
        ("../../secret", "leads out of"),
        ("empty", "the lists empty of ImageSets/Main name no image"),
        ("odd", r"odd\.txt: its line 'a 1 2 3' must be a name, or a name and 1, 0 or -1"),
    ],
)
def test_a_split_that_is_no_list_is_refused(tmp_path: Path, split: str, said: str) -> None:
    _listed(tmp_path, train="a\n", empty="\n", odd="a 1 2 3\n")
    (tmp_path / "secret.txt").write_text("a\n")
    with pytest.raises(InputError, match=said) as caught:
        open_source(tmp_path, SourceOptions(splits=(split,)))
    assert str(tmp_path) in str(caught.value)


def test_a_stamp_is_the_images(tmp_path: Path) -> None:
    _folder(tmp_path, a=None, b=None)
    before = [picture.stamp for picture in open_source(tmp_path, SourceOptions(strict=True)).pictures()]
    (tmp_path / "JPEGImages" / "b.png").write_bytes(photos.data("moon.png"))
    after = [picture.stamp for picture in open_source(tmp_path, SourceOptions(strict=True)).pictures()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in its JPEGImages folder"):
        open_source(_folder(tmp_path))
