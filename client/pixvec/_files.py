"""Which images a command line names, and where their vectors go."""

import glob
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ._errors import PixvecError
from ._types import Array, Embedded, Embedding

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def expand(names: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    """Yield the images that names stand for: files, folders (all images below), globs, URLs, `-` for `stdin`.

    What is none of these is yielded as it is: its reading says what is wrong with it.
    """
    for name in names:
        path = Path(name)
        if name == "-":
            yield from (line.strip() for line in stdin if line.strip())
        elif "://" in name or path.is_file():
            yield name
        elif path.is_dir():
            found = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            yield from sorted(str(file) for file in found if file.is_file())
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
            yield from sorted(match for match in matches if Path(match).is_file()) or [name]


def without_path(error: Exception | None, path: str) -> str:
    """Return what the error of one image says, without the path that some begin with."""
    return getattr(error, "message", str(error)).removeprefix(f"{path}: ")


def why_unwritable(file: Path) -> str | None:
    """Tell why vectors cannot be saved in a file, before any work is done; None: they can."""
    if file.suffix not in {".npy", ".npz"}:
        return "the file must end in .npy or .npz"
    if not file.parent.is_dir():
        return f"there is no folder {file.parent}"
    if file.is_dir():
        return f"{file} is a folder"
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        return f"{file} cannot be written"
    return None


@dataclass(slots=True)
class Harvest:
    """What came of embedding many images: the vectors of those that worked, and an entry for each."""

    embeddings: list[Embedding] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: str, outcome: Embedded | PixvecError) -> None:
        """Take in the answer for one image."""
        embedding = None if isinstance(outcome, PixvecError) else outcome.embeddings[0][0]
        error = outcome if isinstance(outcome, PixvecError) else outcome.embeddings[0][0].error
        if embedding is not None and embedding.values is not None:
            self.embeddings.append(embedding)
            self.items.append({"path": path, "ok": True})
        else:
            reason = getattr(error, "reason", "")
            self.items.append(
                {"path": path, "ok": False, "reason": reason, "error": without_path(error, path)}
            )

    @property
    def paths(self) -> list[str]:
        """The images that worked, in the order of `vectors`."""
        return [item["path"] for item in self.items if item["ok"]]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The entries of the images that failed."""
        return [item for item in self.items if not item["ok"]]

    def vectors(self) -> Array:
        """Return the vectors that there are, (N, D); none: (0, 0)."""
        return np.stack([e.vector for e in self.embeddings]) if self.embeddings else np.empty((0, 0), "f4")

    def record(self) -> dict[str, Any]:
        """Return what to keep beside the vectors, for JSON."""
        first = self.embeddings[0] if self.embeddings else None
        return {
            "origin": asdict(first.origin) if first and first.origin else None,
            "encoding": first.encoding if first else None,
            "scale": first.scale if first else None,
            "items": self.items,
        }

    def save(self, file: Path) -> None:
        """Write FILE.npy with FILE.json beside it, or all of it into FILE.npz."""
        record = self.record()
        if file.suffix == ".npy":
            np.save(file, self.vectors())
            file.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
        else:
            origin, items = json.dumps(record["origin"]), json.dumps(record["items"])
            np.savez(file, vectors=self.vectors(), paths=np.array(self.paths), origin=origin, items=items)
