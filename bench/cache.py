"""What the embedding cache gains and costs, at three hit rates, against a server without one.

Two servers of the same model, one of them with a cache, get the same calls in turns: one photograph a call,
a share of them from a small set that both have seen, the rest never seen before (a comment in each makes it
another file). At a hit rate of 0 the ratios are the price of hashing and keeping.

    PYTHONPATH=tests python -m bench.cache [--calls 600] [--rounds 3] [--callers 32]
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

import psutil
from support import photos
from support.servers import Server, serve

from bench.bare import PICTURES
from bench.runs import distinct
from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RATES = (0.0, 0.5, 1.0)


def mixture(fresh: Iterator[bytes], hot: Sequence[bytes], count: int, rate: float) -> list[bytes]:
    """Return files of which a share of `rate`, evenly spread, is of the hot ones."""
    known = [int((i + 1) * rate) > int(i * rate) for i in range(count)]
    return [hot[i % len(hot)] if again else next(fresh) for i, again in enumerate(known)]


def drive(server: Server, images: Sequence[bytes], callers: int) -> tuple[float, float]:
    """Return calls a second, and the server's CPU seconds for all of them."""
    stub, process = server.stub(), psutil.Process(server.process.pid)
    requests = [pb.EmbedRequest(input=pb.Input(image=image)) for image in images]
    before, started = sum(process.cpu_times()[:2]), time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda request: stub.Embed(request, timeout=120), requests))
    return len(images) / (time.perf_counter() - started), sum(process.cpu_times()[:2]) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=32)
    asked = parser.parse_args()
    hot = [photos.jpeg(name) for name in PICTURES]
    fresh = distinct(asked.calls * (asked.rounds + 1) * len(RATES))
    with serve() as bare, serve("--cache-mib", "256") as keeping:
        for server in (bare, keeping):
            drive(server, [*hot, *islice(fresh, 2 * asked.callers)], asked.callers)
        for rate in RATES:
            calls, work = [], []
            for i in range(asked.rounds):
                images = mixture(fresh, hot, asked.calls, rate)
                order = (bare, keeping) if i % 2 else (keeping, bare)
                ran = {server.port: drive(server, images, asked.callers) for server in order}
                (calls_with, work_with), (calls_without, work_without) = ran[keeping.port], ran[bare.port]
                calls.append(calls_with / calls_without)
                work.append(work_with / work_without)
            print(
                f"hit rate {rate:.1f}: {median(calls):6.2f} times the calls/s ({min(calls):.2f} to "
                f"{max(calls):.2f}), {median(work):.3f} of its CPU ({min(work):.3f} to {max(work):.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
