"""Runs through many images against real servers that die, come back or fall silent."""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.proxy import proxy
from support.servers import Server, serve

import pixvec

pytestmark = pytest.mark.slow
COUNT = 2000


def pictures(count: int) -> list[bytes]:
    """Small PNGs that compress badly, so that bytes on the wire are images on the wire."""
    random = np.random.default_rng(11)
    return [_png(random.integers(0, 256, (48, 48, 3), np.uint8)) for _ in range(count)]


def _png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("method", "number"), [("embed_iter", signal.SIGKILL), ("embed_stream", signal.SIGTERM)]
)
def test_a_server_that_dies_and_comes_back_costs_nothing_but_time(
    tiny_bundle: Path, method: str, number: signal.Signals
) -> None:
    """Every image is answered once and in order, and few are sent twice."""
    images = pictures(COUNT)
    flags = ("--model", f"tiny={tiny_bundle}")
    with serve(*flags) as first, proxy(first.port) as between, pixvec.Client(between.target) as client:
        vectors = getattr(client, method)(iter(images))
        got = [next(vectors) for _ in range(COUNT // 3)]
        first.process.send_signal(number)
        first.process.wait(30)
        with serve(*flags) as second:
            between.upstream = second.port
            got += list(vectors)
            with pixvec.Client(second.target) as direct:
                expected = direct.embed_batch(images)
    assert len(got) == COUNT
    np.testing.assert_allclose(np.stack(got), expected, atol=1e-6)
    assert between.sent <= 1.2 * sum(map(len, images))


@pytest.mark.timeout(60)
def test_a_peer_that_vanished_is_noticed_before_the_deadline(tiny_server: Server) -> None:
    image = pictures(1)[0]
    with proxy(tiny_server.port) as between:
        with pixvec.Client(between.target, keepalive_s=1, timeout=30) as client:
            before = client.embed(image)
            between.silent.set()
            threading.Timer(1.0, between.silent.clear).start()
            started = time.monotonic()
            np.testing.assert_array_equal(client.embed(image), before)
            assert time.monotonic() - started < 15
        assert between.connections >= 2


@pytest.mark.timeout(60)
def test_calls_go_round_over_several_addresses_and_survive_the_loss_of_one(tiny_bundle: Path) -> None:
    flags = ("--model", f"tiny={tiny_bundle}")
    with serve(*flags) as one, serve(*flags) as other:
        images = pictures(40)
        with pixvec.Client([f"localhost:{one.port}", other.target]) as client:
            for image in images:
                client.embed(image)
            served = [server.metric("pixvec_items_total", outcome="ok") for server in (one, other)]
            assert min(served) >= 10
            other.process.kill()
            for image in images:
                client.embed(image)
        assert one.metric("pixvec_items_total", outcome="ok") > served[0] + 30


@pytest.mark.timeout(60)
def test_memory_of_a_run_is_bounded(tiny_server: Server) -> None:
    """What is read of the caller's iterable and not yet handed back never exceeds the window."""
    ahead, most = 0, 0
    large = pictures(1)[0]

    def images() -> Iterator[bytes]:
        nonlocal ahead, most
        for i in range(600):
            ahead += 1
            most = max(most, ahead)
            yield large + i.to_bytes(4, "big") * 25_000

    with pixvec.Client(tiny_server.target) as client:
        for _ in client.embed_iter(images()):
            ahead -= 1
    assert most * (len(large) + 100_000) <= (32 << 20) + (16 << 20)
