"""Images that a program holds, as a source."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import photos

from pixvec import InputError
from pixvec._inputs import to_input
from pixvec.dataset._pictures import Picture, SourceOptions
from pixvec.dataset.sources import open_source

JPEG = photos.data("china.jpg")


def _pictures(images: Any, options: SourceOptions | None = None) -> list[Picture]:
    return list(open_source(images, options or SourceOptions()).pictures())


def _forms(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    small = photos.image("china.jpg").resize((12, 8))
    return {
        "path": tmp_path / "a.jpg",
        "text": str(tmp_path / "a.jpg"),
        "bytes": JPEG,
        "view": memoryview(JPEG),
        "array": np.asarray(small),
        "pil": small,
        "input": to_input(JPEG),
        "file": BytesIO(JPEG),
        "data": "data:image/png;base64,iVBORw0KGgo=",
    }


def test_whatever_the_client_takes_is_read_as_it_is_given_twice_over(tmp_path: Path) -> None:
    images = _forms(tmp_path)
    source = open_source(images)
    assert (source.kind, source.total, dict(source.colours)) == ("mapping", len(images), {})
    wanted = [to_input(image) for image in _forms(tmp_path).values()]
    for _ in range(2):
        pictures = list(source.pictures())
        assert [(picture.id, picture.label) for picture in pictures] == [(key, None) for key in images]
        assert [to_input(picture.read()) for picture in pictures] == wanted
    assert pictures[0].uri == str(tmp_path / "a.jpg")


def test_labels_stand_beside_images_and_ids_are_texts() -> None:
    images: Any = {3: (JPEG, "cat"), "3": (JPEG, None), (1, 2): (JPEG, 7)}
    assert [(p.id, p.label) for p in _pictures(images)] == [("3", "cat"), ("3#2", None), ("(1, 2)", "7")]


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (np.int64(3), "3"),
        (np.uint8(7), "7"),
        (np.float32(3), "3"),
        (np.float32(2.5), "2.5"),
        (np.str_("cat"), "cat"),
        (np.float64("nan"), None),
        (float("inf"), "inf"),
    ],
)
def test_labels_may_be_numbers_of_numpy(label: Any, text: str | None) -> None:
    assert [picture.label for picture in _pictures({"a": (JPEG, label)})] == [text]


class _BytesPath:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return bytes(self.path)


def test_a_path_may_be_given_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (picture,) = _pictures({"a": _BytesPath(tmp_path / "a.jpg")})
    assert picture.read() == tmp_path / "a.jpg"


def test_a_stamp_changes_with_the_content_alone(tmp_path: Path) -> None:
    before = [picture.stamp for picture in _pictures(_forms(tmp_path), SourceOptions(strict=True))]
    assert before == [picture.stamp for picture in _pictures(_forms(tmp_path), SourceOptions(strict=True))]
    array = np.asarray(photos.image("china.jpg").resize((12, 8))).copy()
    first = _pictures({"a": array})[0].stamp
    array[3, 4, 1] ^= 1
    stamps = {first, _pictures({"a": array})[0].stamp, _pictures({"a": array.reshape(12, 8, 3)})[0].stamp}
    assert len(stamps) == 3
    assert first == before[4]


def test_what_the_client_would_refuse_says_so_when_it_is_read(tmp_path: Path) -> None:
    images: Any = {"a": np.zeros((2, 2, 7), np.uint8), "b": 5, "c": tmp_path / "gone.png", "d": JPEG}
    array, number, gone, good = _pictures(images)
    for picture, said in ((array, "c = 1, 3 or 4"), (number, "cannot be a int"), (gone, "No such file")):
        with pytest.raises(OSError, match=said):
            picture.read()
    assert good.read() == JPEG


def test_an_image_of_pillow_is_not_read_before_its_turn() -> None:
    (picture,) = _pictures({"a": Image.open(BytesIO(JPEG))})
    assert isinstance(picture.read(), Image.Image)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ({}, "holds no images"),
        ({"a": (JPEG, "cat", 1)}, r"images\['a'\]: a tuple is \(image, label\), not of 3"),
        ({"a": (JPEG, ["cat"])}, r"images\['a'\]: a label is a text or a number, not list"),
    ],
)
def test_a_mapping_of_something_else_is_refused(images: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_source(images)
