"""Counts what a run leaves out, by reason, so that nothing is left out without a word."""

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Self

MAX_EXAMPLES, MAX_REASONS, MAX_LINES = 3, 100, 12
_MAX_EXAMPLE_CHARACTERS = 200
_MANY_REASONS = "left out for one of many further reasons"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out for one reason.

    what: "file", "folder", "annotation" and the like, in the singular. examples: names of the first
    `MAX_EXAMPLES`.
    """

    what: str
    reason: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        things = self.what if self.count == 1 else _plural(self.what)
        more = ", …" if self.count > len(self.examples) else ""
        shown = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count} {things}: {self.reason}{shown}"


class Omissions:
    """Adds up what is left out. Its size is bounded, whatever is added."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, reason: str, example: str = "", count: int = 1) -> None:
        """Count something; the reason is the same text for everything that is left out for it."""
        key = what, reason
        if key not in self._counts and len(self._counts) >= MAX_REASONS:
            key = what, _MANY_REASONS
        self._counts[key] = self._counts.get(key, 0) + count
        examples = self._examples.setdefault(key, [])
        if example and len(examples) < MAX_EXAMPLES:
            examples.append(_short(printable(example)))

    def add_all(self, others: Iterable[LeftOut]) -> None:
        """Add what was counted elsewhere."""
        for other in others:
            first, *more = other.examples or ("",)
            self.add(other.what, other.reason, first, other.count)
            for example in more:
                self.add(other.what, other.reason, example, 0)

    def copy(self) -> Self:
        """Return the same counts, to be added to apart from these."""
        return deepcopy(self)

    def all(self) -> tuple[LeftOut, ...]:
        """Return what was counted, the most numerous first."""
        found = (
            LeftOut(what, reason, count, tuple(self._examples[what, reason]))
            for (what, reason), count in self._counts.items()
        )
        return tuple(sorted(found, key=lambda one: -one.count))


def lines(left_out: Iterable[LeftOut]) -> Iterator[str]:
    """Yield a line for each reason, `MAX_LINES` at most, and one that counts the rest."""
    known = list(left_out)
    for one in known[:MAX_LINES]:
        yield f"left out {one}"
    if rest := known[MAX_LINES:]:
        yield f"left out {sum(one.count for one in rest)} more, for {len(rest)} further reasons"


def printable(text: str) -> str:
    r"""Return a text that UTF-8 can hold: a file's name may be any bytes, of which one may become \udcff."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plural(what: str) -> str:
    """Return the plural of what is counted; of a "list of images" its first noun has it."""
    noun, of, rest = what.partition(" of ")
    plural = f"{noun[:-1]}ies" if re.search("[^aeiou]y$", noun) else f"{noun}s"
    return f"{plural}{of}{rest}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_EXAMPLE_CHARACTERS else f"{text[: _MAX_EXAMPLE_CHARACTERS - 1]}…"
