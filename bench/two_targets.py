"""Two models in one call against two calls: what reading a picture once is worth.

One server of two networks of EfficientNet-Lite0's size. A call with both targets is decoded once; two calls
of one target each are decoded twice. The ratio is the time that a picture takes with both vectors in one
call, of its time in two; 32 callers keep the server busy. The generator shares the server's processors; the
last ratio takes its CPU time off both.

    PYTHONPATH=tests python -m bench.two_targets [--seconds 8] [--rounds 3] [--precision fp32]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from support import photos
from support.servers import serve

from bench import load
from bench.workloads import PHOTOGRAPHS
from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.backends.select import computes_bf16
from pixvec_server.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.servers import Server

MODELS = {"efficientnet_lite0": "efficientnet_lite0", "twin": "twin=timm:tf_efficientnet_lite0?weights=none"}
MOST = {"fp32": 0.85, "bf16": 0.75}
CALLERS = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """Pictures a second that got both vectors, as seen, and with the generator's CPU taken off the clock."""

    seen: float
    alone: float


def bodies(*calls: Sequence[str]) -> list[bytes]:
    """Return for each photograph these calls, each with the targets of these models."""
    return [
        pb.EmbedRequest(
            input=pb.Input(image=photos.jpeg(name)), targets=[pb.Target(model=model) for model in models]
        ).SerializeToString()
        for name in PHOTOGRAPHS
        for models in calls
    ]


def check(server: Server, requests: Sequence[bytes], vectors: int) -> None:
    """Raise SystemExit unless the answers hold as many vectors as are asked for."""
    for answer in load.ask(server.target, "embed", requests):
        got = [e.WhichOneof("outcome") for e in pb.EmbedResponse.FromString(answer).embedded.embeddings]
        if got != ["vector"] * vectors:
            raise SystemExit(f"{got} instead of {vectors} vectors")


def measure(server: Server, requests: Sequence[bytes], calls: int, seconds: float) -> Speed:
    """Load the server; `calls` of them make a picture's two vectors."""
    plan = load.Plan(server.target, "embed", requests, callers=CALLERS, seconds=seconds)
    result = load.measure(plan, server.process.pid)
    if result.failed:
        raise SystemExit(f"calls failed: {dict(result.errors)}")
    pictures = result.requests / calls
    left = result.seconds - result.client_cpu_s / available_cpus()
    return Speed(pictures / result.seconds, pictures / left)


def rounds(server: Server, count: int, seconds: float) -> Iterator[tuple[Speed, Speed]]:
    """Yield for each round the speed in one call, and in two."""
    together, apart = bodies(tuple(MODELS)), bodies(*((name,) for name in MODELS))
    check(server, together, 2)
    check(server, apart, 1)
    for _ in range(count):
        yield measure(server, together, 1, seconds), measure(server, apart, 2, seconds)


def run(precision: str, count: int, seconds: float) -> bool:
    """Measure one precision, print its row, and tell whether it is good enough."""
    flags = [flag for model in MODELS.values() for flag in ("--model", model)]
    with serve(*flags, "--precision", precision) as server:
        seen = list(rounds(server, count, seconds))
    ratios = [apart.seen / together.seen for together, apart in seen]
    alone = median(apart.alone / together.alone for together, apart in seen)
    one, two = (median(pair[i].seen for pair in seen) for i in (0, 1))
    ratio = median(ratios)
    print(
        f"| {precision} | {one:.1f} | {two:.1f} | {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {alone:.2f} | {MOST[precision]} | {'yes' if ratio <= MOST[precision] else 'no'} |",
        flush=True,
    )
    return bool(ratio <= MOST[precision])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of one load, after a second of warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", action="append", choices=tuple(MOST))
    asked = parser.parse_args()
    print("| precision | pictures/s, one call | in two calls | time in one, of that in two | "
          "less the generator's CPU | at most | good |")  # fmt: skip
    print("|" + "---|" * 7, flush=True)
    able = ["fp32", *(["bf16"] if computes_bf16() else [])]
    good = [run(precision, asked.rounds, asked.seconds) for precision in asked.precision or able]
    print(f"verdict: two targets in one call are {'cheap enough' if all(good) else 'too dear'}")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
