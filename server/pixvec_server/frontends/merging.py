"""The metrics of several processes as those of one server. Pure: families in, families out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]  # a sample's name, and its labels in their order
_CUMULATIVE = frozenset(("counter", "histogram"))
_OF_A_PROCESS = ("process_", "python_")


@dataclass(slots=True)
class Family:
    """A metric by its name, in Prometheus' own terms, with its samples."""

    name: str
    kind: str
    text: str
    samples: dict[Key, float] = field(default_factory=dict)

    def plain(self) -> list[Any]:
        """Return it as what JSON has."""
        samples = [[name, list(labels), value] for (name, labels), value in self.samples.items()]
        return [self.name, self.kind, self.text, samples]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> Family:
        """Return what `plain` was made of."""
        name, kind, text, samples = plain
        keyed = {(sample, tuple((k, v) for k, v in labels)): value for sample, labels, value in samples}
        return cls(name, kind, text, keyed)


class Ledger:
    """What each process told last, and what those that have ended had counted: so that no counter falls.

    What is of a process and not of the server (`process_*`, `python_*`) keeps apart by the label `process`,
    and ends with it.
    """

    def __init__(self) -> None:
        self._told: dict[str, list[Family]] = {}
        self._left: list[Family] = []

    def tell(self, process: str, families: Iterable[Family]) -> None:
        """Take in what a process says now."""
        self._told[process] = [_named(family, process) for family in families]

    def leave(self, process: str) -> None:
        """Keep what a process that has ended had counted."""
        told = self._told.pop(process, [])
        kept = [family for family in told if family.kind in _CUMULATIVE and not _own(family)]
        self._left = merge([self._left, kept])

    def merged(self) -> list[Family]:
        """Return the server's metrics."""
        return merge([*self._told.values(), self._left])


def merge(several: Iterable[Iterable[Family]]) -> list[Family]:
    """Add families up by name: counters, histograms and gauges are sums; an Info is told once."""
    merged: dict[str, Family] = {}
    for families in several:
        for family in families:
            into = merged.setdefault(family.name, Family(family.name, family.kind, family.text))
            _add(into.samples, family)
    return [merged[name] for name in sorted(merged)]


def _add(into: dict[Key, float], family: Family) -> None:
    for key, value in family.samples.items():
        if key not in into:
            into[key] = value
        elif key[0].endswith("_created"):
            into[key] = min(into[key], value)
        elif family.kind == "info":
            into[key] = max(into[key], value)
        else:
            into[key] += value


def _own(family: Family) -> bool:
    return family.name.startswith(_OF_A_PROCESS)


def _named(family: Family, process: str) -> Family:
    if not _own(family):
        return family
    label = ("process", process)
    samples = {(name, (*labels, label)): value for (name, labels), value in family.samples.items()}
    return Family(family.name, family.kind, family.text, samples)
