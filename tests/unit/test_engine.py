"""Who runs on which engine: a batch that is alone gets all processors, the others share them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from pixvec_server import bundle
from pixvec_server.backends.base import Batch, Placement
from pixvec_server.engine import Engine
from pixvec_server.metrics import Metrics
from pixvec_server.served import EngineOptions, Prepared, Work
from pixvec_server.types import F32

WORK = Work("image", np.zeros((tiny.SIDE, tiny.SIDE, 3), np.uint8))
FAR = 1e9


class Recorder:
    """A backend that notes its batches, and waits at a gate."""

    seen: list[tuple[int, int]]
    gate: threading.Event
    closed: list[int]

    def __init__(self, instances: int) -> None:
        self.instances = instances

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        del tower
        self.seen.append((self.instances, len(batch)))
        assert self.gate.wait(5)
        return {name: np.zeros((len(batch), tiny.SIZE), np.float32) for name in outputs}

    def close(self) -> None:
        self.closed.append(self.instances)


@pytest.fixture
async def engine(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    Recorder.seen, Recorder.gate, Recorder.closed = [], threading.Event(), []
    Recorder.gate.set()
    place = Placement("onnx", "cpu", "fp32", "test", instances=2, lone=getattr(request, "param", True))
    made = bundle.load(tiny.write(tmp_path / "tiny"))
    engine = Engine(
        "tiny",
        prepare=lambda: Prepared(made, place),
        load=lambda _prepared, instances: Recorder(instances),
        options=lambda _place: EngineOptions(max_batch=4, max_delay_s=0.0, instances=2, decode_mode="exact"),
        metrics=Metrics(),
    )
    await engine.start()
    Recorder.seen.clear()
    yield engine
    Recorder.gate.set()
    assert await engine.stop()


async def test_whoever_is_alone_gets_all_processors(engine: Engine) -> None:
    await engine.infer(WORK, ["embedding"], FAR)
    await asyncio.gather(*(engine.infer(WORK, ["embedding"], FAR) for _ in range(4)))
    assert Recorder.seen == [(1, 1), (1, 4)]


async def test_batches_with_others_beside_them_share(engine: Engine) -> None:
    Recorder.gate.clear()
    first = asyncio.gather(*(engine.infer(WORK, ["embedding"], FAR) for _ in range(5)))
    while len(Recorder.seen) < 2:
        await asyncio.sleep(0.001)
    Recorder.gate.set()
    await first
    assert sorted(Recorder.seen) == [(2, 1), (2, 4)]
    await engine.infer(WORK, ["embedding"], FAR)
    assert Recorder.seen[-1] == (1, 1)


async def test_what_is_still_being_decoded_counts_too(engine: Engine) -> None:
    engine.inflight = 2
    await engine.infer(WORK, ["embedding"], FAR)
    engine.inflight = 0
    assert Recorder.seen == [(2, 1)]


@pytest.mark.parametrize("engine", [False], indirect=True)
async def test_a_bundle_too_large_to_be_loaded_twice_has_one_engine(engine: Engine) -> None:
    await engine.infer(WORK, ["embedding"], FAR)
    assert Recorder.seen == [(2, 1)]
    assert await engine.stop()
    assert Recorder.closed == [2]


async def test_both_engines_are_released(engine: Engine) -> None:
    assert await engine.stop()
    assert sorted(Recorder.closed) == [1, 2]
