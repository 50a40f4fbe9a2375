"""What `pixvec dataset embed` makes of a server: its images a second by the most that the server gives.

The most is what a generator gets that sends ready requests (EmbedBatch of 32, and one image a call by 32
callers, whichever is more), reads no file and keeps nothing. The dataset is a folder of as many distinct
photographs, embedded anew into an empty folder each time. Both take turns on one server, on the same cores.

    PYTHONPATH=tests python -m bench.dataset [--images 1500] [--rounds 3] [--precision fp32]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

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


def most(server: Server, images: list[bytes], seconds: float) -> float:
    """Return the images a second of ready requests."""
    ones = [WIRES["embed"].encode("", [image]) for image in images[:64]]
    batches = [WIRES["embed_batch"].encode("", images[at : at + BATCH]) for at in range(0, 4 * BATCH, BATCH)]
    plans = (
        load.Plan(server.target, "embed", ones, callers=CALLERS, seconds=seconds),
        load.Plan(server.target, "embed_batch", batches, images=BATCH, callers=4, seconds=seconds),
    )
    return max(load.measure(plan, server.process.pid).images_s for plan in plans)


def embedded(server: Server, photographs: Path, count: int) -> float:
    """Return the images a second of a dataset's first run."""
    with TemporaryDirectory() as out, pixvec.Client(server.target) as client:
        started = time.perf_counter()
        counts = dataset.embed(photographs, out, client)
        seconds = time.perf_counter() - started
    if counts.embedded != count:
        raise SystemExit(f"{counts} of {count} images")
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()
    images = list(distinct(asked.images))
    ratios = []
    with TemporaryDirectory() as folder, serve("--precision", asked.precision) as server:
        for i, image in enumerate(images):
            (Path(folder) / f"{i:05}.jpg").write_bytes(image)
        for _ in range(asked.rounds):
            best, ours = most(server, images, 5.0), embedded(server, Path(folder), asked.images)
            ratios.append(ours / best)
            print(
                f"  the server's most {best:.1f} images/s, dataset embed {ours:.1f}: {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"dataset embed / the server's most: {median(ratios):.2f} ({LEAST} is wanted)")


if __name__ == "__main__":
    main()
