"""Finds the files that a pattern matches. Unlike glob's own, its `**` ends where links lead in circles."""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from ._image_files import READ_BEFORE, folder_identity
from ._omissions import Omissions

_SEPARATORS = re.escape(f"/{os.sep}")
_ANY_FOLDERS = re.compile(rf"(?:^|(?<=[{_SEPARATORS}]))\*\*(?:[{_SEPARATORS}]+|$)")
_Identity: TypeAlias = "tuple[int, int] | None"


def matches(pattern: str, omissions: Omissions) -> list[str]:
    """Return the sorted paths that a pattern matches, as `glob.glob(pattern, recursive=True)` does.

    Links are followed. Where `**` meets a folder again, or one above its start, the folder is not entered and
    is counted in `omissions`. A pattern that ends in `**` matches files alone.
    """
    return sorted(set(_Expansion(omissions).paths(pattern)))


class _Expansion:
    """Expands one pattern; remembers the folders that each of its `**` has entered, and their paths."""

    def __init__(self, omissions: Omissions) -> None:
        self._omissions = omissions
        self._entered: dict[str, dict[_Identity, str]] = {}

    def paths(self, pattern: str) -> Iterator[str]:
        found = _ANY_FOLDERS.search(pattern)
        if found is None:
            yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob refuses absolute patterns
            return
        head, rest = pattern[: found.start()], pattern[found.end() :]
        starts = sorted(glob.iglob(head)) if head else [""]  # noqa: PTH207
        for folder in (folder for start in starts for folder in self._folders(start, rest)):
            if rest:
                yield from self.paths(glob.escape(folder) + rest)
            elif found[0] == "**":
                yield from (folder + name for name in _visible(folder, is_folder=False))
            else:
                yield folder

    def _folders(self, start: str, rest: str) -> Iterator[str]:
        """Yield a folder and those below it that this `**`, which `rest` follows, has not entered before."""
        entered = self._entered.setdefault(rest, {})
        above = dict.fromkeys(map(folder_identity, Path(start or os.curdir).resolve().parents), "")
        waiting = [start] if self._is_new(start, entered) else []
        while waiting:
            folder = waiting.pop()
            yield folder
            below = (f"{folder}{name}{os.sep}" for name in _visible(folder, is_folder=True))
            new = [path for path in below if self._is_new(path, entered, above)]
            waiting += reversed(new)

    def _is_new(self, path: str, entered: dict[_Identity, str], *more: Mapping[_Identity, str]) -> bool:
        known = folder_identity(Path(path or os.curdir))
        before = next((one[known] for one in (entered, *more) if known in one), None)
        if before is None:
            entered[known] = path
        elif before != path:
            self._omissions.add("folder", READ_BEFORE, path)
        return before is None


def _visible(folder: str, *, is_folder: bool) -> list[str]:
    """Return the sorted names of what is in a folder: its folders or its files, without the hidden ones."""
    here, folders, files = next(os.walk(folder or os.curdir), ("", [], []))
    names = folders if is_folder else files
    return sorted(name for name in names if here and not name.startswith("."))
