"""What a bundle promises, and what happens to one that was tampered with."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from support import tiny

from pixvec_server import bundle, export, provision
from pixvec_server.errors import BundleError, ConfigError
from pixvec_server.graphfile import externals
from pixvec_server.spec import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / bundle.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "tiny")


def test_a_good_bundle_loads(folder: Path) -> None:
    loaded = bundle.load(folder)
    assert loaded.manifest.name == "tiny"
    assert loaded.graph() == (folder / "image.onnx").read_bytes()


def test_one_changed_byte_is_found_and_the_file_named(folder: Path) -> None:
    data = bytearray((folder / "image.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "image.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"image\.onnx is not the file"):
        bundle.load(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "image.onnx").unlink()
    with pytest.raises(BundleError, match=r"image\.onnx is missing"):
        bundle.load(folder)


def test_a_file_that_changes_after_the_check_is_found(folder: Path) -> None:
    loaded = bundle.load(folder)
    with (folder / "image.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="has changed since"):
        loaded.graph()


@pytest.mark.parametrize("where", ["graph", "attribute"])
def test_weights_in_another_file_are_refused(folder: Path, where: str) -> None:
    model = onnx.load(str(folder / "image.onnx"))
    tensor = model.graph.initializer[2]
    if where == "attribute":
        node = helper.make_node("Constant", [], ["spare"], value=numpy_helper.from_array(np.zeros(1), "t"))
        model.graph.node.append(node)
        tensor = model.graph.node[-1].attribute[0].t
    assert not externals(model.SerializeToString())
    set_external_data(tensor, location="../../etc/hostname")
    tensor.ClearField("raw_data")
    (folder / "image.onnx").write_bytes(model.SerializeToString())
    record = bundle.record(folder / "image.onnx").model_dump()
    _edit(folder, lambda m: m["files"].update({"image.onnx": record}))
    with pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(folder).graph()


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["../image.onnx", "/etc/hostname", "sub/image.onnx", ".."])
def test_files_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    _edit(folder, lambda m: m["files"].update({name: m["files"]["image.onnx"]}))
    with pytest.raises(BundleError, match="not a plain file inside the bundle"):
        bundle.load(folder)


def test_a_symbolic_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "image.onnx").rename(tmp_path / "elsewhere")
    (folder / "image.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="not a plain file"):
        bundle.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format=1), "format"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(name="../x"), "name"),
        (lambda m: m.update(graph="other.onnx"), "not among its files"),
        (lambda m: m["preprocess"].update(height=0), "preprocess.height"),
        (lambda m: m["preprocess"].update(height=4), "take squash"),
        (lambda m: m["outputs"].pop("embedding"), "outputs must hold"),
        (lambda m: m["outputs"]["embedding"].update(dimensions=[16]), "begin with the full size"),
        (lambda m: m["outputs"]["embedding"].update(int8_scales=[1]), "as many as dimensions"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_by_key(
    folder: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    _edit(folder, change)
    with pytest.raises(BundleError, match=words):
        bundle.load(folder)


def test_space_depends_on_weights_output_and_preprocessing_only() -> None:
    record = Preprocess(height=224, width=224)
    same = bundle.space_id("a" * 64, "embedding", record)
    assert same == bundle.space_id("a" * 64, "embedding", record.model_copy())
    others = {
        bundle.space_id("b" * 64, "embedding", record),
        bundle.space_id("a" * 64, "logits", record),
        bundle.space_id("a" * 64, "embedding", record.model_copy(update={"crop": 0.9})),
    }
    assert len(others | {same}) == 4


def test_a_name_with_a_path_is_that_bundle(folder: Path, tmp_path: Path) -> None:
    request = provision.parse(f"tiny={folder}")
    assert provision.obtain(request, tmp_path).manifest.name == "tiny"


def test_a_bundle_under_another_name_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds tiny, not prod"):
        provision.obtain(provision.parse(f"prod={folder}"), tmp_path)


@pytest.mark.parametrize("text", ["name=", "=path"])
def test_half_a_model_flag_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=SOURCE"):
        provision.parse(text)


@pytest.mark.parametrize(
    ("missing", "name", "words"),
    [
        ("torch", "densenet121", r"cannot be made without torch.*: pip install 'pixvec\[torch\]'"),
        ("torch", "efficientnet_lite0?pool=max", r"cannot be made without torch"),
        ("onnx", "efficientnet_lite0", r"cannot be made without onnx: pip install 'pixvec\[server\]'"),
    ],
)
def test_a_bundle_that_cannot_be_made_here_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, name: str, words: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else found(name))
    spec = provision.parse(name).spec
    assert spec is not None
    with pytest.raises(BundleError, match=words):
        export.export(spec, tmp_path / "made")
