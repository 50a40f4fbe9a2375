"""What came of each image, one by one, and the sum of it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ._errors import PixvecError
from ._omissions import printable
from ._types import Embedded, Embedding, Source
from ._urls import shown

MOST_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one image: its vector, or the reason why there is none."""

    path: str
    embedding: Embedding | None = None
    source: Source | None = None
    reason: str = ""
    error: str = ""

    def item(self) -> dict[str, Any]:
        """Return all but the vector and its origin, for JSON."""
        read = self.source
        seen = {"width": read.width, "height": read.height, "format": read.format} if read else {}
        failed = {} if self.embedding else {"reason": self.reason, "error": self.error}
        return {"path": self.path, "ok": self.embedding is not None} | failed | seen


def row_of(path: str, outcome: Embedded | PixvecError) -> Row:
    """Return what came of the image of that name."""
    if isinstance(outcome, PixvecError):
        return Row(path, reason=outcome.reason, error=without_path(outcome, path))
    embedding, source = outcome.embeddings[0][0], outcome.source
    if embedding.values is not None:
        return Row(path, embedding, source)
    error = embedding.error
    return Row(path, None, source, getattr(error, "reason", ""), without_path(error, path))


def without_path(error: Exception | None, *names: str) -> str:
    """Return what the error of one image says, without the paths and names of it that some begin with."""
    said = printable(getattr(error, "message", str(error)))
    prefixes = tuple(f"{form}: " for name in names for form in (name, shown(name)))
    while prefix := next(filter(said.startswith, prefixes), None):
        said = said.removeprefix(prefix)
    return said


def made_how(embedding: Embedding | None) -> dict[str, Any]:
    """Return what to keep beside vectors, for JSON."""
    origin = embedding.origin if embedding else None
    return {
        "origin": asdict(origin) if origin else None,
        "encoding": embedding.encoding if embedding else None,
        "scale": embedding.scale if embedding else None,
    }


@dataclass(slots=True)
class Tally:
    """The sum of many rows, of a size that does not grow with them.

    failures: the first MOST_KEPT. causes: what was said, of how many images, and the first of them.
    """

    total: int = 0
    done: int = 0
    first: Embedding | None = None
    failures: list[dict[str, Any]] = field(default_factory=list)
    causes: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Count a row."""
        self.total += 1
        if row.embedding is not None:
            self.done += 1
            self.first = self.first or row.embedding
            return
        if len(self.failures) < MOST_KEPT:
            self.failures.append(row.item())
        if row.error in self.causes or len(self.causes) < MOST_KEPT:
            path, count = self.causes.get(row.error, (row.path, 0))
            self.causes[row.error] = path, count + 1

    @property
    def failed(self) -> int:
        """How many images have no vector."""
        return self.total - self.done

    def complaints(self) -> Iterator[str]:
        """Yield a line for each cause: the first image's name and how many others there are."""
        for error, (path, count) in self.causes.items():
            others = f" and {count - 1} other{'s' * (count > 2)}" if count > 1 else ""
            yield f"{path}{others}: {error}"
        if unsaid := self.failed - sum(count for _, count in self.causes.values()):
            yield f"{unsaid} more images, each with a cause of its own"

    def record(self) -> dict[str, Any]:
        """Return the sum, for JSON."""
        counts = {"images": self.total, "embedded": self.done, "failed": self.failed}
        return counts | made_how(self.first) | {"failures": self.failures}
