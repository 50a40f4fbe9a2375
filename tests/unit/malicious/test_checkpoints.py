"""Checkpoints made to harm: pickles that run code, and safetensors that are not what they say."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hostile import PAYLOADS, Payload, build, torch_legacy, torch_zip, untouched
from support.servers import environment

from pixvec_server.errors import BundleError
from pixvec_server.spec import ModelSpec, Preprocess

SMALL = Preprocess(height=32, width=32)


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
        build(_local(path, allow_pickle=False))


def test_a_pickle_that_is_allowed_is_read_for_its_tensors_and_runs_nothing(
    tmp_path: Path, payload: dict[str, Payload], form: Callable[[Any], bytes]
) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(form(payload))
    with pytest.raises(BundleError, match="holds more than tensors"):
        build(_local(path, allow_pickle=True))


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
        build(spec)


def test_the_refusal_names_what_was_asked_for_and_never_tells_to_read_it_without_a_check(
    tmp_path: Path, payload: dict[str, Payload]
) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(torch_zip(payload))
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
    path.write_bytes(torch_zip({"weight": PAYLOADS["os.system"](canary)}))
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
        build(spec)


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
    for data in (torch_legacy(whole), pickle.dumps({"a": [1, (2, "x")], "b": {}}, 2), torch_zip(whole)):
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
        build(spec)
