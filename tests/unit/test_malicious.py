"""Model files made to harm: each is refused, nothing that it carries is run, nothing it points at is opened.

Outside of what a model may touch lies a canary: a pickle that is unpickled makes a file, and the kernel tells
of every open and every write in the folder that pointers lead to.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper
from support import tiny
from support.servers import environment

from pixvec_server import bundle, catalog, foreign, provision
from pixvec_server.backends.base import BackendOptions, Kind, Placement
from pixvec_server.backends.select import factory
from pixvec_server.errors import BundleError, CatalogError, ConfigError, SetupError
from pixvec_server.graphfile import externals
from pixvec_server.manifest import Derived, TokenizerRecord
from pixvec_server.spec import ModelSpec, Preprocess
from pixvec_server.tokenizer import TextTokenizer

SMALL = Preprocess(height=32, width=32)
SECRET = np.full(4, 1.25e30, np.float32)
GOOD = np.arange(1, 5, dtype=np.float32)
_IN_OPEN, _IN_MODIFY, _IN_CREATE, _IN_DELETE = 0x20, 0x02, 0x100, 0x200


class Watch:
    """What the kernel tells of files: every open, write, creation and removal (inotify)."""

    def __init__(self, *paths: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._handle >= 0, os.strerror(ctypes.get_errno())
        for path in paths:
            mask = _IN_OPEN | _IN_MODIFY | _IN_CREATE | _IN_DELETE
            assert self._libc.inotify_add_watch(self._handle, os.fsencode(path), mask) >= 0

    def events(self) -> list[str]:
        """Return what happened since the last call."""
        try:
            data = os.read(self._handle, 65536)
        except BlockingIOError:
            return []
        found = []
        while data:
            _, mask, _, size = struct.unpack_from("iIII", data)
            found.append(f"{mask:#x} {data[16 : 16 + size].rstrip(bytes(1)).decode()}")
            data = data[16 + size :]
        return found

    def close(self) -> None:
        """Give the watch back."""
        os.close(self._handle)


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    """Fail when a file of these folders, or one of these files under any name, is opened or written."""
    watch = Watch(*paths)
    try:
        yield
        assert watch.events() == []
    finally:
        watch.close()


class Payload:
    """Unpickled, it calls."""

    def __init__(self, call: Callable[..., Any], *words: Any) -> None:
        self._call, self._words = call, words

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call, self._words


PAYLOADS: dict[str, Callable[[Path], Payload]] = {
    "os.system": lambda canary: Payload(os.system, f"echo > {canary}"),
    "exec": lambda canary: Payload(builtins.exec, f"import os; os.mkdir({str(canary)!r})"),
    "subprocess": lambda canary: Payload(subprocess.check_call, ["touch", str(canary)]),
    "mkdir": lambda canary: Payload(os.mkdir, str(canary)),
}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is there when something ran; nothing may have."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def _torch_zip(held: Any) -> bytes:
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    torch.save(held, target)
    return target.getvalue()


def _torch_legacy(held: Any) -> bytes:
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    torch.save(held, target, _use_new_zipfile_serialization=False)
    return target.getvalue()


def _poisoned_zip(held: Any) -> bytes:
    """Make a whole checkpoint of good tensors, whose data.pkl is another one."""
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_torch_zip({"weight": torch.zeros(2, 2)}))) as good,
        zipfile.ZipFile(target, "w") as bad,
    ):
        for item in good.infolist():
            poison = item.filename.endswith("data.pkl")
            bad.writestr(item.filename, pickle.dumps(held, 2) if poison else good.read(item))
    return target.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "pickle": lambda held: pickle.dumps(held, 2),
    "zip": _torch_zip,
    "legacy": _torch_legacy,
    "poisoned-zip": _poisoned_zip,
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Callable[[Any], bytes]:
    made: Callable[[Any], bytes] = FORMS[request.param]
    return made


@pytest.fixture(params=PAYLOADS)
def payload(request: pytest.FixtureRequest, canary: Path) -> dict[str, Payload]:
    return {"weight": PAYLOADS[request.param](canary)}


@pytest.fixture
def command(canary: Path) -> dict[str, Payload]:
    """The payload that most would write."""
    return {"weight": PAYLOADS["os.system"](canary)}


def _build(spec: ModelSpec) -> None:
    pytest.importorskip("torch")
    from pixvec_server.module import build

    build(spec)


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_payloads_are_live(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hatched"
    pickle.loads(pickle.dumps(PAYLOADS[name](path), 2))
    assert path.exists()


def test_the_watch_sees_what_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    os.link(tmp_path / "a", tmp_path / "b")
    for touch in ((tmp_path / "a").read_bytes, (tmp_path / "new").touch):
        with pytest.raises(AssertionError), untouched(tmp_path):
            touch()
    with pytest.raises(AssertionError), untouched(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    with untouched(tmp_path, tmp_path / "a"):
        (tmp_path / "a").stat()


def _local(path: Path, *, allow_pickle: bool) -> ModelSpec:
    return ModelSpec(
        name="x",
        source=f"file:{path}",
        architecture="test_resnet",
        preprocess=SMALL,
        allow_pickle=allow_pickle,
    )


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".tar"])
def test_a_pickle_as_a_models_source_is_not_even_opened(
    tmp_path: Path, command: dict[str, Payload], form: Callable[[Any], bytes], suffix: str
) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(form(command))
    with untouched(path), pytest.raises(BundleError, match=r"may carry code: convert it to \.safetensors"):
        _build(_local(path, allow_pickle=False))


def test_a_pickle_that_is_allowed_is_read_for_its_tensors_and_runs_nothing(
    tmp_path: Path, payload: dict[str, Payload], form: Callable[[Any], bytes]
) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(form(payload))
    with pytest.raises(BundleError, match="holds more than tensors"):
        _build(_local(path, allow_pickle=True))


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("key", ["weights", "projection"])
def test_a_pickle_as_a_checkpoint_or_a_projection_runs_nothing(
    tmp_path: Path, command: dict[str, Payload], form: Callable[[Any], bytes], key: str, allow_pickle: bool
) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(form(command))
    rest = {"weights": "none", key: str(path), "allow_pickle": allow_pickle}
    spec = ModelSpec.model_validate(
        {"name": "x", "source": "timm:test_resnet.r160_in1k", "preprocess": SMALL, **rest}
    )
    words = "holds more than tensors" if allow_pickle else "is a pickle, which may carry code"
    with pytest.raises(BundleError, match=words):
        _build(spec)


def test_the_refusal_names_what_was_asked_for_and_never_tells_to_read_it_without_a_check(
    tmp_path: Path, payload: dict[str, Payload]
) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(_torch_zip(payload))
    from pixvec_server.module.weights import read_checkpoint

    with pytest.raises(BundleError) as caught:
        read_checkpoint(path, allow_pickle=True)
    assert re.search(r"asks for \S*(system|exec|check_call|mkdir)", str(caught.value))
    for advice in ("weights_only", "trust", "Re-running", "\x1b", "two options"):
        assert advice not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".npz", ".txt", ""])
def test_a_pickle_under_another_name_is_not_unpickled(
    tmp_path: Path, command: dict[str, Payload], form: Callable[[Any], bytes], suffix: str
) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(form(command))
    (tmp_path / "evil.onnx.toml").write_text("height = 8\nwidth = 8\n[outputs]\nembedding = 'y'\n")
    spec = ModelSpec(name="x", source=f"file:{path}", architecture="test_resnet", allow_pickle=True)
    with pytest.raises(BundleError):
        _export(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _export(spec: ModelSpec, folder: Path) -> None:
    pytest.importorskip("torch")
    from pixvec_server.export import export

    export(spec, folder)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("more", ["", "&allow_pickle=true"])
def test_the_command_refuses_a_pickle_in_one_line(tmp_path: Path, canary: Path, more: str) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(_torch_zip({"weight": PAYLOADS["os.system"](canary)}))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pixvec_server", "export"),
            *(f"evil=file:{path}?architecture=test_resnet{more}", "-o", tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(path) in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def _safetensors(name: str = "weight", **changes: object) -> bytes:
    first = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    words = json.dumps({"weight": first, name: {**first, **changes}}).encode()
    return struct.pack("<Q", len(words)) + words + bytes(16)


def _header(size: int, words: bytes) -> bytes:
    return struct.pack("<Q", size) + words


BROKEN = {
    "empty": b"",
    "short of its length": b"\xff" * 7,
    "truncated tensors": _safetensors()[:-5],
    "truncated header": _safetensors()[:30],
    "header of 2^63": _header(2**63, b"{}"),
    "header of 1 TB": _header(2**40, b"{}"),
    "header over the format's limit": _header(100_000_001, b"{}"),
    "header is no table": _header(4, b"null"),
    "header is no text": _header(4, b"\xff\xfe{}"),
    "past the end": _safetensors(data_offsets=[0, 1 << 40]),
    "size that wraps": _safetensors(shape=[2**62, 4]),
    "backwards": _safetensors(data_offsets=[16, 0]),
    "unheard-of type": _safetensors(dtype="F99"),
    "overlap": _safetensors("other"),
    "more behind": _safetensors() + b"x" * 9,
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_safetensors_that_are_not_whole_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    spec = ModelSpec(name="x", source="timm:test_resnet.r160_in1k", weights=str(path), preprocess=SMALL)
    with pytest.raises(BundleError, match="no whole safetensors file"):
        _build(spec)


def test_whole_safetensors_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from pixvec_server.module.weights import read_checkpoint

    (tmp_path / "x.safetensors").write_bytes(_safetensors())
    assert list(read_checkpoint(tmp_path / "x.safetensors", allow_pickle=False)) == ["weight"]


def test_checkpoints_with_flipped_bytes_are_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    """The restricted unpickler raises what it likes on bytes that mean nothing: all is one error of ours."""
    torch = pytest.importorskip("torch")
    from pixvec_server.module.weights import read_checkpoint

    whole = {"weight": torch.zeros(2, 2), "bias": torch.ones(2)}
    path, rng = tmp_path / "x.pt", np.random.default_rng(3)
    refused = 0
    for data in (_torch_legacy(whole), pickle.dumps({"a": [1, (2, "x")], "b": {}}, 2), _torch_zip(whole)):
        start = data.find(b"data.pkl") + 8 if data.startswith(b"PK") else 0
        for _ in range(300):
            bad = bytearray(data)
            for at in rng.integers(start, min(len(data), start + 300), 2):
                bad[at] = rng.choice(list(b"(.)}]0QqXKMJtRbesuclp\x00\x85\x94\xff"))
            path.write_bytes(bad)
            try:
                read_checkpoint(path, allow_pickle=True)
            except BundleError:
                refused += 1
    assert refused > 300


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    """A stride of 0 makes a terabyte of one number; whoever computes with it must allocate it."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "bomb.pt"
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    spec = ModelSpec(
        name="x",
        source="timm:test_resnet.r160_in1k",
        weights="none",
        projection=str(path),
        allow_pickle=True,
        preprocess=SMALL,
    )
    with pytest.raises(BundleError, match="table of tensors"):
        _build(spec)


# transformers -------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder as the hub's, of a tiny vision transformer, without weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "repository"
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    more = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | more))
    return folder


def test_the_repository_is_read_when_it_is_good(repository: Path) -> None:
    _build(ModelSpec(name="x", source=f"hf:{repository}"))


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_repositorys_pickle_runs_nothing(
    repository: Path, command: dict[str, Payload], form: Callable[[Any], bytes], allow_pickle: bool
) -> None:
    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").write_bytes(form(command))
    with pytest.raises(BundleError):
        _build(ModelSpec(name="x", source=f"hf:{repository}", allow_pickle=allow_pickle))


@pytest.mark.parametrize("place", ["config.json", "preprocessor_config.json"])
def test_a_repositorys_code_is_not_run_whatever_a_person_answers(
    repository: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    code = f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"
    code += "from transformers import ViTConfig, ViTImageProcessor, ViTModel\n"
    code += "class C(ViTConfig): pass\nclass M(ViTModel): pass\nclass P(ViTImageProcessor): pass\n"
    (repository / "evil.py").write_text(code)
    table = json.loads((repository / place).read_text())
    # Without these two the library has no class of its own to fall back to.
    kept = {key: value for key, value in table.items() if key not in ("model_type", "image_processor_type")}
    classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoImageProcessor": "evil.P"}
    (repository / place).write_text(json.dumps({**kept, "auto_map": classes}))
    monkeypatch.setattr("builtins.input", lambda *_words: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(repository / "modules"))
    monkeypatch.syspath_prepend(repository / "modules")
    with suppress(BundleError):
        _build(ModelSpec(name="x", source=f"hf:{repository}"))


# ONNX graphs that point elsewhere -----------------------------------------------------------------

Change = Callable[[onnx.ModelProto, TensorProto], None]


def _in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def _in_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["spare"], value=tensor))


def _in_tensors_of_an_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    _in_attribute(model, tensor)
    attribute = model.graph.node[-1].attribute[0]
    attribute.tensors.append(attribute.t)
    attribute.ClearField("t")
    attribute.type = AttributeProto.TENSORS


def _branch(tensor: TensorProto, *, initializer: bool) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, [4])
    nodes = [] if initializer else [helper.make_node("Constant", [], [tensor.name], value=tensor)]
    return helper.make_graph(nodes, "branch", [], [value], [tensor] if initializer else [])


def _in_subgraph(model: onnx.ModelProto, tensor: TensorProto, *, initializer: bool = True) -> None:
    branch = _branch(tensor, initializer=initializer)
    model.graph.initializer.append(helper.make_tensor("which", TensorProto.BOOL, [], [1]))
    model.graph.node.append(
        helper.make_node("If", ["which"], ["spare"], then_branch=branch, else_branch=branch)
    )


def _in_attribute_of_subgraph(model: onnx.ModelProto, tensor: TensorProto) -> None:
    _in_subgraph(model, tensor, initializer=False)


def _in_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(helper.make_tensor("where", TensorProto.INT64, [4], [0, 1, 2, 3]))
    model.graph.sparse_initializer.append(sparse)


def _function(model: onnx.ModelProto) -> onnx.FunctionProto:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(
        helper.make_function("evil", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("evil", 1))
    model.graph.node.append(helper.make_node("F", ["pixels"], ["spare"], domain="evil"))
    return model.functions[-1]


def _in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    _function(model).node.append(helper.make_node("Constant", [], ["spare"], value=tensor))


def _in_default_of_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    function = _function(model)
    function.attribute_proto.append(helper.make_attribute("value", tensor))
    node = helper.make_node("Constant", [], ["spare"])
    refers = AttributeProto(name="value", ref_attr_name="value", type=AttributeProto.TENSOR)
    node.attribute.append(refers)
    function.node.append(node)


def _in_training(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


def _in_weights_of_the_output(model: onnx.ModelProto, tensor: TensorProto) -> None:
    """The one tensor that every answer is computed with."""
    tensor.name = "added"
    del model.graph.initializer[:]
    model.graph.initializer.append(tensor)


PLACES: dict[str, Change] = {
    "initializer": _in_initializer,
    "attribute": _in_attribute,
    "tensors of an attribute": _in_tensors_of_an_attribute,
    "subgraph": _in_subgraph,
    "attribute of a subgraph": _in_attribute_of_subgraph,
    "sparse tensor": _in_sparse,
    "function": _in_function,
    "default of a function": _in_default_of_function,
    "training": _in_training,
    "weights": _in_weights_of_the_output,
}


def _pointer(location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name="evil", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@dataclass(frozen=True)
class Trap:
    """A model folder, and beside it a folder that nothing may touch."""

    folder: Path
    outside: Path

    @property
    def secret(self) -> Path:
        """A file that a pointer could be followed to."""
        return self.outside / "secret.bin"


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    made = Trap(tmp_path / "model", tmp_path / "outside")
    made.folder.mkdir()
    made.outside.mkdir()
    made.secret.write_bytes(SECRET.tobytes())
    (made.folder / "weights.bin").write_bytes(GOOD.tobytes())
    return made


def _graph(place: Change, tensor: TensorProto) -> onnx.ModelProto:
    """A graph that answers the first four numbers of its input plus `added`; in it a pointer."""
    # As a bundle's: uint8 pixels in, and an output by the bundle's own name.
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [0, -1]),
        helper.make_tensor("from", TensorProto.INT64, [1], [0]),
        helper.make_tensor("to", TensorProto.INT64, [1], [4]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    nodes = [
        *(helper.make_node("Constant", [], [constant.name], value=constant) for constant in constants),
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("Slice", ["flat", "from", "to", "axis"], ["first"]),
        helper.make_node("Add", ["first", "added"], ["out_embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "evil",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("out_embedding", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor("added", TensorProto.FLOAT, [4], [0.0] * 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    place(model, tensor)
    return model


def _as_bundle(trap: Trap, model: onnx.ModelProto, *listed: str) -> Path:
    """Make it a bundle whose manifest is honest about its graph and about the files `listed`."""
    whole = tiny.write(trap.folder.parent / "whole")
    (trap.folder / "image.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((whole / bundle.MANIFEST).read_text())
    output = {**manifest["outputs"]["embedding"], "shape": [4], "dimensions": [4], "int8_scales": [0.01]}
    manifest["outputs"] = {"embedding": output}
    manifest["files"] = {
        name: bundle.record(trap.folder / name).model_dump() for name in ("image.onnx", *listed)
    }
    (trap.folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    return trap.folder


def _wrap(trap: Trap, model: onnx.ModelProto, output: str = "out_embedding") -> Path:
    """Wrap it as a graph from elsewhere; return the folder of what was written."""
    path = trap.folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    keys = "height = 8\nwidth = 8\nlayout = 'nhwc'\ndtype = 'uint8'\n"
    path.with_name("model.onnx.toml").write_text(f"{keys}[outputs]\nembedding = '{output}'\n")
    scratch = trap.folder.parent / "scratch"
    scratch.mkdir()
    foreign.wrap(ModelSpec(name="x", source=f"file:{path}"), scratch)
    return scratch


def _answer(folder: Path, kind: Kind = "onnx") -> list[float]:
    made = factory(kind)(bundle.load(folder), Placement(kind, "cpu", "fp32", ""), BackendOptions(1, 1))
    found: list[float] = made.run("image", np.zeros((1, 8, 8, 3), np.uint8), ("embedding",))["embedding"][
        0
    ].tolist()
    made.close()
    return found


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_weights_beside_the_graph_are_used_when_the_manifest_lists_them(trap: Trap, kind: Kind) -> None:
    model = _graph(_in_weights_of_the_output, _pointer("weights.bin", offset="0", length="16"))
    with untouched(trap.outside):
        assert _answer(_as_bundle(trap, model, "weights.bin"), kind) == GOOD.tolist()


def test_weights_beside_a_graph_from_elsewhere_are_taken_into_the_bundle(trap: Trap) -> None:
    scratch = _wrap(trap, _graph(_in_weights_of_the_output, _pointer("weights.bin")))
    assert [path.name for path in scratch.iterdir()] == ["image.onnx"]
    assert externals((scratch / "image.onnx").read_bytes()) == []
    assert GOOD.tobytes() in (scratch / "image.onnx").read_bytes()


@pytest.mark.parametrize("place", PLACES)
def test_a_pointer_is_found_wherever_a_graph_can_hold_it(trap: Trap, place: str) -> None:
    model = _graph(PLACES[place], _pointer("../outside/secret.bin"))
    assert "../outside/secret.bin" in {pointer.location for pointer in externals(model.SerializeToString())}
    with untouched(trap.outside), pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(_as_bundle(trap, model)).graph()


@pytest.mark.parametrize("place", PLACES)
def test_a_pointer_of_a_graph_from_elsewhere_is_found_wherever_it_is(trap: Trap, place: str) -> None:
    with untouched(trap.outside), pytest.raises(BundleError, match="not a plain file beside it"):
        _wrap(trap, _graph(PLACES[place], _pointer("../outside/secret.bin")))


def _reached() -> dict[str, list[tuple[str, str]]]:
    """Of the installed onnx's own schema: each message that can hold a tensor, and by which fields."""
    links: dict[str, list[tuple[str, str]]] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        found = waiting.pop()
        if found.name not in links:
            inner = [field for field in found.fields if field.message_type is not None]
            links[found.name] = [(field.name, field.message_type.name) for field in inner]
            waiting += [field.message_type for field in inner]
    holds = {"TensorProto"}
    while more := {name for name in links.keys() - holds if any(kind in holds for _, kind in links[name])}:
        holds |= more
    return {name: [(field, kind) for field, kind in links[name] if kind in holds] for name in holds}


def _ways() -> list[tuple[str, ...]]:
    """Every field that leads nearer to a tensor, as the path from the model to the tensor through it."""
    reached = _reached()

    def on(name: str, seen: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name == "TensorProto":
            yield ()
            return
        for field, kind in reached[name]:
            if kind not in seen:
                yield from ((field, *rest) for rest in on(kind, (*seen, kind)))

    return sorted(set(on("ModelProto", ("ModelProto",))))


@pytest.mark.parametrize("way", _ways(), ids=".".join)
def test_no_way_from_a_model_to_a_tensor_is_overlooked(way: tuple[str, ...]) -> None:
    """The ways are those of the installed onnx: a new field of a new version fails this test."""
    model = onnx.ModelProto()
    at: Any = model
    for field in way:
        at = getattr(at, field)
        at = at.add() if hasattr(at, "add") else at
    at.CopyFrom(_pointer("weights.bin", offset="4", length="8"))
    assert [(p.location, p.offset, p.length) for p in externals(model.SerializeToString())] == [
        ("weights.bin", 4, 8)
    ]


LOCATIONS: dict[str, Callable[[Trap], str]] = {
    "parent": lambda _: "../outside/secret.bin",
    "absolute": lambda trap: str(trap.secret),
    "url": lambda trap: trap.secret.as_uri(),
    "dots inside": lambda _: "folder/../../outside/secret.bin",
    "own name by a detour": lambda trap: f"../{trap.folder.name}/weights.bin",
    "own name with a dot": lambda _: "./weights.bin",
    "own name with a slash": lambda _: "weights.bin/",
    "symbolic link": lambda _: "link.bin",
    "dangling link": lambda _: "dangling.bin",
    "folder behind a link": lambda _: "folder/secret.bin",
    "hard link": lambda _: "hard.bin",
    "pipe": lambda _: "pipe.bin",
    "folder": lambda _: "sub",
    "nothing": lambda _: "",
    "this folder": lambda _: ".",
    "the folder above": lambda _: "..",
    "root": lambda _: "/",
    "NUL": lambda _: "weights.bin\0",
    "NUL behind a good name": lambda _: "weights.bin\0/../../outside/secret.bin",
    "percent": lambda _: "..%2Foutside%2Fsecret.bin",
    "backslash": lambda _: "..\\outside\\secret.bin",
    "home": lambda _: "~/secret.bin",
    "variable": lambda _: "$PWD/secret.bin",
    "too long": lambda _: "w" * 5000,
    "memory, as onnxruntime writes it": lambda _: "*/_ORT_MEM_ADDR_/*",
    "missing": lambda _: "other.bin",
}  # fmt: skip


def _lay(trap: Trap) -> None:
    (trap.folder / "link.bin").symlink_to(trap.secret)
    (trap.folder / "dangling.bin").symlink_to(trap.outside / "made")
    (trap.folder / "folder").symlink_to(trap.outside)
    (trap.folder / "hard.bin").hardlink_to(trap.secret)
    (trap.folder / "sub").mkdir()
    os.mkfifo(trap.folder / "pipe.bin")


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_bundles_pointer_that_leads_elsewhere_is_refused(trap: Trap, location: str) -> None:
    _lay(trap)
    model = _graph(_in_weights_of_the_output, _pointer(LOCATIONS[location](trap)))
    folder = _as_bundle(trap, model)
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder).graph()


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_pointer_of_a_graph_from_elsewhere_that_leads_elsewhere_is_refused(
    trap: Trap, location: str
) -> None:
    _lay(trap)
    model = _graph(_in_weights_of_the_output, _pointer(LOCATIONS[location](trap)))
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        _wrap(trap, model)
    assert all(
        SECRET.tobytes() not in path.read_bytes() for path in (trap.folder.parent / "scratch").iterdir()
    )


@pytest.mark.parametrize(
    "listed", ["link.bin", "folder/secret.bin", "../outside/secret.bin", "pipe.bin", "sub"]
)
def test_a_manifest_that_lists_what_is_no_plain_file_is_refused_unread(trap: Trap, listed: str) -> None:
    _lay(trap)
    folder = _as_bundle(trap, _graph(_in_initializer, _pointer(listed)))
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["files"][listed] = {"sha256": bundle.record(trap.secret).sha256, "bytes": SECRET.nbytes}
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder)


def test_a_hard_link_that_the_manifest_lists_is_no_weight(trap: Trap) -> None:
    _lay(trap)
    folder = _as_bundle(trap, _graph(_in_initializer, _pointer("hard.bin")), "hard.bin")
    with pytest.raises(BundleError, match="hard link"):
        bundle.load(folder).graph()


def test_weights_that_the_manifest_does_not_list_are_refused(trap: Trap) -> None:
    folder = _as_bundle(trap, _graph(_in_initializer, _pointer("weights.bin")))
    with pytest.raises(BundleError, match=r"keeps weights in weights\.bin, which is not the file that"):
        bundle.load(folder).graph()


def test_weights_that_are_not_those_of_the_manifest_are_refused(trap: Trap) -> None:
    folder = _as_bundle(trap, _graph(_in_initializer, _pointer("weights.bin")), "weights.bin")
    (folder / "weights.bin").write_bytes(SECRET.tobytes())
    with pytest.raises(BundleError, match=r"weights\.bin is not the file"):
        bundle.load(folder)


BOUNDS = {
    "offset past the end": {"offset": "17"},
    "offset far past the end": {"offset": str(2**63)},
    "length past the end": {"length": "17"},
    "both past the end": {"offset": "8", "length": "9"},
    "sum that wraps": {"offset": str(2**64 - 8), "length": "16"},
    "negative offset": {"offset": "-16"},
    "negative length": {"length": "-1"},
    "words": {"offset": "zero"},
    "hexadecimal": {"offset": "0x10"},
    "fraction": {"length": "1.5"},
    "exponent": {"length": "1e1"},
    "other digits": {"offset": "٤"},
    "superscript": {"length": "¹"},
    "blank": {"offset": " 4"},
    "underscore": {"offset": "1_6"},
    "empty": {"length": ""},
    "five thousand digits": {"offset": "1" * 5000},
}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_pointer_past_the_end_or_by_no_number_is_refused(trap: Trap, bounds: str) -> None:
    tensor = _pointer("weights.bin", **BOUNDS[bounds])
    folder = _as_bundle(trap, _graph(_in_weights_of_the_output, tensor), "weights.bin")
    with pytest.raises(BundleError, match=r"past its end|is no number|digits"):
        bundle.load(folder).graph()
    with pytest.raises(BundleError, match=r"past its end|is no number|digits"):
        _wrap(trap, _graph(_in_weights_of_the_output, tensor))


@pytest.mark.parametrize("order", list(itertools.permutations(["weights.bin", "../outside/secret.bin"])))
def test_a_pointer_of_two_locations_is_refused_in_either_order(trap: Trap, order: tuple[str, str]) -> None:
    """Which of two counts is each reader's own choice: no reader gets to make it."""
    tensor = _pointer(order[0])
    tensor.external_data.add(key="location", value=order[1])
    folder = _as_bundle(trap, _graph(_in_weights_of_the_output, tensor), "weights.bin")
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder).graph()


@pytest.mark.parametrize("key", ["basepath", "Location", "__class__"])
def test_a_pointer_that_says_more_than_the_format_does_is_refused(trap: Trap, key: str) -> None:
    folder = _as_bundle(
        trap, _graph(_in_weights_of_the_output, _pointer("weights.bin", **{key: "../outside"})), "weights.bin"
    )
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder).graph()


def test_a_place_without_the_flag_counts_as_a_pointer(trap: Trap) -> None:
    tensor = _pointer("../outside/secret.bin")
    tensor.ClearField("data_location")
    with pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(_as_bundle(trap, _graph(_in_weights_of_the_output, tensor))).graph()


def test_a_pointer_in_two_halves_is_put_together(trap: Trap) -> None:
    """Two halves of one field are merged by every reader of the format."""
    flag = _pointer("unused")
    flag.ClearField("external_data")
    place = TensorProto()
    place.external_data.add(key="location", value="../outside/secret.bin")
    whole = _graph(_in_attribute, TensorProto(name="added"))
    node = whole.graph.node[-1]
    first, second = AttributeProto(name="value", type=AttributeProto.TENSOR), AttributeProto()
    first.t.CopyFrom(flag)
    second.t.CopyFrom(place)
    merged = first.SerializeToString() + second.SerializeToString()
    read = AttributeProto.FromString(merged)
    assert read.t.external_data[0].value == "../outside/secret.bin"
    assert read.t.data_location == TensorProto.EXTERNAL
    node.attribute[0].ParseFromString(merged)
    with pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(_as_bundle(trap, whole)).graph()
    raw = onnx.NodeProto(op_type="Constant", output=["spare"]).SerializeToString()
    raw += b"\x2a" + _varint(len(merged)) + merged
    graph = b"\x0a" + _varint(len(raw)) + raw
    model = b"\x3a" + _varint(len(graph)) + graph
    assert onnx.ModelProto.FromString(model).graph.node[0].attribute[0].t.external_data
    assert "../outside/secret.bin" in {pointer.location for pointer in externals(model)}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("tensor", [{"offset": "8"}, {"length": "8"}, {"dims": "4096"}])
def test_a_pointer_to_less_than_its_tensor_needs_ends_in_an_error(
    trap: Trap, kind: Kind, tensor: dict[str, str]
) -> None:
    more = {key: value for key, value in tensor.items() if key != "dims"}
    made = _pointer("weights.bin", **more)
    if "dims" in tensor:
        made.dims[0] = int(tensor["dims"])
    folder = _as_bundle(trap, _graph(_in_weights_of_the_output, made), "weights.bin")
    with pytest.raises(Exception, match=r"."):  # each engine's own kind; what matters is that it is one
        _answer(folder, kind)


def test_a_graph_of_operators_that_nobody_has_is_refused(trap: Trap) -> None:
    model = _graph(_in_initializer, helper.make_tensor("spare", TensorProto.FLOAT, [1], [0.0]))
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    node = helper.make_node(
        "Run", ["out_embedding"], ["spare_too"], domain="com.evil", library="/tmp/evil.so"
    )
    model.graph.node.append(node)
    model.graph.output[0].name = "spare_too"
    with pytest.raises(BundleError, match=r"model\.onnx"):
        _wrap(trap, model, "spare_too")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff" * 64, b"not a graph", b"\x3a\xff\xff\xff\x7f", pickle.dumps({}), b"\x08\x09" * 50],
)
def test_a_graph_that_is_none_is_refused(trap: Trap, data: bytes) -> None:
    path = trap.folder / "model.onnx"
    path.write_bytes(data)
    path.with_name("model.onnx.toml").write_text("height = 8\nwidth = 8\n[outputs]\nembedding = 'y'\n")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        foreign.wrap(ModelSpec(name="x", source=f"file:{path}"), trap.folder.parent)


# What changes after the check ---------------------------------------------------------------------


def _swap_bytes(path: Path, trap: Trap) -> None:
    path.write_bytes(SECRET.tobytes())


def _swap_link(path: Path, trap: Trap) -> None:
    path.rename(trap.folder / "same")
    path.symlink_to(trap.folder / "same")


def _swap_hard_link(path: Path, trap: Trap) -> None:
    (trap.folder / "same").hardlink_to(path)


def _swap_folder(path: Path, trap: Trap) -> None:
    path.unlink()
    path.mkdir()


def _swap_nothing(path: Path, trap: Trap) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "swap"),
    [
        ("weights.bin", _swap_bytes),
        ("weights.bin", _swap_link),
        ("weights.bin", _swap_hard_link),
        ("weights.bin", _swap_folder),
        ("weights.bin", _swap_nothing),
        ("image.onnx", _swap_bytes),
        ("image.onnx", _swap_folder),
        ("image.onnx", _swap_nothing),
    ],
)
def test_what_is_swapped_between_the_check_and_the_engine_is_refused(
    trap: Trap, name: str, swap: Callable[[Path, Trap], None]
) -> None:
    folder = _as_bundle(trap, _graph(_in_weights_of_the_output, _pointer("weights.bin")), "weights.bin")
    loaded = bundle.load(folder)
    assert loaded.graph() == folder / "image.onnx"
    swap(folder / name, trap)
    with pytest.raises(BundleError):
        loaded.graph()


# bundle.json and the small files ------------------------------------------------------------------


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    change(manifest)
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))


NAMES = (
    *("../secret", "/etc/passwd", "sub/image.onnx", "./image.onnx", "..", ".", "", "/", "image.onnx/"),
    *("a\0b", "w" * 5000, "//etc/passwd", "image.onnx/../image.onnx"),
)


@pytest.mark.parametrize("key", ["files", "graph", "derived", "tokenizer"])
@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_a_manifest_has_a_path(tmp_path: Path, name: str, key: str) -> None:
    folder = tiny.write(tmp_path / "tiny")
    secret = tmp_path / "secret"
    shutil.copy(folder / "image.onnx", secret)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"]["image.onnx"]
        if key == "graph":
            manifest["graph"] = name
        if key == "derived":
            made = {"of": "embedding", "file": name, "explained": 0.5}
            manifest["outputs"]["small"] = {"space": "s", "shape": [2], "dimensions": [2], "derived": made}
        if key == "tokenizer":
            record = {"file": name, "clean": "lower", "context": 8}
            manifest["text"] = {"graph": "image.onnx", "tokenizer": record}

    _edit(folder, change)
    with untouched(secret), pytest.raises(BundleError, match="not a plain file inside the bundle"):
        bundle.load(folder)


def test_of_two_keys_the_one_that_is_checked_is_the_one_that_is_used(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "tiny")
    text = (folder / bundle.MANIFEST).read_text()
    bad = '{"sha256": "' + "0" * 64 + '", "bytes": 1}'
    good = json.dumps(json.loads(text)["files"]["image.onnx"])
    for files in (
        f'{{"image.onnx": {good}, "image.onnx": {bad}}}',
        f'{{"image.onnx": {bad}, "image.onnx": {good}}}',
    ):
        (folder / bundle.MANIFEST).write_text(
            re.sub(r'"files": \{.*?\}\s*\}', f'"files": {files}', text, flags=re.S)
        )
        try:
            loaded = bundle.load(folder)
        except BundleError as exc:
            assert "is not the file" in str(exc)  # noqa: PT017 - one of the two must be refused, which one is free
        else:
            assert loaded.manifest.files["image.onnx"] == bundle.record(folder / "image.onnx")
            assert loaded.graph()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe",
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        pickle.dumps({}),
        b"1" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / bundle.MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.load(tmp_path)


def test_a_manifest_of_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / bundle.MANIFEST).open("wb") as file:
        file.truncate(1 << 30)  # a hole: it takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"bundle\.json"):
            bundle.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_manifest_that_is_no_plain_file_is_refused_unread(tmp_path: Path) -> None:
    pipe = tmp_path / bundle.MANIFEST
    os.mkfifo(pipe)
    opened: list[bool] = []
    over = threading.Event()

    def write() -> None:
        """Meet whoever opens the pipe to read it, so that a test that fails does not wait for ever."""
        file = os.open(pipe, os.O_WRONLY)
        opened.append(not over.is_set())
        with suppress(BrokenPipeError):
            os.write(file, b"{}")
        os.close(file)

    meets = threading.Thread(target=write, daemon=True)
    meets.start()
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bundle.load(tmp_path)
    over.set()
    ours = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    meets.join(5)
    os.close(ours)
    assert opened == [False]


def _npz(**arrays: Any) -> bytes:
    target = io.BytesIO()
    np.savez(target, **arrays)
    return target.getvalue()


def _npy(array: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array, allow_pickle=True)
    return target.getvalue()


MEAN, COMPONENTS = np.zeros(tiny.SIZE, np.float32), np.zeros((2, tiny.SIZE), np.float32)


def _derived(folder: Path, data: bytes) -> bundle.Bundle:
    (folder / "pca.npz").write_bytes(data)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["pca.npz"] = bundle.record(folder / "pca.npz").model_dump()
        made = {"of": "embedding", "file": "pca.npz", "explained": 0.5}
        manifest["outputs"]["small"] = {"space": "s", "shape": [2], "dimensions": [2], "derived": made}

    _edit(folder, change)
    return bundle.load(folder)


def test_whole_components_are_read(tmp_path: Path) -> None:
    loaded = _derived(tiny.write(tmp_path / "tiny"), _npz(mean=MEAN, components=COMPONENTS))
    mean, components = loaded.components(_record(loaded))
    assert (mean.shape, components.shape) == (MEAN.shape, COMPONENTS.shape)


def _record(loaded: bundle.Bundle) -> Derived:
    record = loaded.manifest.outputs["small"].derived
    assert record is not None
    return record


@pytest.mark.parametrize("key", ["mean", "components"])
def test_a_pickle_among_the_components_runs_nothing(
    tmp_path: Path, payload: dict[str, Payload], key: str
) -> None:
    poison = np.empty(1, object)
    poison[0] = payload["weight"]
    data = _npz(**{"mean": MEAN, "components": COMPONENTS, key: poison})
    loaded = _derived(tiny.write(tmp_path / "tiny"), data)
    with pytest.raises(BundleError, match="no npz of mean and components"):
        loaded.components(_record(loaded))


@pytest.mark.parametrize(
    "wrap", [lambda held: pickle.dumps(held, 2), lambda held: _npy(np.array(held, object))]
)
def test_components_that_are_a_pickle_run_nothing(
    tmp_path: Path, payload: dict[str, Payload], wrap: Callable[[Any], bytes]
) -> None:
    loaded = _derived(tiny.write(tmp_path / "tiny"), wrap(payload))
    with pytest.raises(BundleError, match="no npz of mean and components"):
        loaded.components(_record(loaded))


WHOLE = _npz(mean=MEAN, components=COMPONENTS)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 and no more", id="no zip"),
        pytest.param(WHOLE[: len(WHOLE) // 2], id="half"),
        pytest.param(WHOLE.replace(b"\x93NUMPY", b"\x93MUMPY"), id="no arrays"),
        pytest.param(_npy(COMPONENTS), id="one array"),
        pytest.param(_npz(mean=MEAN), id="no components"),
        pytest.param(_npz(mean=MEAN, components=COMPONENTS[:, 1:]), id="another size"),
        pytest.param(_npz(mean=MEAN[None], components=COMPONENTS), id="mean of two axes"),
        pytest.param(_npz(mean=MEAN, components=COMPONENTS[0]), id="components of one axis"),
        pytest.param(_npz(mean=MEAN, components=COMPONENTS[:1]), id="another number of dimensions"),
        pytest.param(_npz(mean=MEAN.astype("U9"), components=COMPONENTS), id="words"),
        pytest.param(_npz(mean=MEAN + 1j, components=COMPONENTS), id="complex"),
        pytest.param(_npz(mean=MEAN + np.nan, components=COMPONENTS), id="not finite"),
    ],
)
def test_components_that_are_not_whole_are_refused(tmp_path: Path, data: bytes) -> None:
    loaded = _derived(tiny.write(tmp_path / "tiny"), data)
    with pytest.raises(BundleError, match=r"pca\.npz"):
        loaded.components(_record(loaded))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        pickle.dumps({}),
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}',
        b'{"version": "1.0", "model": {"type": "Evil"}}',
        b'{"version": "1.0", "model": {"type": "WordPiece", "vocab": {}, "unk_token": 3}}',
        b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 7, "vocab": []}}',
    ],
)
def test_a_tokenizer_that_is_none_is_refused(data: bytes) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("ftfy")
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer"):
        TextTokenizer(data, TokenizerRecord(file="tokenizer.json", clean="lower", context=8))


# Names of models ----------------------------------------------------------------------------------

EVIL_NAMES = (
    *("../x", "..", ".", "/etc/passwd", "a/b", "a\\b", "a\nb", "name\n", "a\0b", " ", "a b", "-rf", "~", "*"),
    *("$(id)", "é", "a" * 65, "../../../../etc/passwd", "%2e%2e", "\u202ename"),
)  # fmt: skip


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_name_is_never_a_path(name: str) -> None:
    for text in (name, f"{name}=timm:test_resnet.r160_in1k", f"{name}?layer=pooled"):
        with pytest.raises((ConfigError, CatalogError)):
            provision.parse(text)


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_name_of_a_bundle_or_a_spec_is_never_a_path(tmp_path: Path, name: str) -> None:
    folder = tiny.write(tmp_path / "tiny")
    _edit(folder, lambda m: m.update(name=name))
    with pytest.raises(BundleError, match="name"):
        bundle.load(folder)
    with pytest.raises(CatalogError):
        catalog.checked({"name": name, "source": "timm:x"}, "here")
    with pytest.raises((ConfigError, BundleError)):
        provision.obtain(provision.parse(f"{name}={tmp_path / 'tiny'}"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@given(st.text(max_size=80), st.sampled_from(["timm", "open_clip", "hf", "file", "wheel"]))
def test_whatever_a_source_is_its_bundle_stays_inside_the_cache(words: str, kind: str) -> None:
    try:
        spec = provision.parse(f"{kind}:{words}").spec
    except SetupError:
        return
    assert spec is not None
    place = provision.cached(spec, Path("/cache"))
    assert place.parent == Path("/cache/bundles/v2")
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*", place.name)


@pytest.mark.parametrize(
    "source", ["timm:../../x", "hf:../../etc", "file:/../../../etc/shadow", "wheel:..", "hf:a/../b"]
)
def test_a_source_with_dots_makes_a_plain_name_or_none(source: str) -> None:
    try:
        spec = provision.parse(source).spec
    except CatalogError:
        return
    assert spec is not None
    assert provision.cached(spec, Path("/cache")).parent == Path("/cache/bundles/v2")
    assert "/" not in spec.name
