"""What changes after the check: a file that is swapped before an engine opens it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.hostile_graphs import SECRET, Trap, as_bundle, graph_with, in_weights_of_the_output, pointer

from pixvec_server import bundle
from pixvec_server.errors import BundleError


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
    folder = as_bundle(trap, graph_with(in_weights_of_the_output, pointer("weights.bin")), "weights.bin")
    loaded = bundle.load(folder)
    assert loaded.graph() == folder / "image.onnx"
    swap(folder / name, trap)
    with pytest.raises(BundleError):
        loaded.graph()
