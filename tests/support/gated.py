"""A device that computes nothing, and while the file GATE exists not even that: `support.gated:Gated`.

What waits at the gate says so by the file GATE.held.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pixvec_server.backends.base import BackendOptions, Batch, Placement
from pixvec_server.bundle import Bundle
from pixvec_server.types import F32


class Gated:
    """Answers with zeros of the right shape, once the gate is open."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        del placement, options
        self._shapes = {name: record.shape for name, record in bundle.manifest.outputs.items()}
        self._gate = Path(os.environ["GATE"])

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        del tower
        while self._gate.exists():
            self._gate.with_suffix(".held").touch()
            time.sleep(0.005)
        return {name: np.zeros((len(batch), *self._shapes[name]), np.float32) for name in outputs}

    def close(self) -> None:
        """See `Backend.close`."""
