"""The recipes of docs/vector-stores.md, run as a user runs them: against a real server and real stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import photos
from support.servers import ROOT

import pixvec

if TYPE_CHECKING:
    from support.servers import Server

RECIPES = ("search_duckdb.py", "search_lancedb.py")
PHOTOS = (
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
    *("motorcycle_left.png", "motorcycle_right.png", "china.jpg", "flower.jpg"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Real photographs, and a file that is none."""
    made = tmp_path / "photos"
    made.mkdir()
    for name in PHOTOS:
        (made / Path(name).with_suffix(".jpg")).write_bytes(photos.jpeg(name))
    (made / "notes.txt").write_text("no picture")
    return made


def _search(recipe: str, server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    store = folder.parent / "store"
    command: list[str | Path] = [sys.executable, "-W", "error", ROOT / "examples" / recipe, server.target]
    command += [folder, folder / "motorcycle_left.jpg", "--store", store]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def _found(done: subprocess.CompletedProcess[str]) -> list[tuple[str, float]]:
    """Return the names and scores that a recipe printed, in its order."""
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines() if not line.startswith("left out: ")]
    return [(Path(path).stem, float(score)) for score, path in lines]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_finds_what_looks_alike_and_refuses_another_space(
    recipe: str, server: Server, tiny_server: Server, folder: Path
) -> None:
    first = _search(recipe, server, folder)
    assert f"left out: {folder / 'notes.txt'}: " in first.stdout
    found = _found(first)
    names, scores = [name for name, _ in found], [score for _, score in found]
    assert names[:2] == ["motorcycle_left", "motorcycle_right"]
    assert len(set(names)) == 5
    assert scores[0] == pytest.approx(1, abs=1e-3)
    assert scores == sorted(scores, reverse=True)

    assert _found(_search(recipe, server, folder)) == found, "a second run replaces, and adds nothing"

    other = _search(recipe, tiny_server, folder)
    assert other.returncode == 1
    assert other.stdout == ""
    with pixvec.Client(server.target) as ours, pixvec.Client(tiny_server.target) as theirs:
        spaces = [client.model().outputs[0].space for client in (ours, theirs)]
    assert other.stderr == f"this store holds vectors of space {spaces[0]}, the server makes {spaces[1]}\n"

    assert _found(_search(recipe, server, folder)) == found, "the refused run has changed nothing"
