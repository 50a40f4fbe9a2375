"""What a call costs the server beside the model: ms of CPU a picture, with a model that computes nothing.

pixvec, Triton's Python backend with its own null model, and the floor of any Python server: a bare grpc.aio
servicer and grpcio's threaded one, which answer a constant. Pictures are pixels of the null model's own size,
so that nothing is decoded or resized: 972 bytes (18 x 18) and 196,608 (256 x 256); Triton gets as many bytes.
The CPU is that of the server's whole process tree. Loads take turns, round by round.

    PYTHONPATH=tests python -m bench.overhead [--seconds 3] [--rounds 3] [--without triton]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from support import tiny
from support.servers import ROOT, environment, serve

from bench import load
from bench.peers.base import Model
from bench.peers.triton import Triton
from bench.wire import WIRES
from pixvec.v1 import embedding_pb2 as pb
from pixvec_server import bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench import wire
    from bench.load import Result

SIDES = (18, 256)
CALLERS = (1, 32)
BATCH = 32
FLOORS = ("aio", "threads")
TRITON, EMBED = "Triton null, ModelInfer", "pixvec, Embed"


@dataclass(frozen=True, slots=True)
class Way:
    """How a server is called: `images` pictures of one size a request."""

    target: str
    pid: int
    protocol: wire.Protocol
    body: bytes
    images: int = 1

    def measure(self, callers: int, seconds: float) -> Result:
        """Load it. A batch of 32 counts as 8 callers, so that both are in hand in like numbers."""
        callers = max(1, callers // 8) if self.images > 1 else callers
        plan = load.Plan(
            self.target, self.protocol, [self.body], images=self.images, callers=callers, seconds=seconds
        )
        return load.measure(plan, self.pid)


def null_bundle(folder: Path, side: int) -> Path:
    """Write a bundle of the tiny model that takes another size; its graph fits none and is never loaded."""
    tiny.write(folder, f"null{side}")
    manifest = bundle.load(folder).manifest
    preprocess = manifest.preprocess.model_copy(update={"height": side, "width": side})
    bundle.save(folder, manifest.model_copy(update={"preprocess": preprocess}))
    return folder


@contextmanager
def pixvec() -> Iterator[dict[int, dict[str, Way]]]:
    """Serve null models of both sizes; give the ways to each."""
    with TemporaryDirectory() as folder:
        names = {side: f"null{side}={null_bundle(Path(folder) / str(side), side)}" for side in SIDES}
        flags = [flag for name in names.values() for flag in ("--model", name)]
        env = {"PYTHONPATH": str(ROOT)}
        with serve("--backend", "bench.devices:Null", *flags, env=env) as server:
            yield {side: _ours(server.target, server.process.pid, side) for side in SIDES}


def _ours(target: str, pid: int, side: int) -> dict[str, Way]:
    picture, name = pixels(side), f"null{side}"

    def way(protocol: wire.Protocol, model: str, images: int) -> Way:
        return Way(target, pid, protocol, WIRES[protocol].encode(model, [picture] * images), images)

    return {
        EMBED: way("embed", name, 1),
        "pixvec, ModelInfer": way("infer", f"{name}_pixels", 1),
        "pixvec, EmbedStream": way("embed_stream", name, 1),
        f"pixvec, EmbedBatch of {BATCH}": way("embed_batch", name, BATCH),
    }


@contextmanager
def triton() -> Iterator[dict[int, dict[str, Way]]]:
    """Serve Triton's null model."""
    system = Triton("null")
    system.install()
    model = Model("null", "", "", side=SIDES[0], short_side=SIDES[0], dimensions=4)
    with system.start(model) as running:
        yield {
            side: {
                TRITON: Way(
                    running.target,
                    running.pid,
                    "infer",
                    WIRES["infer"].encode("null", [pixels(side).tobytes()]),
                )
            }
            for side in SIDES
        }


@contextmanager
def floor(kind: str) -> Iterator[dict[int, dict[str, Way]]]:
    """Run a bare servicer in a process of its own."""
    command = [sys.executable, "-m", "bench.overhead", "--floor", kind]
    path = f"{ROOT}:{ROOT / 'tests'}"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(PYTHONPATH=path)
    ) as process:
        try:
            assert process.stdout is not None
            target = f"127.0.0.1:{int(process.stdout.readline())}"
            body = {side: WIRES["embed"].encode("", [pixels(side)]) for side in SIDES}
            yield {side: {f"bare {kind}": Way(target, process.pid, "embed", body[side])} for side in SIDES}
        finally:
            process.kill()


def pixels(side: int) -> Any:  # noqa: ANN401 - an array of (side, side, 3)
    """Return a seeded picture."""
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)


def run_floor(kind: str) -> None:
    """Serve Embed with a constant and print the port."""
    tensor = pb.Tensor(encoding=pb.ENCODING_FLOAT32, shape=[4], data=bytes(16))
    answer = pb.EmbedResponse(embedded=pb.Embedded(embeddings=[pb.Embedding(vector=tensor)]))
    constant = answer.SerializeToString()

    async def handle_async(_request: bytes, _context: object) -> bytes:
        return constant

    def handler(behaviour: object) -> Any:  # noqa: ANN401 - grpc ships no types
        handlers = {"Embed": grpc.unary_unary_rpc_method_handler(behaviour)}
        return grpc.method_handlers_generic_handler("pixvec.v1.EmbeddingService", handlers)

    async def serve_async() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler(handle_async),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await server.wait_for_termination()

    if kind == "aio":
        asyncio.run(serve_async())
        return
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((handler(lambda _request, _context: constant),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


class Table:
    """Milliseconds of server CPU a picture, by size, callers and way; one number a round."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], dict[str, list[tuple[float, float]]]] = {}

    def note(self, side: int, callers: int, name: str, result: Result) -> None:
        """Add a round. Raises SystemExit when calls failed: they cost something else."""
        if result.failed or not result.images:
            raise SystemExit(f"{name}, {callers} callers: {dict(result.errors)}")
        cost = result.server_cpu_s / result.images * 1000
        self._seen.setdefault((side, callers), {}).setdefault(name, []).append((cost, result.images_s))
        print(f"  {side} px, {callers} callers, {name}: {cost:.3f} ms, {result.images_s:.0f}/s", flush=True)

    def print(self) -> None:
        """Print the table and what it says."""
        print("\n| payload | callers | server | CPU ms a picture | pictures/s | of Triton's CPU |")
        print("|---|---|---|---|---|---|")
        for (side, callers), ways in self._seen.items():
            for name, rounds in ways.items():
                costs, rates = zip(*rounds, strict=True)
                spread = f"{median(costs):.2f} ({min(costs):.2f}-{max(costs):.2f})"
                ratio = self.ratio(side, callers, name)
                told = f"{ratio:.2f}" if ratio else "-"
                print(f"| {side**2 * 3} | {callers} | {name} | {spread} | {median(rates):.0f} | {told} |")
        cells = [(key, self.ratio(*key, EMBED)) for key in self._seen]
        words = ", ".join(
            f"{side**2 * 3} bytes x {callers}: {ratio or 0:.2f}" for (side, callers), ratio in cells
        )
        good = all(ratio and ratio <= 1.0 for _, ratio in cells)
        print(f"verdict: Embed at Triton's cost or under: {'yes' if good else 'no'} ({words})")

    def ratio(self, side: int, callers: int, name: str) -> float | None:
        """Return the median over the rounds of a way's cost against Triton's in the same round."""
        ways = self._seen[side, callers]
        if TRITON not in ways:
            return None
        pairs = zip(ways[name], ways[TRITON], strict=True)
        return median(own / other for (own, _), (other, _) in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one load, after a second of warm-up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", action="append", default=[], choices=("triton", *FLOORS))
    parser.add_argument("--floor", choices=FLOORS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.floor:
        run_floor(asked.floor)
        return
    table = Table()
    with ExitStack() as running:
        servers = [running.enter_context(pixvec())]
        servers += [] if "triton" in asked.without else [running.enter_context(triton())]
        servers += [running.enter_context(floor(kind)) for kind in FLOORS if kind not in asked.without]
        for _ in range(asked.rounds):
            for side in SIDES:
                for callers in CALLERS:
                    ways = {name: way for server in servers for name, way in server[side].items()}
                    for name, way in ways.items():
                        table.note(side, callers, name, way.measure(callers, asked.seconds))
    table.print()


if __name__ == "__main__":
    main()
