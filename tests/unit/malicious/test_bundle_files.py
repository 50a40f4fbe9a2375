"""A bundle's small files made to harm: bundle.json, the components of a PCA, the tokenizer."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny
from support.hostile import Payload, edit_manifest, untouched

from pixvec_server import bundle
from pixvec_server.errors import BundleError
from pixvec_server.manifest import Derived, TokenizerRecord
from pixvec_server.tokenizer import TextTokenizer

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

    edit_manifest(folder, change)
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

    edit_manifest(folder, change)
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
