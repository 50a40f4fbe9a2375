"""Resident memory: what it grows by over many mixed calls, and what each model takes.

The soak sends every kind of call to a server of the tiny test model, over and over: files, pixels, batches,
streams, comparisons, lists, the Open Inference Protocol, and what is to be refused. None is cancelled: grpcio
itself leaks about 1 KiB with each call that is. Growth is told from the level after a warm-up, each level the
median of some samples. The control is the same soak of a server that leaks on purpose (bench/leaky.py); when
that is not seen, the first figure means nothing. Ends with 1 when it is not, or the real server grows.

    PYTHONPATH=tests python -m bench.memory [--calls 100000] [--only soak] [--only control] [--only models]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
from PIL import Image
from support import photos, tiny
from support.servers import ROOT, serve

from bench import load
from bench.wire import WIRES
from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.servers import Server

MIB = 1 << 20
_SERVICE = "/pixvec.v1.EmbeddingService/"
_STREAMED = 8  # messages of one stream, each of which counts as a call
_WORKERS = 8
_SAMPLES = 40  # of a soak's memory, after the warm-up
_LEVEL = 5  # samples that make a level
MODELS = ("efficientnet_lite0", "resnet50?weights=none", "vit_base_patch16_224?weights=none")
CLIP = "clip-vit-b-32?weights=none"
ENGINES = (("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32"), ("onnx", "bf16"))


@dataclass(frozen=True, slots=True)
class Kind:
    """A call that is sent again and again. calls: what it counts as; `refused` by this status, if any."""

    path: str
    body: bytes
    calls: int = 1
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Soak:
    """How a server's memory went: (calls, bytes) after the warm-up, and how long all took."""

    samples: Sequence[tuple[int, int]]
    seconds: float

    @property
    def growth(self) -> float:
        """MiB between the level after the warm-up and that at the end."""
        start, end = (median(rss for _, rss in part) for part in (self._first, self._last))
        return float(end - start) / MIB

    @property
    def slope(self) -> float:
        """KiB for each 1,000 calls: the median of the slopes between all samples (Theil and Sen)."""
        pairs = itertools.combinations(self.samples, 2)
        return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs) * 1000 / 1024

    @property
    def _first(self) -> Sequence[tuple[int, int]]:
        return self.samples[:_LEVEL]

    @property
    def _last(self) -> Sequence[tuple[int, int]]:
        return self.samples[-_LEVEL:]


def kinds(model: str) -> list[Kind]:
    """Return one call of each kind, in the order in which they are sent."""
    random = np.random.default_rng(1)
    picture = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    jpeg, png = photos.encode(picture, "JPEG"), photos.encode(picture, "PNG")
    pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    cut = pb.Input(image=jpeg[:-200])
    embed, batch, stream = (WIRES[name] for name in ("embed", "embed_batch", "embed_stream"))
    mixed = pb.EmbedBatchRequest(inputs=[pb.Input(image=jpeg), cut, pb.Input(image=png)])
    infer = WIRES["infer"]
    return [
        Kind(embed.path, embed.encode(model, [jpeg])),
        Kind(stream.path, stream.encode(model, [jpeg]), calls=_STREAMED),
        Kind(embed.path, embed.encode(model, [png])),
        Kind(batch.path, batch.encode(model, [jpeg, png, pixels, jpeg])),
        Kind(infer.path, infer.encode(model, [jpeg, png])),
        Kind(embed.path, embed.encode(model, [pixels])),
        Kind(_SERVICE + "Similarity", _question(jpeg, png)),
        Kind(batch.path, mixed.SerializeToString()),
        Kind(infer.path, infer.encode(f"{model}_pixels", [pixels])),
        Kind(_SERVICE + "ListModels", b""),
        Kind(embed.path, pb.EmbedRequest(input=cut).SerializeToString(), refused="INVALID_ARGUMENT"),
        Kind(embed.path, embed.encode("nobody", [jpeg]), refused="NOT_FOUND"),
        Kind(infer.path, infer.encode(model, [b"no picture"]), refused="INVALID_ARGUMENT"),
        Kind(embed.path, b"\xff" * 64, refused="INVALID_ARGUMENT"),
    ]


def _question(jpeg: bytes, png: bytes) -> bytes:
    operands = [pb.Operand(input=pb.Input(image=image)) for image in (jpeg, png)]
    return pb.SimilarityRequest(queries=operands[:1], candidates=operands).SerializeToString()


class Caller:
    """Sends calls over one channel. Raises RuntimeError for an answer that it does not expect."""

    def __init__(self, channel: Any) -> None:  # noqa: ANN401 - grpc ships no types
        self._channel = channel

    async def send(self, sent: Sequence[Kind], count: int) -> int:
        """Send at least `count` calls, each kind in its turn, and return how many."""
        left, done = itertools.cycle(sent), 0

        async def worker() -> None:
            nonlocal done
            while done < count:
                kind = next(left)
                done += kind.calls
                await (self._stream(kind) if kind.calls > 1 else self._unary(kind))

        await asyncio.gather(*(worker() for _ in range(_WORKERS)))
        return done

    async def _unary(self, kind: Kind) -> None:
        try:
            await self._channel.unary_unary(kind.path)(kind.body, timeout=60)
            status = ""
        except grpc.aio.AioRpcError as exc:
            status = exc.code().name
        if status != kind.refused:
            raise RuntimeError(f"{kind.path} ended with {status or 'OK'}, not {kind.refused or 'OK'}")

    async def _stream(self, kind: Kind) -> None:
        call = self._channel.stream_stream(kind.path)(timeout=60)
        for i in range(kind.calls):
            await call.write(b"\x0a\x01%d" % i + kind.body)
        await call.done_writing()
        answers = [answer async for answer in call]
        if len(answers) != kind.calls:
            raise RuntimeError(f"{len(answers)} answers to {kind.calls} messages")


def resident(pid: int) -> int:
    """Return the resident bytes of a process and its descendants."""
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


async def _soak(server: Server, model: str, calls: int, warm_up: int) -> Soak:
    started, samples = time.perf_counter(), []
    async with grpc.aio.insecure_channel(server.target) as channel:
        caller, sent = Caller(channel), kinds(model)
        done = await caller.send(sent, warm_up)
        for _ in range(_SAMPLES):
            done += await caller.send(sent, calls // _SAMPLES)
            samples.append((done, resident(server.process.pid)))
            if len(samples) % 4 == 0:
                rate = done / (time.perf_counter() - started)
                print(f"  {done:7} calls {samples[-1][1] / MIB:7.1f} MiB  {rate:.0f} calls/s", flush=True)
    return Soak(samples, time.perf_counter() - started)


def soak(backend: str, calls: int, warm_up: int, leak_bytes: int = 0) -> Soak:
    """Run mixed calls against a server of the tiny model on this backend."""
    env = {"PYTHONPATH": str(ROOT), "LEAK_BYTES": str(leak_bytes)}
    with TemporaryDirectory() as folder:
        bundle = tiny.write(Path(folder) / "tiny")
        with serve("--model", f"tiny={bundle}", "--backend", backend, env=env) as server:
            return asyncio.run(_soak(server, "tiny", calls, warm_up))


def watched(asked: argparse.Namespace) -> list[str]:
    """Run the soak and its control, as far as asked for; print them and return what has failed."""
    failed = []
    print(f"| server | calls | growth, limit {asked.limit_mib} MiB | per 1,000 calls | seconds |")
    print("|---|---|---|---|---|", flush=True)
    if "soak" in asked.only:
        seen = soak(asked.backend, asked.calls, asked.warm_up)
        print(_row(f"pixvec, {asked.backend}", asked.calls, seen))
        failed += ["the server grows"] if seen.growth >= asked.limit_mib else []
    if "control" in asked.only:
        seen = soak("bench.leaky:Leaky", asked.calls, asked.warm_up, asked.leak_bytes)
        print(_row(f"leaks {asked.leak_bytes} bytes an item", asked.calls, seen))
        caught = seen.growth >= asked.limit_mib
        print("the planted leak: " + ("caught" if caught else "not caught"))
        failed += [] if caught else ["the planted leak was missed"]
    return failed


def _row(name: str, calls: int, seen: Soak) -> str:
    return f"| {name} | {calls} | {seen.growth:+.1f} MiB | {seen.slope:+.1f} KiB | {seen.seconds:.0f} |"


def steady(source: str, backend: str, precision: str, calls: int) -> str:
    """Return MiB after the start and after some calls of photographs, or why there is none."""
    flags = ("--model", source, "--backend", backend, "--precision", precision)
    try:
        with serve(*flags) as server:
            before = resident(server.process.pid)
            body = WIRES["embed"].encode("", [photos.jpeg("rocket.jpg")])
            plan = load.Plan(server.target, "embed", [body], callers=8, calls=calls, warm_up_s=0.0)
            load.measure(plan)
            return f"{before / MIB:.0f} / {resident(server.process.pid) / MIB:.0f}"
    except RuntimeError as exc:
        if "cannot run" not in str(exc):
            raise
        return "-"


def models(sources: Sequence[str], calls: int) -> Iterator[str]:
    """Yield the lines of a table: each model on each engine."""
    names = " | ".join(f"{backend} {precision}" for backend, precision in ENGINES)
    yield f"| MiB resident after the start / after {calls} calls | {names} |"
    yield "|---" * (1 + len(ENGINES)) + "|"
    for source in sources:
        cells = [steady(source, backend, precision, calls) for backend, precision in ENGINES]
        yield f"| {source} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--warm-up", type=int, default=8_000, help="calls before the first sample")
    parser.add_argument("--backend", default="openvino", help="of the soaked server")
    parser.add_argument("--limit-mib", type=float, default=10.0)
    parser.add_argument("--leak-bytes", type=int, default=200, help="that the control keeps of every item")
    parser.add_argument("--only", action="append", choices=("soak", "control", "models"))
    parser.add_argument("--models", nargs="+", default=[*MODELS, CLIP])
    parser.add_argument("--model-calls", type=int, default=500)
    asked = parser.parse_args()
    asked.only = asked.only or ["soak", "control", "models"]
    failed = watched(asked) if {"soak", "control"} & set(asked.only) else []
    if "models" in asked.only:
        for line in models(asked.models, asked.model_calls):
            print(line, flush=True)
    print(f"verdict: {'; '.join(failed) or 'nothing grows'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
