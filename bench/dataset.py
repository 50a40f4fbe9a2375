"""What `pixvec dataset embed` makes of a server: its images a second by the most that the server gives.

The most is what a generator gets that sends ready requests (EmbedBatch of 32, and one image a call by 32
callers, whichever is more), reads no file and keeps nothing, before and after. The dataset is a folder of as
many distinct photographs, embedded anew into an empty folder each time. All take turns on one server, whose
cores they share; "less the clients' CPU" is what each would have got if its client had had cores of its own.

    PYTHONPATH=tests python -m bench.dataset [--images 1500] [--rounds 3] [--precision fp32]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from support.servers import serve

import pixvec
from bench import load
from bench.runs import distinct
from bench.wire import WIRES
from pixvec import dataset

if TYPE_CHECKING:
    from support.servers import Server

BATCH, CALLERS = 32, 32
LEAST = 0.95


class Speed(NamedTuple):
    """Images a second: as they were, and less the client's CPU."""

    shared: float
    alone: float


def speed(images: float, seconds: float, client_cpu_s: float) -> Speed:
    return Speed(images / seconds, images / (seconds - client_cpu_s / (os.cpu_count() or 1)))


def most(server: Server, images: list[bytes], seconds: float) -> Speed:
    """Return the speed of ready requests."""
    ones = [WIRES["embed"].encode("", [image]) for image in images[:64]]
    batches = [WIRES["embed_batch"].encode("", images[at : at + BATCH]) for at in range(0, 4 * BATCH, BATCH)]
    plans = (
        load.Plan(server.target, "embed", ones, callers=CALLERS, seconds=seconds),
        load.Plan(server.target, "embed_batch", batches, images=BATCH, callers=4, seconds=seconds),
    )
    results = [load.measure(plan, server.process.pid) for plan in plans]
    return max(speed(result.images, result.seconds, result.client_cpu_s) for result in results)


def embedded(server: Server, photographs: Path, count: int) -> Speed:
    """Return the speed of a dataset's first run."""
    with TemporaryDirectory() as out, pixvec.Client(server.target) as client:
        started, cpu = time.perf_counter(), time.process_time()
        counts = dataset.embed(photographs, out, client)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if counts.embedded != count:
        raise SystemExit(f"{counts} of {count} images")
    return speed(count, seconds, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    images, ratios = list(distinct(asked.images)), list[tuple[float, float]]()
    with TemporaryDirectory() as folder, serve("--precision", asked.precision) as server:
        for i, image in enumerate(images):
            (Path(folder) / f"{i:05}.jpg").write_bytes(image)
        for _ in range(asked.rounds):
            before = most(server, images, 5.0)
            ours = embedded(server, Path(folder), asked.images)
            best = [(one + other) / 2 for one, other in zip(before, most(server, images, 5.0), strict=True)]
            ratios.append((ours.shared / best[0], ours.alone / best[1]))
            print(
                f"  the server's most {best[0]:.1f} images/s, dataset embed {ours.shared:.1f}: "
                f"{ratios[-1][0]:.2f}, less the clients' CPU {ratios[-1][1]:.2f}",
                flush=True,
            )
    shared, alone = (median(values) for values in zip(*ratios, strict=True))
    print(
        f"dataset embed / the server's most: {shared:.2f}, less the clients' CPU {alone:.2f} "
        f"({LEAST} is wanted)"
    )


if __name__ == "__main__":
    main()
