"""OpenVINO's bindings set themselves up in a process's first inference, and do it badly from two threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pixvec_server import bundle
from pixvec_server.backends import openvino
from pixvec_server.backends.base import BackendOptions, Batch, Placement
from pixvec_server.types import F32

THREADS = 4


class Watched(openvino.OpenVinoBackend):
    """Notes who goes in and out."""

    events: list[str]

    def _run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        self.events.append("in")
        time.sleep(0.02)  # long enough for another to come in
        values = super()._run(tower, batch, outputs)
        self.events.append("out")
        return values


def test_a_processes_first_inference_is_alone(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_ready", threading.Event())
    place = Placement("openvino", "cpu", "fp32", "test")
    engine = Watched(bundle.load(tiny_bundle), place, BackendOptions(threads=2, instances=THREADS))
    engine.events = []
    together = threading.Barrier(THREADS)

    def run() -> None:
        together.wait(5)
        engine.run("image", np.zeros((1, 8, 8, 3), np.uint8), ("embedding",))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert engine.events[:2] == ["in", "out"]
    assert len(engine.events) == 2 * THREADS
