"""Waiting for what another thread or process will do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_STEP_S = 0.02


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    """Return once `holds` is true. Raises AssertionError where it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(_STEP_S)
