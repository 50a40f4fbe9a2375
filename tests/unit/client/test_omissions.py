"""The lines that tell what was left out."""

import pytest

from pixvec._omissions import LeftOut


@pytest.mark.parametrize(
    ("what", "plural"),
    [
        ("file", "files"),
        ("annotation file", "annotation files"),
        ("image entry", "image entries"),
        ("category entry", "category entries"),
        ("list of images", "lists of images"),
        ("array", "arrays"),
    ],
)
def test_what_is_counted_has_its_plural(what: str, plural: str) -> None:
    assert str(LeftOut(what, "odd", 1)) == f"1 {what}: odd"
    assert str(LeftOut(what, "odd", 2)) == f"2 {plural}: odd"
