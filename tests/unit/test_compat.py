"""What other libraries' names lead to, as far as no server is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics, preprocessing
from support.servers import ROOT

from pixvec import Client, InputError, InternalError, PixvecError, UnavailableError
from pixvec.compat import easydl, handscan, shared_client, transfer
from pixvec.compat.pupyl import (
    Characteristics,
    Extractors,
    UnknownCharacteristics,
    UnknownCharacteristicsName,
    UnknownCharacteristicsValue,
)
from pixvec_server import catalog, provision

# As pupyl's documentation has them: number, name, vector, side.
PUPYL = [
    (1, "MINIMUMWEIGHT_FAST_SMALL_PRECISION", 1024, 224),
    (2, "LIGHTWEIGHT_FAST_SMALL_PRECISION", 2048, 224),
    (3, "LIGHTWEIGHT_FAST_SHORT_PRECISION", 2048, 224),
    (4, "LIGHTWEIGHT_QUICK_SHORT_PRECISION", 1664, 224),
    (5, "MEDIUMWEIGHT_QUICK_GOOD_PRECISION", 1920, 224),
    (6, "MIDDLEWEIGHT_QUICK_GOOD_PRECISION", 2048, 299),
    (7, "MIDDLEWEIGHT_SLOW_GOOD_PRECISION", 2048, 299),
    (8, "HEAVYWEIGHT_SLOW_GOOD_PRECISION", 1280, 480),
    (9, "HEAVYWEIGHT_SLOW_HUGE_PRECISION", 1280, 480),
]


@pytest.mark.parametrize(("value", "name", "dimensions", "side"), PUPYL)
def test_name_and_number_lead_to_the_same_network(value: int, name: str, dimensions: int, side: int) -> None:
    found = Characteristics.by_value(value)
    assert found is Characteristics.by_name(name) is Characteristics[name]
    assert (found.value, found.name, found.dimensions, found.side) == (value, name, dimensions, side)


def test_there_are_nine() -> None:
    assert len(Characteristics) == len(PUPYL) == len({one.model for one in Characteristics})


@pytest.mark.parametrize("one", Characteristics)
def test_the_server_knows_each(one: Characteristics) -> None:
    preset = catalog.presets()[one.model]
    assert preset.preprocess is not None
    assert (preset.outputs["embedding"], preset.preprocess.height) == (one.dimensions, one.side)
    assert {catalog.find(one.name).name, catalog.find(f"pupyl-{one.value}").name} == {one.model}


@pytest.mark.parametrize("name", ["", "HEAVYWEIGHT", "heavyweight_slow_huge_precision", "name"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownCharacteristicsName, match="known: MINIMUMWEIGHT_FAST_SMALL_PRECISION, "):
        Characteristics.by_name(name)


@pytest.mark.parametrize("value", [0, 10, -1])
def test_an_unknown_number_is_refused(value: int) -> None:
    with pytest.raises(UnknownCharacteristicsValue, match="1 to 9 are known") as caught:
        Characteristics.by_value(value)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_one_except_catches_them_all() -> None:
    assert issubclass(UnknownCharacteristicsName, UnknownCharacteristics)
    assert issubclass(UnknownCharacteristicsValue, UnknownCharacteristics)
    assert issubclass(UnknownCharacteristics, PixvecError)


MODULES = ("pupyl", "easydl", "handscan", "transfer")


@pytest.mark.parametrize("module", MODULES)
def test_an_import_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, pixvec.compat.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "PIL", "sklearn", "pyarrow", "typer", "pixvec_server"}


@pytest.mark.parametrize("module", MODULES)
def test_the_pages_commands_name_models_that_the_server_knows(module: str) -> None:
    page = (ROOT / "docs" / "migration" / f"{module}.md").read_text(encoding="utf-8")
    commands = re.findall(r"^pixvec-server serve (.*?)(?:#.*)?$", page, re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command)
        for model in [words[at + 1] for at, word in enumerate(words) if word == "--model"]:
            assert provision.parse(model).spec is not None


# pupyl


@pytest.mark.parametrize("given", [1, "MINIMUMWEIGHT_FAST_SMALL_PRECISION", None])
def test_an_extractor_of_no_characteristic_is_refused(given: Any) -> None:
    with pytest.raises(UnknownCharacteristics, match="pass a member of Characteristics"):
        Extractors(given)


def test_what_only_the_server_can_do_is_refused() -> None:
    with (
        Extractors(Characteristics.by_value(1), extreme_mode=False) as extractor,
        pytest.raises(NotImplementedError, match=r"extract\(uri\)"),
    ):
        extractor.preprocessor("cat.jpg")


@pytest.mark.parametrize(("name", "file"), [("one", "one.npy"), ("two.npy", "two.npy"), ("a.b", "a.b.npy")])
def test_arrays_are_named_and_read_as_numpys(name: str, file: str, tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(size=7).astype(np.float32)
    Extractors.save(tmp_path / name, given)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert np.array_equal(Extractors.load(str(tmp_path / file)), given)


def test_an_array_of_objects_is_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        Extractors.save(tmp_path / "bad.npy", np.array([{}]))
    assert list(tmp_path.iterdir()) == []
    np.save(tmp_path / "bad.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        Extractors.load(tmp_path / "bad.npy")


# easydl


@pytest.mark.parametrize("name", ["resnet34", "vit", "efficientnet_b8", ""])
def test_a_model_that_easydl_has_not_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"no model is called '{name}'; known: resnet18, ") as caught:
        easydl.DMLModelManager.get_model(name, embedding_dim=128)
    assert isinstance(caught.value, PixvecError)


def test_weights_that_no_preset_has_are_refused() -> None:
    with pytest.raises(easydl.UnknownModelError, match=r"'SWAG_E2E_V1'.*easydl-vit_b_16\?weights=FILE"):
        easydl.VitMetricModel(embedding_dim=128, vit_model_name="vit_b_16", weights="SWAG_E2E_V1")


def test_the_server_knows_each_of_easydls_models() -> None:
    presets = [easydl._preset(name, [name]) for name in (*easydl._RESNETS, *easydl._VITS)]
    presets += [easydl._preset(name.upper(), [name]) for name in easydl._EFFICIENTNETS]
    assert len(presets) == 15
    assert set(presets) | set(easydl._PRESETS.values()) <= set(catalog.presets())


def scored(truth: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What easydl computes, by scikit-learn and a loop."""
    hits = []
    for row, line in enumerate(scores):
        others = [at for at in range(len(line)) if at != row]
        hits.append(truth[row, max(others, key=lambda at: (line[at], -at))])
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    precision, recall, thresholds = metrics.precision_recall_curve(
        [truth[pair] for pair in pairs], [scores[pair] for pair in pairs]
    )
    return {
        "top1_accuracy": np.mean(hits),
        "pr_auc": metrics.auc(recall, precision),
        "precision_list": precision,
        "recall_list": recall,
        "threshold_list": thresholds,
    }


def test_evaluation_is_easydls() -> None:
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 4, 20)
    vectors = draw.normal(size=(20, 6)) + np.eye(6)[labels] * 2
    scores = easydl.calculate_cosine_similarity_matrix(vectors)
    assert np.allclose(scores, metrics.pairwise.cosine_similarity(vectors), atol=1e-9)
    truth = easydl.create_pairwise_similarity_ground_truth_matrix(labels)
    assert truth.tolist() == [[int(one == other) for other in labels] for one in labels]
    found = easydl.evaluate_pairwise_score_matrix_with_true_label(truth, scores)
    wanted = scored(truth, scores)
    assert found.keys() == wanted.keys()
    assert 0.3 < wanted["top1_accuracy"] < 1
    for name, value in wanted.items():
        assert np.allclose(found[name], value, atol=1e-9), name


def test_matrices_of_two_shapes_are_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 3\)"):
        easydl.evaluate_pairwise_score_matrix_with_true_label(np.eye(2), np.eye(3))


# HandScanAI


@pytest.mark.parametrize("model", handscan.CNNModel)
def test_the_server_knows_each_hand_model(model: handscan.CNNModel) -> None:
    assert catalog.find(model.name).name == model.value
    sizes = {"DENSENET_121": 1024, "DENSENET_169": 1664, "RESNET_50": 1000}
    assert catalog.presets()[model.value].outputs["embedding"] == sizes[model.name]


def test_a_vector_is_brought_to_unit_length() -> None:
    given = np.random.default_rng(5).normal(size=(1, 9, 1))
    found = handscan.normalize_embedding(given)
    assert found.shape == (9,)
    assert np.allclose(found, preprocessing.normalize(given.reshape(1, -1)).ravel())
    assert handscan.normalize_embedding(np.zeros(3)).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match=r"\(2, 9\): pass one vector"):
        handscan.normalize_embedding(np.ones((2, 9)))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"an array is \(h, w, 3\), not \(3, 20, 30\): use .transpose"),
        (np.zeros((2, 20, 30, 3), np.uint8), r"not \(2, 20, 30, 3\)"),
        ("thumb.png", "is a path: pass it to calculate_embeddings_from_path_dict"),
    ],
)
def test_what_is_no_image_of_a_hand_is_refused_by_its_key(image: Any, said: str) -> None:
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match=rf"regions_dict\['Thumb'\]: .*{said}"):
        handscan.calculate_embeddings_from_tensor_dict({"Hand": good, "Thumb": image})


# transfer-learning


@pytest.mark.parametrize("name", transfer.MODELS)
def test_the_server_knows_each_transfer_model(name: str) -> None:
    assert f"transfer-{name.lower()}" in catalog.presets()


def test_the_flags_and_their_defaults_are_the_scripts() -> None:
    assert vars(transfer._parser().parse_args([])) == {
        "csv_file": None,
        "npy_data": None,
        "npy_labels": None,
        "save_folder_path": ".",
        "save_name": "transferfeature",
        "trained_model": "VGG16",
        "save_csv": False,
        "image_height": 90,
        "image_width": 160,
        "image_channels": 3,
        "nn_weights": "imagenet",
        "batch_size": 1,
    }
    words = "-data x.npy -labels y.npy -dir out -n -tm Xception -to-csv -he 8 -w 9 -c 1 -weights None -b 16"
    assert vars(transfer._parser().parse_args(words.split())) == {
        "csv_file": None,
        "npy_data": "x.npy",
        "npy_labels": "y.npy",
        "save_folder_path": "out",
        "save_name": "transferfeature",
        "trained_model": "Xception",
        "save_csv": True,
        "image_height": 8,
        "image_width": 9,
        "image_channels": 1,
        "nn_weights": "None",
        "batch_size": 16,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "nothing given: give csv_file"),
        ("-data x.npy", "npy_data given: give csv_file"),
        ("-csv a.csv -labels y.npy", "csv_file, npy_labels given"),
        ("-csv LIST -tm AlexNet", "trained_model = 'AlexNet': give one of VGG16, VGG19, "),
        ("-csv LIST -weights cats", "nn_weights = 'cats': give 'imagenet', or None"),
        ("-csv LIST -b 0", "batch_size = 0"),
        ("-csv missing.csv", "missing.csv: No such file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("cat,cat.jpg\n")
    assert transfer.main(words.replace("LIST", str(tmp_path / "list.csv")).split()) == 1
    assert re.search(f"^error: .*{re.escape(said)}", capsys.readouterr().err)


@pytest.mark.parametrize("error", [UnavailableError("gone"), InternalError("a fault")])
def test_a_lost_server_ends_a_run_and_a_fault_of_one_image_does_not(
    error: PixvecError, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("cat,a.jpg\ndog,b.jpg\n")
    source = transfer._source(tmp_path / "list.csv", None, None, (1, 1, 1))

    def embed_iter(images: Any, **_options: Any) -> Any:
        for _image, answer in zip(images, [error, np.ones(3, np.float32)], strict=True):
            yield answer

    told: list[tuple[int, int | None]] = []
    served: Any = SimpleNamespace(wanted=lambda **_: {}, client=SimpleNamespace(embed_iter=embed_iter))
    if isinstance(error, UnavailableError):
        with pytest.raises(UnavailableError, match="gone"):
            transfer._embed(served, source, 1, lambda *done: told.append(done))
        assert told == []
    else:
        table = transfer._embed(served, source, 1, lambda *done: told.append(done))
        assert (table.rows, table.labels) == ([1], ["dog"])
        assert told == [(1, 2), (2, 2)]
        assert table.failed == (transfer.Failure(f"{tmp_path}/a.jpg", "a fault"),)


def test_labels_stay_with_their_rows_when_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.arange(36, dtype=np.uint8).reshape(3, 12))
    np.save(tmp_path / "y.npy", np.array(["cat", "dog", "cow"]))

    def embed_iter(images: Any, **_options: Any) -> Any:
        yield from (InternalError("a fault") if image.min() == 12 else image.ravel() for image in images)

    served = SimpleNamespace(wanted=lambda **_: {}, client=SimpleNamespace(embed_iter=embed_iter))
    monkeypatch.setattr(transfer, "_served", lambda *_: served)
    written = transfer.generate_embedding(
        npy_data=tmp_path / "x.npy",
        npy_labels=tmp_path / "y.npy",
        save_folder_path=tmp_path,
        image_height=2,
        image_width=2,
    )
    data, labels = (np.load(file) for file in written.files)
    assert data[:, 0].tolist() == [0, 24]
    assert labels.tolist() == [["cat"], ["cow"]]
    assert [failure.why for failure in written.failed] == ["a fault"]


def test_the_server_is_the_environments_unless_a_client_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXVEC_TARGET", raising=False)
    assert repr(shared_client()) == "Client('localhost:50051')"
    monkeypatch.setenv("PIXVEC_TARGET", "elsewhere:1")
    assert repr(shared_client()) == "Client('elsewhere:1')"
    assert shared_client() is shared_client()
    with Client("mine:2") as client:
        assert Extractors(Characteristics.by_value(1), client=client)._served._client is client


def test_no_server_is_an_error_with_the_command_that_starts_one() -> None:
    with Client("127.0.0.1:1", timeout=2) as client:
        extractor = Extractors(Characteristics.by_value(1), client=client)
        with pytest.raises(PixvecError, match="serve it with: pixvec-server serve --model pupyl-mobilenet"):
            extractor.extract("cat.jpg")
        with pytest.raises(PixvecError, match=r"serve --model 'easydl-resnet18\?projection=64'$"):
            easydl.DMLModelManager.get_model("resnet18", 64, client=client)
