"""Patterns: what glob finds, and an end where links lead in circles."""

import glob
import os
from pathlib import Path

import pytest

from pixvec._glob import matches
from pixvec._image_files import READ_BEFORE
from pixvec._omissions import Omissions

FILES = ("a.jpg", "x/a.jpg", "x/b.png", "x/y/a.jpg", "x/y/x/a.jpg", ".h/a.jpg", "x/.a.jpg", "[z]/**q/a.jpg")
PATTERNS = (
    *("*.jpg", "x/*", "**/*.jpg", "**", "**/", "x/**", "**/x/**/*.jpg", "**/**/a.jpg", "*/**/a.jpg"),
    *(
        "**/.h/*",
        "x/**/a.jpg",
        "**/x/*.jpg",
        "a**/*.jpg",
        "**/[[]z]/**",
        "x/../**/b.png",
        "./**/b.png",
        "no/**",
    ),
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    monkeypatch.chdir(root)
    return root


def _files(paths: list[str]) -> list[str]:
    return sorted({path for path in paths if Path(path).is_file()})


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_tree_without_links_is_matched_as_by_glob(tree: Path, pattern: str, is_absolute: bool) -> None:
    given = f"{tree}/{pattern}" if is_absolute else pattern
    omissions = Omissions()
    found = matches(given, omissions)
    assert len(found) == len(set(found))
    assert _files(found) == _files(glob.glob(given, recursive=True))  # noqa: PTH207 - the reference
    assert omissions.all() == ()


@pytest.mark.parametrize(
    "pattern", ["**/*.jpg", "**/x/**/*.jpg", "*/**/*.jpg", "x/**", "**/**/*.jpg", "**/*/**/*.jpg"]
)
def test_each_file_is_found_once_whatever_circles_links_make(tree: Path, pattern: str) -> None:
    links = {"self": ".", "also": ".", "x/up": "..", "x/y/top": str(tree)}
    out = {} if "*/" in pattern.replace("**/", "") else {"out": "../.."}  # which a plain * would enter
    for name, to in (links | out).items():
        (tree / name).symlink_to(to)
    omissions = Omissions()
    found = _files(matches(pattern, omissions))
    real = [os.path.realpath(path) for path in found]
    assert len(set(real)) == len(real) > 0
    assert set(real) <= {os.path.realpath(tree / name) for name in FILES}
    assert {(one.what, one.reason) for one in omissions.all()} == {("folder", READ_BEFORE)}


def test_a_link_to_another_folder_is_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "sub").mkdir(parents=True)
    (tmp_path / "far" / "sub" / "f.jpg").write_bytes(b"x")
    (tree / "link").symlink_to(tmp_path / "far")
    assert "link/sub/f.jpg" in matches("**/*.jpg", Omissions())
