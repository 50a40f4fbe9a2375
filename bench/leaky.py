"""A device that leaks on purpose: what watches memory must see it grow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench.devices import Null

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32


class Leaky(Null):
    """Null, but keeps some bytes of every item for good: LEAK_BYTES, 200 unless told."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        super().__init__(bundle, placement, options)
        self._each = int(os.environ.get("LEAK_BYTES", "200"))
        self._kept: list[bytes] = []

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        # Not of zeros: a page of zeros that nobody wrote to is not resident.
        self._kept.extend(b"\1" * self._each for _ in batch)
        return super().run(tower, batch, outputs)
