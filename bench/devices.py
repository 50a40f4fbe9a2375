"""Devices that compute nothing, to measure all the rest: `pixvec-server serve --backend bench.devices:…`."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32


class Null:
    """Answers at once, with zeros of the right shape."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        del placement, options
        self._shapes = {name: record.shape for name, record in bundle.manifest.outputs.items()}

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        del tower
        return {name: np.zeros((len(batch), *self._shapes[name]), np.float32) for name in outputs}

    def close(self) -> None:
        """See `Backend.close`."""


class Fixed(Null):
    """Holds its one device for a time that a batch's size decides: FAKE_DEVICE_MS="BATCH,ITEM" in ms."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        super().__init__(bundle, placement, options)
        batch_ms, item_ms = os.environ.get("FAKE_DEVICE_MS", "5,0").split(",")
        self._batch_s, self._item_s = float(batch_ms) / 1e3, float(item_ms) / 1e3
        self._device = threading.Lock()

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        with self._device:
            time.sleep(self._batch_s + self._item_s * len(batch))
        return super().run(tower, batch, outputs)
