"""Pipes that nobody reads."""

from __future__ import annotations

import os
from contextlib import suppress


def fill(writing: int) -> None:
    """Write until the pipe takes no more, and leave it blocking."""
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
