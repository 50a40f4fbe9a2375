"""Images a second: a bare loop against the server, on the same cores in the same run.

The bare loop is the same decoder and the same backend in one process with no RPC: decode threads ahead of one
engine thread. That is the limit to be held against. The load generator runs on the same cores as the server,
so its CPU time is measured and a second ratio subtracts it:
server only = images / (seconds - client CPU seconds / cores).

    PYTHONPATH=tests python -m bench.throughput [--precision bf16] [--backend onnx] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, islice
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import psutil
from support import photos
from support.servers import CACHE, Server, serve

import pixvec
from pixvec_server import provision
from pixvec_server.backends.base import BackendOptions, example
from pixvec_server.backends.select import choose, factory
from pixvec_server.cpu import available_cpus
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.types import U8, WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable

MODEL = "efficientnet_lite0"
BATCH = 8
PICTURES = ("rocket.jpg", "china.jpg", "flower.jpg", "coffee.png", "chelsea.png", "astronaut.png")


def pictures(count: int) -> list[bytes]:
    """Return real photographs as JPEG, of about 640 x 427, in turn."""
    return list(islice(cycle(photos.jpeg(name) for name in PICTURES), count))


class BareLoop:
    """Decode threads ahead of one engine, as close to the parts' sum as Python gets."""

    def __init__(self, backend: str, precision: str) -> None:
        bundle = provision.obtain(provision.parse(MODEL), CACHE)
        placement = choose(backend, "cpu", precision)
        self._engine = factory(placement.kind)(bundle, placement, BackendOptions(available_cpus(), 1))
        for size in (1, BATCH):
            self._engine.run("image", example(bundle.manifest, "image", size), ("embedding",))
        self._spec = spec_of(bundle.manifest.preprocess)
        self._decoder = Decoder(ImageLimits(), DecodeOptions(), PixelBudget(400_000_000))
        self.name = f"{placement.kind} {placement.precision}"

    def run(self, images: list[bytes], batch: int) -> float:
        """Return images a second."""
        started = time.perf_counter()
        with ThreadPoolExecutor(available_cpus()) as decoding, ThreadPoolExecutor(1) as running:
            ready = [decoding.submit(self._read, image) for image in images]
            runs: list[Future[object]] = []
            for group in _batched(ready, batch):
                stacked = np.stack([future.result() for future in group])
                runs.append(running.submit(self._engine.run, "image", stacked, ("embedding",)))
            for run in runs:
                run.result()
        return len(images) / (time.perf_counter() - started)

    def one_by_one(self, images: list[bytes]) -> float:
        """Return images a second when each is decoded and run before the next."""
        started = time.perf_counter()
        for image in images:
            self._engine.run("image", self._read(image)[None], ("embedding",))
        return len(images) / (time.perf_counter() - started)

    def _read(self, image: bytes) -> U8:
        with ExitStack() as held:
            return fit(self._decoder.decode(image, held), WHOLE, self._spec)


def _batched(futures: Iterable[Future[U8]], size: int) -> Iterable[tuple[Future[U8], ...]]:
    iterator = iter(futures)
    return iter(lambda: tuple(islice(iterator, size)), ())


def load(target: str, callers: int, calls: int, batch: int) -> tuple[float, float]:
    """Send `calls` requests of `batch` images from threads; return seconds and this process's CPU seconds."""
    images = pictures(calls * batch)
    groups = [images[i : i + batch] for i in range(0, len(images), batch)]
    with pixvec.Client(target) as client, ThreadPoolExecutor(callers) as pool:

        def send(group: list[bytes]) -> object:
            return client.embed_batch(group) if batch > 1 else client.embed(group[0])

        list(pool.map(send, groups[:callers]))
        before, started = psutil.Process().cpu_times(), time.perf_counter()
        list(pool.map(send, groups))
        seconds, after = time.perf_counter() - started, psutil.Process().cpu_times()
    return seconds, after.user + after.system - before.user - before.system


def served(server: Server, callers: int, calls: int, batch: int = 1) -> tuple[float, float]:
    """Return images a second as seen, and with the load generator's CPU subtracted."""
    with get_context("spawn").Pool(1) as pool:
        seconds, cpu = pool.apply(load, (server.target, callers, calls, batch))
    images = calls * batch
    return images / seconds, images / (seconds - cpu / available_cpus())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    bare = BareLoop(arguments.backend, arguments.precision)
    images = pictures(arguments.images)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    flags = ("--backend", arguments.backend, "--precision", arguments.precision)
    with serve(*flags) as server:
        for _ in range(arguments.rounds):
            alone = bare.one_by_one(images[:64])
            full = bare.run(images, BATCH)
            sizes = server.metric("pixvec_batch_size_sum"), server.metric("pixvec_batch_size_count")
            for name, limit, seen in (
                ("1 caller", alone, served(server, 1, 64)),
                ("32 callers", full, served(server, 32, arguments.images)),
                ("4 callers, batches of 32", full, served(server, 4, arguments.images // 32, 32)),
            ):
                rows.setdefault(name, []).append((limit, *seen))
        items = server.metric("pixvec_batch_size_sum") - sizes[0]
        batches = server.metric("pixvec_batch_size_count") - sizes[1]
    print(
        f"{MODEL}, {bare.name}, {available_cpus()} cores, {arguments.rounds} rounds, medians (lowest-highest)"
    )
    print(f"{'load':26} {'bare':>14} {'served':>14} {'ratio':>18} {'ratio less client CPU':>24}")
    for load_name, measured in rows.items():
        ratios = [seen / limit for limit, seen, _ in measured]
        lone = [own / limit for limit, _, own in measured]
        limit, rate = (statistics.median(row[i] for row in measured) for i in (0, 1))
        print(f"{load_name:26} {limit:>10.1f}/s {rate:>12.1f}/s {_spread(ratios):>18} {_spread(lone):>24}")
    print(f"mean batch of the last round, all loads: {items / batches:.1f}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
