"""A bound on the pixels that decode threads hold at one time."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class PixelBudget:
    """Threads wait for room, so that nothing is refused for what others decode.

    A picture over the whole budget gets it alone. Small ones may overtake a large one that waits.
    """

    def __init__(self, pixels: int) -> None:
        self._most = pixels
        self._held = 0
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until `pixels` more fit, and hold them for the body's length."""
        share = min(pixels, self._most)
        with self._freed:
            self._freed.wait_for(lambda: self._held + share <= self._most)
            self._held += share
        try:
            yield
        finally:
            with self._freed:
                self._held -= share
                self._freed.notify_all()
