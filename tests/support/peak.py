"""The highest resident memory of a process over a while, sampled from outside."""

from __future__ import annotations

import threading
from typing import Self

import psutil


class Peak:
    """Samples every millisecond; `growth` is the highest, less what it was at the start, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.growth = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._start = self._resident()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, with a last sample."""
        self._stop.set()
        self._thread.join()

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.growth = max(self.growth, self._resident() - self._start)
        self.growth = max(self.growth, self._resident() - self._start)
