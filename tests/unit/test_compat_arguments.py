"""Arguments that a program may get wrong, as far as no server is needed to say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixvec import BadOptionError, Client, InputError, ModelNotFoundError
from pixvec.compat import easydl, handscan, transfer, whole_file
from pixvec.compat.pupyl import (
    Characteristics,
    Extractors,
    UnknownCharacteristicsName,
    UnknownCharacteristicsValue,
)


@pytest.fixture
def nowhere() -> Any:
    """A client whose server is away."""
    with Client("127.0.0.1:1", timeout=2) as client:
        yield client


# pupyl


@pytest.mark.parametrize("name", [None, ["x"], 3])
def test_what_is_no_name_is_an_unknown_one(name: Any) -> None:
    with pytest.raises(UnknownCharacteristicsName, match="known: MINIMUM"):
        Characteristics.by_name(name)


@pytest.mark.parametrize("value", ["1", True, [1], None, 1.5])
def test_what_is_no_number_is_an_unknown_one(value: Any) -> None:
    with pytest.raises(UnknownCharacteristicsValue, match="1 to 9 are known"):
        Characteristics.by_value(value)


def test_numpys_numbers_are_numbers() -> None:
    assert Characteristics.by_value(np.int64(3)) is Characteristics.LIGHTWEIGHT_FAST_SHORT_PRECISION  # type: ignore[arg-type]


@pytest.mark.parametrize("uri", [None, b"bytes", np.zeros((4, 4, 3), np.uint8), 7])
def test_what_is_no_uri_is_refused_with_the_way(uri: Any, nowhere: Client) -> None:
    extractor = Extractors(Characteristics.by_value(1), client=nowhere)
    with pytest.raises(
        InputError, match=r"uri is a \w+: pass a path.*model='pupyl-mobilenet', normalize=False"
    ):
        extractor.extract(uri)
    with pytest.raises(NotImplementedError):
        extractor.preprocessor(uri)


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Extractors.save(tmp_path / "no" / "cat.npy", np.ones(2))
    assert caught.value.filename == str(tmp_path / "no" / "cat.npy")
    long = tmp_path / f"{'x' * 251}.npy"
    Extractors.save(long, np.ones(2))
    assert Extractors.load(long).tolist() == [1, 1]


def _break_off(path: Path, error: Exception) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise error


def test_what_breaks_off_leaves_nothing_and_keeps_its_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    for error in (OSError("no number"), KeyError("x")):
        with pytest.raises(type(error)) as caught:
            _break_off(tmp_path / "x", error)
        assert caught.value is error
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"before")]


# easydl


@pytest.mark.parametrize("name", [None, 18, ["resnet18"]])
def test_what_is_no_model_name_is_an_unknown_one(name: Any) -> None:
    with pytest.raises(easydl.UnknownModelError, match="no model is called"):
        easydl.DMLModelManager.get_model(name)


def test_weights_are_named_wherever_easydl_takes_them() -> None:
    for weights in ("DEFAULT", None):
        with pytest.raises(
            easydl.UnknownModelError, match=f"has no weights {weights!r} here, only IMAGENET1K_V1"
        ):
            easydl.EfficientNetMetricModel("efficientnet_b0", 128, weights)  # type: ignore[arg-type]


# HandScanAI


def test_no_regions_are_no_vectors_and_no_call() -> None:
    assert handscan.calculate_embeddings_from_tensor_dict({}) == {}
    assert handscan.calculate_embeddings_from_path_dict({}) == {}


@pytest.mark.parametrize("regions", [["hand.png"], "hand.png", None])
def test_regions_are_a_dict(regions: Any) -> None:
    for calculate in (
        handscan.calculate_embeddings_from_tensor_dict,
        handscan.calculate_embeddings_from_path_dict,
    ):
        with pytest.raises(InputError, match=r"regions_dict is a .*: pass a dict of images by key"):
            calculate(regions)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint8), None, b"bytes"])
def test_what_is_no_path_is_refused_by_its_key(image: Any) -> None:
    with pytest.raises(InputError, match=r"regions_dict\['Thumb'\]: a \w+ is no path"):
        handscan.calculate_embeddings_from_path_dict({"Hand": "hand.png", "Thumb": image})


@pytest.mark.parametrize("model", [handscan.CNNModel.DENSENET_121, "DENSENET_121", handscan.load_model])
def test_a_model_is_what_load_model_returns(model: Any) -> None:
    with pytest.raises(BadOptionError, match=r"pass what load_model\(\) returns"):
        handscan.calculate_embedding(np.zeros((4, 4, 3), np.uint8), model)


@pytest.mark.parametrize("model", ["DENSENET_121", None, 3])
def test_a_network_is_a_cnn_model(model: Any) -> None:
    with pytest.raises(BadOptionError, match=r"give one of CNNModel\.DENSENET_121, "):
        handscan.load_model(model)


# transfer-learning


@pytest.mark.parametrize("size", ["8", 0, 2.5, None])
def test_a_batch_is_a_whole_number(size: Any) -> None:
    with pytest.raises(BadOptionError, match=r"batch_size = .*: give a whole number of 1 or more"):
        transfer.generate_embedding(csv_file="x.csv", batch_size=size)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"cat\n", r"line 1: 'cat' is not label,path"),
        (b"cat,a.jpg\ndog,\n", r"line 2: 'dog,' is not label,path"),
        (b"\n\n", "it lists no images"),
        (b"cat,\xff.jpg\n", "it is no csv file in UTF-8"),
        (b'cat,"a.jpg\n', "it is no csv file in UTF-8: unexpected end of data"),
    ],
)
def test_what_is_no_list_of_images_is_refused_with_its_line(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(InputError, match=rf"x\.csv: .*{said}"):
        transfer.generate_embedding(csv_file=tmp_path / "x.csv")


def test_a_comma_in_a_path_is_said_to_be_the_trouble(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="its path has a comma: rename the file"):
        transfer.generate_embedding(npy_data=tmp_path / "a,b.npy", npy_labels=tmp_path / "y.npy")


def test_a_model_that_is_no_text_is_an_unknown_one(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("cat,a.jpg\n")
    with pytest.raises(ModelNotFoundError, match="trained_model = None: give one of VGG16"):
        transfer.generate_embedding(csv_file=tmp_path / "x.csv", trained_model=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["3", "-1"], [3, -1]),
        (["007", "3"], ["007", "3"]),
        (["1_000"], ["1_000"]),
        (["9" * 30], ["9" * 30]),
        (["1", ""], ["1", ""]),
    ],
)
def test_labels_are_numbers_only_where_nothing_is_lost(texts: list[str], labels: list[Any]) -> None:
    assert transfer._labels_of(texts).tolist() == labels


def test_labels_of_bytes_are_written_as_text(tmp_path: Path) -> None:
    transfer._write_csv([tmp_path / "x.csv"], np.ones((2, 1), np.float32), np.array([[b"cat"], [b"dog"]]))
    assert (tmp_path / "x.csv").read_text().splitlines() == ["Class,n0", "cat,1.0", "dog,1.0"]
