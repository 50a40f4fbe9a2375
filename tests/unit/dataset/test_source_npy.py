"""An npy file and its labels as a source."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import photos

from pixvec import InputError
from pixvec._inputs import to_input
from pixvec.dataset._pictures import Picture, SourceOptions
from pixvec.dataset.sources import open_source

SIZE = (16, 9)  # width, height


def _photos() -> Any:
    names = ("china.jpg", "coffee.png", "rocket.jpg")
    return np.stack([np.asarray(photos.image(name).resize(SIZE)) for name in names])


def _pictures(file: Path, array: Any, **options: Any) -> list[Picture]:
    np.save(file, array)
    return list(open_source(file, SourceOptions(**options)).pictures())


def _read(picture: Picture) -> Any:
    image = picture.read()
    assert isinstance(image, np.ndarray)
    to_input(image)  # raises for what the client does not take
    return image


@pytest.mark.parametrize("form", ["NHWC", "flat", "0..1", "0..255"])
def test_rows_are_the_images_in_any_form(tmp_path: Path, form: str) -> None:
    images = _photos()
    forms = {
        "NHWC": images,
        "flat": images.reshape(3, -1),
        "0..1": (images / 255).astype(np.float32),
        "0..255": images.astype(np.float64),
    }
    options = {"height": 9, "width": 16} if form == "flat" else {}
    found = _pictures(tmp_path / "X.npy", forms[form], **options)
    assert [picture.id for picture in found] == ["row/000000", "row/000001", "row/000002"]
    assert all(np.array_equal(_read(picture), image) for picture, image in zip(found, images, strict=True))
    assert found[1].uri == f"{tmp_path}/X.npy[1]"


def test_grey_images_have_two_axes(tmp_path: Path) -> None:
    grey = _photos()[:, :, :, 0]
    (first, *_), flat = (
        _pictures(tmp_path / "X.npy", grey),
        _pictures(tmp_path / "Y.npy", grey.reshape(3, -1), height=9, width=16, channels=1),
    )
    assert np.array_equal(_read(first), grey[0])
    assert np.array_equal(_read(flat[0])[:, :, 0], grey[0])


def test_the_whole_array_decides_how_floats_are_scaled(tmp_path: Path) -> None:
    bright, dark = np.full((2, 2, 3), 200.0), np.ones((2, 2, 3))
    together = _pictures(tmp_path / "X.npy", np.stack([bright, dark]))
    assert _read(together[1]).max() == 1
    alone = _pictures(tmp_path / "Y.npy", dark[np.newaxis])
    assert _read(alone[0]).max() == 255


def test_a_stamp_changes_with_its_row_alone_and_with_how_it_is_cut(tmp_path: Path) -> None:
    images = _photos().reshape(3, -1)
    before = [p.stamp for p in _pictures(tmp_path / "X.npy", images, height=9, width=16)]
    other = [p.stamp for p in _pictures(tmp_path / "X.npy", images, height=16, width=9)]
    assert not set(before).intersection(other)
    images[1, 5] ^= 1
    after = [p.stamp for p in _pictures(tmp_path / "X.npy", images, height=9, width=16)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    ("data", "labels"),
    [("X.npy", "X_labels.npy"), ("X_data.npy", "X_labels.npy"), ("v_data.npy", "v_data_labels.npy")],
)
def test_labels_are_found_beside(tmp_path: Path, data: str, labels: str) -> None:
    np.save(tmp_path / labels, np.array([[2], [0], [7]]))
    assert [picture.label for picture in _pictures(tmp_path / data, _photos())] == ["2", "0", "7"]


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (np.array(["cat", "dog", ""]), ["cat", "dog", None]),
        (np.array([b"cat", b"d\xf6g", b"owl"]), ["cat", "d\ufffdg", "owl"]),
        (np.array([1.0, 2.5, np.nan]), ["1", "2.5", None]),
    ],
)
def test_labels_are_given_after_a_comma(tmp_path: Path, labels: Any, texts: list[str | None]) -> None:
    np.save(tmp_path / "a.npy", _photos())
    np.save(tmp_path / "b.npy", labels)
    source = open_source(f"{tmp_path}/a.npy,{tmp_path}/b.npy")
    assert (source.kind, source.total) == ("npy", 3)
    assert [picture.label for picture in source.pictures()] == texts


@pytest.mark.parametrize(
    ("array", "options", "said"),
    [
        (
            np.zeros((2, 300), np.uint8),
            {},
            r"rows of 300.*height \* width = 100 \(such as 10 and 10\) with channels=3",
        ),
        (np.zeros((2, 784), np.uint8), {"height": 28, "width": 28}, "such as 28 and 28.* with channels=1"),
        (np.zeros((2, 4, 4, 5), np.uint8), {}, "C = 1, 3 or 4"),
        (np.zeros((2, 3, 8, 9), np.uint8), {}, r"put the channels last: numpy\.moveaxis\(X, 1, -1\)"),
        (np.zeros((8, 9, 3), np.uint8), {}, r"looks like one image of \[H,W,C\]: save X\[None\]"),
        (np.zeros((4,), np.uint8), {}, r"\[N,H,W\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), {}, "holds no pixel"),
        (np.zeros((2, 4, 4, 3), np.int64), {}, "its numbers are int64; use uint8"),
        (np.full((2, 4, 4, 3), -0.5), {}, r"not -0\.5\.\.-0\.5: undo the normalisation"),
        (np.full((2, 4, 4, 3), 256.0), {}, "undo the normalisation"),
        (np.full((2, 4, 4, 3), np.nan), {}, "undo the normalisation"),
    ],
)
def test_what_are_no_images_is_refused_with_the_mend(
    tmp_path: Path, array: Any, options: dict[str, int], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        _pictures(tmp_path / "X.npy", array, **options)
    assert str(tmp_path / "X.npy") in str(caught.value)


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "X_labels.npy", np.zeros(2))
    with pytest.raises(InputError, match=r"X_labels\.npy: its shape is \(2,\).*has 3 rows"):
        _pictures(tmp_path / "X.npy", _photos())


class _Runs:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    np.save(tmp_path / "X.npy", np.array([_Runs(proof)], dtype=object), allow_pickle=True)
    (tmp_path / "Y.npy").write_bytes(pickle.dumps(_Runs(proof)))
    for name, said in (
        ("X.npy", "Python objects, which are not loaded: save numbers"),
        ("Y.npy", "numpy.save"),
    ):
        with pytest.raises(InputError, match=f"{name}: .*{said}"):
            open_source(tmp_path / name)
    assert not proof.exists()


def _with_header(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(96)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"no array",
        b"PK\x03\x04 no zip",
        _with_header(b"{'descr': '|u1', 'shape': " + b"(" * 3000),
        _with_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4, 3)}"),
        _with_header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999, 4, 4, 3)}"),
        _with_header(b"[]"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "X.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"X\.npy"):
        open_source(tmp_path / "X.npy")


def test_a_file_that_was_cut_off_and_an_archive_of_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "X.npy", _photos())
    (tmp_path / "X.npy").write_bytes((tmp_path / "X.npy").read_bytes()[:-1])
    with pytest.raises(InputError, match=r"X\.npy"):
        open_source(tmp_path / "X.npy")
    with (tmp_path / "Y.npy").open("wb") as file:
        np.savez(file, a=_photos())
    with pytest.raises(InputError, match="not one array"):
        open_source(tmp_path / "Y.npy")
