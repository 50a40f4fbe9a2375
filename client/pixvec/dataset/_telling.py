"""What a long step says of itself while it is at work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Tell: TypeAlias = Callable[[str], object]
TELL_S = 5.0


class Step:
    """A step under way: how long it has been at it, and how far it is where it says so."""

    def __init__(self, name: str) -> None:
        self._name, self._began = name, time.monotonic()
        self._done = self._total = 0
        self.over = threading.Event()

    def at(self, done: int, total: int) -> None:
        """Say how far the step is."""
        self._done, self._total = done, total

    def line(self) -> str:
        """Return what there is to tell."""
        took, done = time.monotonic() - self._began, self._done
        if not done:
            return f"{self._name}: {took:.0f} s so far"
        rate = done / took
        return (
            f"{self._name}: {done} of {self._total}, {rate:.0f}/s, {(self._total - done) / rate:.0f} s left"
        )


@contextmanager
def telling(name: str, tell: Tell | None) -> Iterator[Step]:
    """Tell that a step begins, and every 5 seconds, from another thread, how far it is, until it is over."""
    step = Step(name)
    if tell is None:
        yield step
        return

    def watch() -> None:
        while not step.over.wait(TELL_S):
            tell(step.line())

    tell(name)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield step
    finally:
        step.over.set()
        watcher.join()
