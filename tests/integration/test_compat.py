"""Programs written for other libraries, against real servers: their shapes, their numbers, their files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support import photos, tiny
from support.servers import ROOT, Server, serve

import pixvec
from pixvec.compat import Served, easydl, handscan, shared_client, transfer
from pixvec.compat.pupyl import Characteristics, Extractors, FileIsNotImage
from pixvec_server import bundle
from pixvec_server.manifest import OutputRecord

# Networks of a few weights stand under the names of all: tests/unit/test_compat_models.py asks the presets.
CHANNELS, HEAD = 16, 128
TINY = (
    "easydl-resnet50",
    "easydl-resnet50-v2",
    "easydl-vit_b_16",
    "handscan-densenet121",
    "transfer-vgg16",
    "vit-base-patch16-224",
)
UNTRAINED = "transfer-mobilenet"
FIRST = Characteristics.MINIMUMWEIGHT_FAST_SMALL_PRECISION


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of all of them, the default being another model."""
    folder = tmp_path_factory.mktemp("bundles")
    names = ["tiny", *TINY, UNTRAINED]
    for name in names:
        tiny.write(folder / name, name, seed=len(name))
    _mark_untrained(folder / UNTRAINED)
    _write_network(folder / "pupyl-mobilenet", "ReduceMax", CHANNELS)
    _write_network(folder / "easydl-resnet18", "ReduceMean", HEAD)
    models = [
        f"{path.name}={path}" for path in sorted(folder.iterdir(), key=lambda path: path.name != "tiny")
    ]
    with serve("--backend", "onnx", *(word for model in models for word in ("--model", model))) as running:
        yield running


def _write_network(folder: Path, pool: str, size: int) -> None:
    """Write a convolution whose map is `features`, pooled to `pooled`; behind it a head of another size."""
    tiny.write(folder, folder.name)
    draw = np.random.default_rng(size)
    shapes = {"kernel": (CHANNELS, 3, 3, 3), "head": (CHANNELS, size)}
    constants = [
        numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    constants.append(numpy_helper.from_array(np.float32(255), "white"))
    constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "sides"))
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["map"], ["out_features"]),
        helper.make_node(pool, ["out_features", "sides"], ["out_pooled"], keepdims=0),
        helper.make_node("MatMul", ["out_pooled", "head"], ["out_embedding"])
        if size != CHANNELS
        else helper.make_node("Identity", ["out_pooled"], ["out_embedding"]),
    ]
    outputs = {"embedding": (size,), "features": (CHANNELS, tiny.SIDE, tiny.SIDE), "pooled": (CHANNELS,)}
    told = [
        helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, ["n", *shape])
        for name, shape in outputs.items()
    ]
    seen = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", tiny.SIDE, tiny.SIDE, 3])
    graph = helper.make_graph(nodes, folder.name, [seen], told, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    manifest = bundle.load(folder).manifest
    onnx.save(model, str(folder / "image.onnx"))
    update = {
        "outputs": {
            name: OutputRecord(
                space=bundle.space_id(f"{size:064x}", name, manifest.preprocess),
                shape=shape,
                normalized=False,
            )
            for name, shape in outputs.items()
        },
        "files": {"image.onnx": bundle.record(folder / "image.onnx")},
    }
    bundle.save(folder, manifest.model_copy(update=update))


def _mark_untrained(folder: Path) -> None:
    manifest = bundle.load(folder).manifest
    outputs = {
        name: output.model_copy(update={"space": output.space.replace("s1-", "s1-untrained-")})
        for name, output in manifest.outputs.items()
    }
    bundle.save(folder, manifest.model_copy(update={"outputs": outputs}))


@pytest.fixture
def client(served: Server) -> Iterator[pixvec.Client]:
    """A client of that server."""
    with pixvec.Client(served.target) as made:
        yield made


@pytest.fixture
def here(served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder of photographs, with the server in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXVEC_TARGET", served.target)
    (tmp_path / "photos").mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (tmp_path / "photos" / f"{Path(name).stem}.jpg").write_bytes(photos.jpeg(name))
    (tmp_path / "cat.jpg").write_bytes(photos.jpeg("chelsea.png"))
    return tmp_path


def norms(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lengths of the rows."""
    lengths: np.ndarray[Any, Any] = np.linalg.norm(vectors, axis=-1)
    return lengths


# The pages

SAID = {
    "pupyl": ["(16,) 16 cpu"],
    "easydl": ["(3, 128) (3, 16, 8, 8)", "top 1: ", "(1, 128) 3 (3,)"],
    "handscan": ["{'Hand': (32,), 'Thumb': (32,)}", "(32,)\n"],
    "transfer": ["(2, 32) ['cat' 'cup'] ()"],
}


@pytest.mark.parametrize("page", SAID)
def test_the_pages_program_runs(page: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "migration" / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
    said = capsys.readouterr().out
    for words in SAID[page]:
        assert words in said


@pytest.mark.parametrize("page", SAID)
def test_what_a_page_changes_a_program_to_runs(page: str, here: Path) -> None:
    text = (ROOT / "docs" / "migration" / f"{page}.md").read_text(encoding="utf-8")
    [change] = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    program = "".join(line[1:] for line in change.splitlines(keepends=True) if line[0] != "-")
    if page == "transfer":
        Path("images.csv").write_text("cat,cat.jpg\n")
        command, _, flags = program.partition(" generate-embedding ")
        assert (command, transfer.main(flags.split())) == ("pixvec compat", 0)
        assert Path("pets.csv").exists()
    else:
        names: dict[str, Any] = {}
        exec(compile(program, f"{page}.md", "exec"), names)
        assert names.keys() - {"__builtins__"}


# Which server


def test_a_model_that_is_not_served_is_an_error_with_the_command(client: pixvec.Client) -> None:
    with Extractors(Characteristics.by_value(4), client=client) as extractor:
        with pytest.raises(pixvec.ModelNotFoundError, match=r"serve --model pupyl-densenet169$") as caught:
            extractor.extract("cat.jpg")
        assert (caught.value.reason, caught.value.code) == ("MODEL_NOT_FOUND", "NOT_FOUND")
    with pytest.raises(pixvec.ModelNotFoundError, match=r"pixvec-server serve --model handscan-resnet50$"):
        handscan.load_model(handscan.CNNModel.RESNET_50, client=client)


def test_the_environments_server_is_asked_by_all_through_one_client(here: Path) -> None:
    one, other = Served("tiny"), Served("tiny-alias")
    assert one.client is other.client
    assert (one.size, one.info.name) == (tiny.SIZE, "tiny")


def test_another_network_under_the_name_is_an_error_and_no_vector(here: Path) -> None:
    with Extractors(FIRST) as extractor:
        extractor.extract("cat.jpg")
        extractor._served.name = "easydl-resnet18"  # as if the server had been started anew with another
        with pytest.raises(pixvec.SpaceMismatchError):
            extractor.extract("cat.jpg")


# pupyl


def test_pupyls_vector_is_the_maximum_over_the_map(here: Path) -> None:
    with Extractors(FIRST) as extractor:
        vector = extractor.extract("cat.jpg")
    features = shared_client().embed("cat.jpg", model="pupyl-mobilenet", output="features")
    assert vector.dtype == np.float32
    assert (vector.shape, features.shape) == ((CHANNELS,), (CHANNELS, tiny.SIDE, tiny.SIDE))
    assert np.allclose(vector, np.asarray(features).max(axis=(1, 2)), atol=1e-5)
    assert not np.isclose(norms(vector), 1.0)


def test_pupyl_reads_paths_and_urls(here: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(here))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web, Extractors(FIRST) as extractor:
        Thread(target=web.serve_forever, daemon=True).start()
        by_path = extractor.extract(Path("cat.jpg"))
        for uri in (
            str(here / "cat.jpg"),
            f"file://{here}/cat.jpg",
            f"http://127.0.0.1:{web.server_port}/cat.jpg",
        ):
            assert np.array_equal(extractor.extract(uri), by_path), uri
        web.shutdown()


def test_a_vector_is_saved_once(here: Path) -> None:
    with Extractors(FIRST) as extractor:
        extractor.extract_save("cat", "cat.jpg")
        assert np.array_equal(extractor.load("cat.npy"), extractor.extract("cat.jpg"))
        Path("cat.npy").write_bytes(b"mine")
        extractor.extract_save("cat", "missing.jpg")
        extractor.extract_save("cat.npy", "missing.jpg")
        assert Path("cat.npy").read_bytes() == b"mine"
        with pytest.raises(pixvec.InputError, match=r"missing\.jpg"):
            extractor.extract_save("dog.npy", "missing.jpg")
    assert sorted(path.name for path in here.iterdir()) == ["cat.jpg", "cat.npy", "photos"]


def test_a_file_that_is_no_image_says_so(here: Path) -> None:
    Path("words.jpg").write_text("no image at all")
    with Extractors(FIRST) as extractor, pytest.raises(FileIsNotImage, match=r"words\.jpg: ") as caught:
        extractor.extract("words.jpg")
    assert isinstance(caught.value.__cause__, pixvec.UndecodableError | pixvec.UnsupportedFormatError)


# easydl


def test_easydls_vectors_have_their_heads_size_and_unit_length(here: Path) -> None:
    model = easydl.DMLModelManager.get_model("ResNet18", embedding_dim=128).eval()
    images = [Image.open(path) for path in sorted(Path("photos").iterdir())]
    vectors = model.embed_images(images)
    assert vectors.shape == (3, model.embedding_dim) == (3, 128)
    assert np.allclose(norms(vectors), 1, atol=1e-5)
    assert np.allclose(model.embed_image(images[1]), vectors[1], atol=1e-6)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_features_are_those_of_the_last_images(here: Path) -> None:
    model = easydl.Resnet18MetricModel(embedding_dim=128)
    with pytest.raises(pixvec.BadOptionError, match="Embed some first"):
        model.get_features()
    vectors = model(["photos/coffee.jpg", "cat.jpg"])
    features = model.get_features()
    shapes = {name: values.shape for name, values in features.items()}
    assert shapes == {
        "pre_pooling": (2, CHANNELS, tiny.SIDE, tiny.SIDE),
        "post_pooling": (2, CHANNELS),
        "embedding": (2, HEAD),
    }
    assert np.allclose(features["pre_pooling"].mean(axis=(2, 3)), features["post_pooling"], atol=1e-4)
    lengths = norms(features["embedding"])
    assert not np.allclose(lengths, 1, atol=1e-3)
    assert np.allclose(features["embedding"] / lengths[:, None], vectors, atol=1e-5)
    one = model.get_features_from_image("cat.jpg")
    assert np.allclose(one["post_pooling"], features["post_pooling"][1:], atol=1e-4)


def test_another_dimension_than_the_served_one_is_refused(client: pixvec.Client) -> None:
    with pytest.raises(pixvec.BadOptionError, match=r"gives 128 numbers.*'easydl-resnet18\?projection=64'$"):
        easydl.Resnet18MetricModel(64, client=client)
    assert easydl.Resnet18MetricModel(None, client=client).embedding_dim == 128
    other = easydl.DMLModelManager.get_model("vit_l_16", tiny.SIZE, served_as="tiny", client=client)
    assert other.embedding_dim == tiny.SIZE


def test_every_spelling_leads_to_its_model(client: pixvec.Client) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    spelled = {
        "easydl-resnet50": easydl.Resnet50MetricModel(32, "IMAGENET1K_V1", client=client),
        "easydl-resnet50-v2": easydl.Resnet50MetricModel(32, "imagenet1k_v2", client=client),
        "easydl-vit_b_16": easydl.VitMetricModel(
            embedding_dim=32, vit_model_name="ViT_B_16", weights="IMAGENET1K_V1", client=client
        ),
    }
    for name, model in spelled.items():
        assert np.allclose(model.embed_image(pixels), client.embed(pixels, model=name), atol=1e-6), name
    by_name = easydl.VitMetricModel("vit_b_16", 32, client=client).embed_image(pixels)
    assert np.array_equal(by_name, spelled["easydl-vit_b_16"].embed_image(pixels))
    hugging = easydl.HFVitModel(model_name="google/vit-base-patch16-224", client=client).embed_image(pixels)
    assert np.allclose(
        hugging, client.embed(pixels, model="vit-base-patch16-224", normalize=False), atol=1e-6
    )
    assert not np.isclose(norms(hugging), 1)
    with pytest.raises(pixvec.ModelNotFoundError, match="--model 'easydl-efficientnet_b0"):
        easydl.EfficientNetMetricModel(
            embedding_dim=128, efficient_model_name="efficientnet_b0", client=client
        )


def test_what_a_model_has_not_or_cannot_take_is_refused(client: pixvec.Client) -> None:
    model = easydl.Resnet50MetricModel(32, client=client)
    pixels = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(pixvec.BadOptionError, match=r"no post_pooling \(pooled\); its outputs are"):
        model.get_features([pixels])
    with pytest.raises(pixvec.InputError, match="undo its normalisation"):
        model((torch.arange(3 * 64).reshape(1, 3, 8, 8) / 48) - 2)


def test_one_image_where_many_are_asked_for_is_refused(here: Path) -> None:
    model = easydl.Resnet18MetricModel(None)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    ones: list[Any] = [pixels, Image.fromarray(pixels), "cat.jpg", Path("cat.jpg")]
    for one in (*ones, Path("cat.jpg").read_bytes()):
        for call in (model.embed_images, model, model.get_features):
            with pytest.raises(pixvec.InputError, match=r"expected many images and got one"):
                call(one)


def test_many_images_come_as_any_iterable_and_in_its_order(here: Path) -> None:
    model = easydl.Resnet18MetricModel(HEAD)
    names = ["cat.jpg", "photos/coffee.jpg", "cat.jpg", "photos/rocket.jpg"]
    vectors = model.embed_images(name for name in names)
    assert np.array_equal(vectors[0], vectors[2])
    for name, vector in zip(names, vectors, strict=True):
        assert np.allclose(vector, model.embed_image(easydl.smart_read_image(name)), atol=0.05), name
        assert np.allclose(vector, model.embed_image(name), atol=1e-6), name
    assert model.embed_images([]).shape == (0, HEAD)
    assert {name: found.shape for name, found in model.get_features([]).items()} == {
        "pre_pooling": (0, CHANNELS, tiny.SIDE, tiny.SIDE),
        "post_pooling": (0, CHANNELS),
        "embedding": (0, HEAD),
    }


def test_features_are_there_after_a_file_that_was_read_and_a_call_that_failed(here: Path) -> None:
    model = easydl.Resnet18MetricModel(HEAD)
    wanted = model.get_features(["cat.jpg"])
    with Path("cat.jpg").open("rb") as file:
        model.embed_images([file])
    with pytest.raises(pixvec.InputError):
        model.embed_images(["missing.jpg"])
    assert np.allclose(model.get_features()["embedding"], wanted["embedding"], atol=1e-6)


@pytest.mark.parametrize("size", [0, -1, 12.5, "128", True, [128]])
def test_what_is_no_dimension_is_refused(size: Any, client: pixvec.Client) -> None:
    with pytest.raises(pixvec.BadOptionError, match=r"embedding_dim = .*: give a whole number of 1 or more"):
        easydl.Resnet18MetricModel(size, client=client)


def test_a_network_s_own_words_are_obeyed_or_refused_with_the_way(client: pixvec.Client) -> None:
    numpys: Any = np.int64(HEAD)
    model = easydl.Resnet18MetricModel(numpys, client=client)
    assert model.to("cuda").eval().train(False) is model
    assert model.get_embedding_dim() == HEAD
    with pytest.raises(NotImplementedError, match="train with easydl, serve the result"):
        model.train()
    with pytest.raises(NotImplementedError, match=r"--model 'easydl-resnet18\?weights=FILE&projection=HEAD'"):
        model.load_state_dict({})
    with pytest.raises(NotImplementedError, match=r"model\.embed_image\(image\)"):
        model.get_image_transform_function()("cat.jpg")
    named = easydl.HFVitModel(pretrained_model_name="google/vit-base-patch16-224", client=client)
    assert named.embedding_dim == tiny.SIZE
    for name in ("google/", "/"):
        with pytest.raises(easydl.UnknownModelError, match="give a repository"):
            easydl.HFVitModel(name, client=client)


# HandScanAI


def test_a_prepared_hand_goes_through_the_network_as_the_hand_itself(client: pixvec.Client) -> None:
    model = handscan.load_model(client=client).to("cuda").eval()
    assert handscan.choose_device(model) == model.device == "cpu"
    pixels = np.tile(np.arange(0, 250, 10, dtype=np.uint8)[:, None, None], (1, 30, 3))
    raw = model(handscan.preprocess_image(pixels))
    assert raw.shape == (1, tiny.SIZE)
    assert not np.isclose(norms(raw), 1)
    # The picture is resized twice, to 224 and to the tiny network's 8.
    assert np.allclose(
        handscan.normalize_embedding(raw), handscan.calculate_embedding(pixels, model), atol=0.02
    )
    with pytest.raises(pixvec.InputError, match=r"a batch is \(N, 3, h, w\), not \(25, 30, 3\)"):
        model(pixels)


def test_pictures_tensors_and_lists_of_numbers_are_hands_too(client: pixvec.Client) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (9, 12, 3), np.uint8)
    regions = {
        "array": pixels,
        "picture": Image.fromarray(pixels),
        "floats": torch.tensor(pixels / 255, requires_grad=True).permute(2, 0, 1),
        ("a", "tuple"): np.asfortranarray(pixels)[::-1][::-1],
    }
    found = handscan.calculate_embeddings_from_tensor_dict(regions, handscan.load_model(client=client))
    assert list(found) == list(regions)
    for key, vector in found.items():
        assert np.allclose(vector, found["array"], atol=1e-5), key
    with pytest.raises(pixvec.InputError, match=r"^an image array is uint8"):
        handscan.calculate_embedding(pixels.astype(int), handscan.load_model(client=client))


def test_each_region_has_its_own_vector_under_its_key(client: pixvec.Client) -> None:
    draw = np.random.default_rng(1)
    regions = {key: draw.integers(0, 256, (20, 12, 3), np.uint8) for key in ("Thumb", "Hand", "Little")}
    model = handscan.load_model(client=client)
    assert (model.model, model.size) == (handscan.CNNModel.DENSENET_121, tiny.SIZE)
    found = handscan.calculate_embeddings_from_tensor_dict(regions, model)
    assert list(found) == ["Thumb", "Hand", "Little"]
    for key, vector in found.items():
        alone = handscan.calculate_embedding(regions[key], model)
        raw = client.embed(regions[key], model="handscan-densenet121", normalize=False)
        assert vector.shape == (tiny.SIZE,)
        assert np.allclose(vector, alone, atol=1e-6)
        assert np.allclose(vector, handscan.normalize_embedding(raw), atol=1e-5)
    assert handscan.calculate_embeddings_from_tensor_dict({}, model) == {}


@pytest.mark.parametrize("shape", [(12, 20, 3), (3, 20, 3), (12, 4, 3)])
def test_the_type_tells_where_the_channels_are(shape: tuple[int, int, int], client: pixvec.Client) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    model = handscan.load_model(client=client)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    by_array = handscan.calculate_embedding(pixels, model)
    assert np.allclose(by_array, handscan.calculate_embedding(tensor, model), atol=1e-6)
    with pytest.raises(pixvec.InputError, match=r"a tensor is \(3, h, w\)"):
        handscan.calculate_embedding(torch.zeros((20, 30, 3), dtype=torch.uint8), model)


def test_a_bad_image_is_named_by_its_key(here: Path) -> None:
    Path("words.jpg").write_text("no image at all")
    paths = {"Hand": "cat.jpg", 7: "words.jpg"}
    with pytest.raises(pixvec.PixvecError, match=r"^regions_dict\[7\]: ") as caught:
        handscan.calculate_embeddings_from_path_dict(paths)
    assert isinstance(caught.value, pixvec.UndecodableError | pixvec.UnsupportedFormatError)
    by_path = handscan.calculate_embeddings_from_path_dict({"Hand": "cat.jpg"})
    with Image.open("cat.jpg") as image:
        by_array = handscan.calculate_embedding(np.asarray(image))
    # The server may decode a JPEG at a smaller scale.
    assert by_path["Hand"] @ by_array > 0.99


# transfer-learning


def test_a_csv_becomes_vectors_and_labels_in_its_order(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("3", "photos/coffee.jpg"), ("1", "cat.jpg"), ("2", "photos/rocket.jpg"), ("1", "cat.jpg")]
    Path("list.csv").write_text("".join(f"{label},{path}\n" for label, path in rows))
    assert transfer.main(["-csv", "list.csv", "-dir", "out/deep", "-n", "pets", "-b", "2"]) == 0
    data, labels = np.load("out/deep/pets_data.npy"), np.load("out/deep/pets_labels.npy")
    assert (data.shape, data.dtype, labels.shape) == ((4, tiny.SIZE), np.float32, (4, 1))
    assert labels.ravel().tolist() == [3, 1, 2, 1]
    client = shared_client()
    for (_, path), vector in zip(rows, data, strict=True):
        assert np.allclose(vector, client.embed(path, model="transfer-vgg16", normalize=False), atol=1e-5)
    assert not np.allclose(norms(data), 1, atol=1e-3)
    out = capsys.readouterr().out
    assert "(4, 32)" in out
    assert "pets_labels.npy" in out


def test_one_bad_image_is_left_out_and_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.jpg").write_text("no image at all")
    Path("list.csv").write_text("a,photos/rocket.jpg\nb,words.jpg\nc,missing.jpg\nd,cat.jpg\n")
    assert transfer.main(["-csv", "list.csv", "-to-csv"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert [re.sub(r": .*", "", line.removeprefix("failed: ")) for line in said] == [
        str(here / "words.jpg"),
        str(here / "missing.jpg"),
    ]
    with Path("transferfeature.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["Class", *(f"n{at}" for at in range(tiny.SIZE))]
    assert [line[0] for line in lines] == ["a", "d"]
    client = shared_client()
    wanted = client.embed("cat.jpg", model="transfer-vgg16", normalize=False)
    assert np.allclose(np.array(lines[1][1:], np.float32), wanted, atol=1e-5)


def test_when_no_image_works_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.csv").write_text("a,missing.jpg\nb,gone.jpg\n")
    assert transfer.main(["-csv", "list.csv", "-n", "none"]) == 1
    assert (
        f"none of 2 images works; the first: {here / 'missing.jpg'}: No such file" in capsys.readouterr().err
    )
    assert not list(here.glob("none*"))


def test_flat_rows_become_vectors_with_their_own_labels(client: pixvec.Client, tmp_path: Path) -> None:
    images = np.random.default_rng(4).integers(0, 256, (5, 6, 7, 3), np.uint8)
    np.save(tmp_path / "x.npy", images.reshape(5, -1))
    np.save(tmp_path / "y.npy", np.array([0.5, 1.5, 0.5, 2.5, 1.5]))
    written = transfer.generate_embedding(
        npy_data=tmp_path / "x.npy",
        npy_labels=tmp_path / "y.npy",
        save_folder_path=tmp_path,
        image_height=6,
        image_width=7,
        client=client,
    )
    assert (written.shape, written.failed) == ((5, tiny.SIZE), ())
    data, labels = (np.load(file) for file in written.files)
    assert labels.tolist() == [[0.5], [1.5], [0.5], [2.5], [1.5]]
    wanted = client.embed_batch(list(images), model="transfer-vgg16", normalize=False)
    assert np.allclose(data, wanted, atol=1e-5)
    with pytest.raises(pixvec.InputError, match="height=90, width=160, channels=3"):
        transfer.generate_embedding(npy_data=tmp_path / "x.npy", npy_labels=tmp_path / "y.npy", client=client)


def test_the_first_row_is_an_image_whatever_it_says(here: Path) -> None:
    Path("é ü").mkdir()
    Path("é ü/cät.jpg").write_bytes(Path("cat.jpg").read_bytes())
    Path("list.csv").write_text("image,é ü/cät.jpg\n\n007,cat.jpg\n", encoding="utf-8-sig")
    told: list[tuple[int, int | None]] = []
    written = transfer.generate_embedding(csv_file="list.csv", progress=lambda *done: told.append(done))
    data, labels = (np.load(file) for file in written.files)
    assert labels.ravel().tolist() == ["image", "007"]
    assert np.array_equal(data[0], data[1])
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("name", ["cat.jpg", "cat.jpg/below"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(name: str, here: Path) -> None:
    Path("list.csv").write_text("a,cat.jpg\n")
    told: list[object] = []
    with pytest.raises(pixvec.BadOptionError, match=r"nothing can be written to cat\.jpg.*\(-dir\)"):
        transfer.generate_embedding(
            csv_file="list.csv", save_folder_path=name, progress=lambda *done: told.append(done)
        )
    Path("x_data.npy").mkdir()
    with pytest.raises(pixvec.BadOptionError, match=r"x_data\.npy: Is a directory"):
        transfer.generate_embedding(csv_file="list.csv", save_name="x", progress=lambda *d: told.append(d))
    assert told == []


def test_the_bar_is_told_of_the_run_and_closed_before_the_words(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.csv").write_text("a,cat.jpg\nb,missing.jpg\n")
    happened: list[Any] = []

    @contextmanager
    def bar(what: str) -> Iterator[transfer.Progress]:
        yield lambda done, total: happened.append((what, done, total))
        happened.append(capsys.readouterr().err)

    assert transfer.main(["-csv", "list.csv"], bar) == 3
    assert happened == [("embedding", 1, 2), ("embedding", 2, 2), ""]
    assert "missing.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "found"), [("-weights None", "trained"), ("-tm MobileNet", "random")])
def test_other_weights_than_those_asked_for_are_refused(
    words: str, found: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.csv").write_text("a,cat.jpg\n")
    assert transfer.main(["-csv", "list.csv", *words.split()]) == 1
    assert f"has {found} weights; start another with: pixvec-server serve" in capsys.readouterr().err


def test_random_weights_are_taken_where_they_are_asked_for(here: Path) -> None:
    Path("list.csv").write_text("a,cat.jpg\n")
    assert transfer.main(["-csv", "list.csv", "-tm", "mobilenet", "-weights", "None"]) == 0
    assert np.load("transferfeature_data.npy").shape == (1, tiny.SIZE)
