"""What OpenVINO must not be asked to do from two threads: a process's first inference, or a new request."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


class Noted:
    """A compiled model that notes when it makes a request; its requests note when they infer."""

    def __init__(self, compiled: Any, events: list[str]) -> None:
        self._compiled, self._events = compiled, events

    def create_infer_request(self) -> Any:
        self._events.append("made")
        request = self._compiled.create_infer_request()
        events, infer = self._events, request.infer

        class Request:
            get_output_tensor = request.get_output_tensor

            def infer(self, *args: Any, **options: Any) -> None:
                events.append("infers")
                infer(*args, **options)

        return Request()


class Made(openvino.OpenVinoBackend):
    """Notes what it makes and when."""

    events: list[str]

    def _compile(self, part: Any) -> Any:
        return Noted(super()._compile(part), self.events)


def _together(engine: openvino.OpenVinoBackend) -> list[F32]:
    together, found = threading.Barrier(THREADS), []

    def run() -> None:
        together.wait(5)
        for size in (1, 3, 8):
            batch = np.full((size, 8, 8, 3), 7, np.uint8)
            found.append(engine.run("image", batch, ("embedding",))["embedding"])

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return found


def test_every_request_is_made_before_the_first_infers(tiny_bundle: Path) -> None:
    place = Placement("openvino", "cpu", "fp32", "test")
    engine = Made(bundle.load(tiny_bundle), place, BackendOptions(threads=2, instances=2))
    engine.events = []
    found = _together(engine)
    assert engine.events == ["made"] * 2 + ["infers"] * THREADS * 3
    assert len(found) == THREADS * 3
    for values in found:
        np.testing.assert_allclose(values, np.broadcast_to(found[0][0], values.shape), rtol=1e-5)


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
