"""The SDK's runs against perf_analyzer at its best: images a second, and what the client itself takes.

Both drive the same server with the same photographs, in turns. perf_analyzer sends one image a call over the
Open Inference Protocol, from 8 to 64 callers; `embed_iter` and `embed_stream` read a generator of that many
distinct files (a comment in each makes it another). Each run's vectors are compared, in order, with those of
the photographs.

    PYTHONPATH=tests python -m bench.runs [--images 5000] [--rounds 2] [--precision bf16]
"""

from __future__ import annotations

import argparse
import resource
import struct
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from support import perf_analyzer, photos
from support.servers import ROOT, serve

import pixvec
from bench.bare import MODEL, PICTURES

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = ("embed_iter", "embed_stream")
CALLERS = (8, 16, 32, 64)
TOOLS = ROOT / ".tools" / "perf_analyzer"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run. cpu_s: of the client's process. memory: bytes by which its peak grew during the run."""

    images_s: float
    cpu_s: float
    memory: int


def distinct(count: int) -> Iterator[bytes]:
    """Yield photographs in turn, each with its number as a comment: other bytes, the same picture."""
    originals = [photos.jpeg(name) for name in PICTURES]
    for i in range(count):
        comment = struct.pack(">I", i)
        data = originals[i % len(originals)]
        yield data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + data[2:]


def embed(target: str, method: str, count: int) -> Ran:
    """Run through `count` images, in a process of its own, and check each vector in its place."""
    with pixvec.Client(target) as client:
        expected = client.embed_batch([photos.jpeg(name) for name in PICTURES])
        before, cpu, started = _peak(), time.process_time(), time.perf_counter()
        wrong = 0
        for i, vector in enumerate(getattr(client, method)(distinct(count))):
            wrong += not np.allclose(vector, expected[i % len(PICTURES)], atol=1e-4)
        seconds = time.perf_counter() - started
    if wrong or i + 1 != count:
        raise SystemExit(f"{method}: {wrong} vectors of {i + 1} are not those of their images")
    return Ran(count / seconds, time.process_time() - cpu, _peak() - before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    program = perf_analyzer.obtain(TOOLS)
    best: dict[int, list[float]] = {callers: [] for callers in CALLERS}
    runs: dict[str, list[Ran]] = {method: [] for method in METHODS}
    with TemporaryDirectory() as folder, serve("--precision", asked.precision) as server:
        inputs = perf_analyzer.image_input(
            Path(folder) / "photographs.json", [photos.jpeg(name) for name in PICTURES]
        )
        for _ in range(asked.rounds):
            for callers in CALLERS:
                report = perf_analyzer.run(
                    program, server.target, MODEL, inputs, concurrency=callers, window_ms=5000
                )
                best[callers].append(report.throughput)
            for method in METHODS:
                with get_context("spawn").Pool(1) as pool:
                    runs[method].append(pool.apply(embed, (server.target, method, asked.images)))
    show(best, runs, asked.images)


def show(best: dict[int, list[float]], runs: dict[str, list[Ran]], count: int) -> None:
    """Print what was measured, as medians over the rounds."""
    for callers, speeds in best.items():
        print(f"perf_analyzer, {callers:2} callers {median(speeds):8.1f} images/s")
    top = max(median(speeds) for speeds in best.values())
    for method, ran in runs.items():
        speed = median(one.images_s for one in ran)
        cpu = median(one.cpu_s for one in ran) / count * 1000
        memory = max(one.memory for one in ran) / 2**20
        print(
            f"{method:24} {speed:8.1f} images/s  {speed / top:.2f} of the best  "
            f"{cpu:.2f} ms CPU an image  {memory:.0f} MiB at most"
        )


if __name__ == "__main__":
    main()
