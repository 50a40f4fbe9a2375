"""A PCA of a collection's own vectors, as an output of its bundle: the numbers, the files, the server."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from support import photos, tiny
from support.servers import serve
from typer.testing import CliRunner

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server import bundle, cli, pca
from pixvec_server.errors import BundleError, ConfigError
from pixvec_server.offline import Offline, as_served, image_files

if TYPE_CHECKING:
    from pathlib import Path

DIM = 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve photographs, some of them in a folder below."""
    place = tmp_path_factory.mktemp("photos")
    (place / "below").mkdir()
    for i, name in enumerate(photos.NAMES[:12]):
        (place / ("below" if i % 2 else "") / name).write_bytes(photos.data(name))
    return place


@pytest.fixture
def made(tmp_path: Path) -> bundle.Bundle:
    return bundle.load(tiny.write(tmp_path / "tiny"))


@pytest.fixture
def vectors() -> Any:
    """Rows of unit length that vary more in some directions than in others, off the origin."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60, 16)) * np.geomspace(1, 0.05, 16) + 0.3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_it_is_scikit_learns(vectors: Any) -> None:
    found = pca.fit(vectors, DIM)
    theirs = PCA(DIM, svd_solver="full").fit(vectors.astype(np.float64))
    signs = np.sign((found.components * theirs.components_).sum(1))
    assert np.allclose(found.components, theirs.components_ * signs[:, None], atol=1e-6)
    assert np.allclose(found.mean, theirs.mean_, atol=1e-7)
    assert found.explained == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-9)
    expected = theirs.transform(vectors.astype(np.float64)) * signs
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(found.project(vectors), expected, atol=1e-5)


def test_the_sign_does_not_depend_on_the_order_of_the_images(vectors: Any) -> None:
    one, other = pca.fit(vectors, DIM), pca.fit(vectors[::-1], DIM)
    assert np.allclose(one.components, other.components, atol=1e-6)
    assert (one.components[np.arange(DIM), np.abs(one.components).argmax(1)] > 0).all()


@pytest.mark.parametrize(
    ("rows", "dim", "words"),
    [
        (slice(DIM), DIM, "--dim 5 needs at least 6 images, 5 were embedded"),
        (slice(None), 17, "--dim 17: the vectors have 16 numbers"),
        ([0, 1, 2] * 4, 5, "spread in 2 directions only"),
        ([0] * 8, 1, "spread in 0 directions only"),
    ],
)
def test_too_few_images_are_refused_in_numbers(vectors: Any, rows: Any, dim: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pca.fit(vectors[rows], dim)


def test_a_bundle_gains_an_output_that_explains_itself(made: bundle.Bundle, pictures: Path) -> None:
    told: list[int] = []
    files = image_files([pictures])
    done = pca.fit_bundle(made, files, DIM, of="embedding", on_done=told.append)
    assert (done.output, done.count, done.failed, sum(told)) == ("pca-5", 12, {}, 12)
    found = bundle.load(made.folder)
    record = found.manifest.outputs["pca-5"]
    source = found.manifest.outputs["embedding"]
    assert (record.shape, record.dimensions, record.normalized) == ((DIM,), (DIM,), True)
    assert record.derived is not None
    assert (record.derived.of, record.derived.file) == ("embedding", "pca-5.npz")
    assert 0.5 < record.derived.explained <= 1
    assert record.space.startswith("s1-")
    assert record.space not in {held.space for held in made.manifest.outputs.values()}
    assert found.manifest.outputs == {**made.manifest.outputs, "pca-5": record}
    with Offline(found) as ours:
        raw = ours.embed_images(files, ("embedding",)).values["embedding"]
    mean, components = found.components(record.derived)
    projected = (as_served(raw, source) - mean) @ components.T
    assert np.allclose(projected.mean(0), 0, atol=1e-5)
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    assert np.abs(unit).max() / record.int8_scales[0] == pytest.approx(127 / 1.25, rel=1e-4)
    assert sorted(file.name for file in made.folder.iterdir()) == ["bundle.json", "image.onnx", "pca-5.npz"]


def test_the_space_is_that_of_the_images_it_was_fitted_to(tmp_path: Path, pictures: Path) -> None:
    spaces = []
    for i, files in enumerate((image_files([pictures]), image_files([pictures])[:8])):
        made = bundle.load(tiny.write(tmp_path / str(i)))
        pca.fit_bundle(made, files, DIM, of="embedding")
        spaces.append(bundle.load(made.folder).manifest.outputs["pca-5"].space)
    again = bundle.load(tiny.write(tmp_path / "again"))
    pca.fit_bundle(again, image_files([pictures]), DIM, of="embedding")
    assert bundle.load(again.folder).manifest.outputs["pca-5"].space == spaces[0]
    assert len(set(spaces)) == 2


def test_a_copy_leaves_the_bundle_alone(made: bundle.Bundle, pictures: Path, tmp_path: Path) -> None:
    before = (made.folder / bundle.MANIFEST).read_bytes()
    folder = tmp_path / "new" / "copy"
    pca.fit_bundle(made, image_files([pictures]), DIM, of="embedding", folder=folder)
    assert "pca-5" in bundle.load(folder).manifest.outputs
    assert (made.folder / bundle.MANIFEST).read_bytes() == before
    assert not (made.folder / "pca-5.npz").exists()
    assert [file.name for file in folder.parent.iterdir()] == ["copy"]
    with pytest.raises(ConfigError, match="is there already"):
        pca.fit_bundle(made, image_files([pictures]), DIM, of="embedding", folder=folder)


@pytest.mark.parametrize(
    ("of", "words"),
    [("features", "has embedding, broken"), ("nothing", "has embedding"), ("pca-5", "has embedding")],
)
def test_what_is_no_vector_of_the_network_is_refused(
    made: bundle.Bundle, pictures: Path, of: str, words: str
) -> None:
    files = image_files([pictures])
    pca.fit_bundle(made, files, DIM, of="embedding")
    again = bundle.load(made.folder)
    with pytest.raises(ConfigError, match=words):
        pca.fit_bundle(again, files, 3, of=of)
    with pytest.raises(ConfigError, match="has an output pca-5 already"):
        pca.fit_bundle(again, files, DIM, of="embedding")


def test_a_folder_that_cannot_be_written_is_named(
    made: bundle.Bundle, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="cannot be written"):
        pca.fit_bundle(made, image_files([pictures]), DIM, of="embedding", folder=tmp_path / "file" / "copy")


def test_the_command_skips_what_is_no_image_and_says_so(
    made: bundle.Bundle, pictures: Path, tmp_path: Path
) -> None:
    place = tmp_path / "photos"
    shutil.copytree(pictures, place)
    (place / "broken.jpg").write_bytes(b"no image")
    (place / "notes.txt").write_text("no image either, and not asked for")
    words = ["fit-pca", f"tiny={made.folder}", str(place), "--dim", "5", "-o", str(tmp_path / "copy")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 3, done.output
    assert "pca-5 keeps" in done.stdout
    assert "of 12 images" in done.stdout
    assert "broken.jpg: " in done.stderr
    assert "notes.txt" not in done.output
    few = CliRunner().invoke(cli.app, [*words[:2], str(place / "broken.jpg"), "--dim", "5"])
    assert few.exit_code == 1
    assert "--dim 5 needs at least 6 images, 1 were given" in few.stderr


def test_a_server_answers_with_it(made: bundle.Bundle, pictures: Path) -> None:
    files = image_files([pictures])
    pca.fit_bundle(made, files, DIM, of="embedding")
    found = bundle.load(made.folder)
    record = found.manifest.outputs["pca-5"]
    assert record.derived is not None
    mean, components = found.components(record.derived)
    request = pb.EmbedRequest(
        input=pb.Input(image=files[0].read_bytes()),
        targets=[
            pb.Target(),
            pb.Target(output="pca-5"),
            pb.Target(output="pca-5", encoding="ENCODING_INT8"),
            pb.Target(output="pca-5", normalize=False),
        ],
    )
    with serve("--model", f"tiny={made.folder}") as server:
        answer = server.stub().Embed(request, timeout=20)
        [model] = server.stub().ListModels(pb.ListModelsRequest()).models
    whole, small, int8, raw = (e.vector for e in answer.embedded.embeddings)
    projected = components @ (np.frombuffer(whole.data, "<f4") - mean)
    assert np.allclose(np.frombuffer(raw.data, "<f4"), projected, atol=1e-5)
    unit = np.frombuffer(small.data, "<f4")
    assert list(small.shape) == [DIM]
    assert np.allclose(unit, projected / np.linalg.norm(projected), atol=1e-5)
    assert np.allclose(np.frombuffer(int8.data, np.int8) * int8.scale, unit, atol=int8.scale)
    origins = answer.report.origins
    assert origins[0].space != origins[1].space == record.space
    assert {output.name: output.space for output in model.outputs}["pca-5"] == record.space
    with Offline(found) as ours:
        assert [ours.build("embedding"), ours.build("pca-5")] == [o.build for o in origins[:2]]
