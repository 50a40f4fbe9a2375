"""What callers see of a server that is stopped under load: the status of every call, over many stops.

Each stop starts a server of its own, sends calls at a fixed rate over four connections, and sends SIGTERM in
the midst of them. Calls go on until the process has ended, so that some meet the closed port. `--client raw`
is a gRPC channel without retries: OK and UNAVAILABLE are the statuses allowed. `--client sync` and `--client
async` are the SDK's clients with a second server that stays; no call may fail.

    PYTHONPATH=tests python -m bench.stops [--stops 50] [--rate 250] [--frontends 2] [--client raw] [--photo]
"""

from __future__ import annotations

import argparse
import asyncio
import io
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import grpc
from PIL import Image
from support import photos, tiny
from support.servers import serve

from pixvec import AsyncClient, Client, PixvecError
from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.servers import Server

CHANNELS = 4
BEFORE_S, LAME_DUCK_S, AFTER_S = 0.5, 0.2, 0.2
ALLOWED = {"raw": {"OK", "UNAVAILABLE"}, "sync": {"OK"}, "async": {"OK"}}
_WORKERS = 32
_OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


@dataclass(slots=True)
class Tally:
    """Statuses of calls, and the details of those that are not allowed."""

    statuses: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)


def raw_calls(server: Server, rate: float, image: bytes) -> Tally:
    """Stop a server under load from channels without retries, and return what became of every call."""
    request = pb.EmbedRequest(input=pb.Input(image=image))
    channels = [grpc.insecure_channel(server.target, options=_OPTIONS) for _ in range(CHANNELS)]
    stubs = [pb_grpc.EmbeddingServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
    for stub in stubs:
        stub.Embed(request, timeout=20)
    calls = [stubs[i % CHANNELS].Embed.future(request, timeout=20) for i in _until_stopped(server, rate)]
    tally = Tally()
    for call in calls:
        code = call.code().name
        tally.statuses[code] += 1
        if code not in ALLOWED["raw"]:
            tally.odd.append(f"{code}: {call.details()}")
    for channel in channels:
        channel.close()
    return tally


def sync_calls(server: Server, rate: float, image: bytes, other: Server) -> Tally:
    """Stop a server under load from a Client that has another server too."""
    tally = Tally()
    with Client(f"{server.target},{other.target}") as client, ThreadPoolExecutor(_WORKERS) as pool:

        def call() -> None:
            try:
                client.embed(image)
            except PixvecError as error:
                tally.statuses[error.code] += 1
                tally.odd.append(repr(error))
            else:
                tally.statuses["OK"] += 1

        for _ in _until_stopped(server, rate):
            pool.submit(call)
    return tally


def async_calls(server: Server, rate: float, image: bytes, other: Server) -> Tally:
    """Stop a server under load from an AsyncClient that has another server too."""
    tally = Tally()

    async def call(client: AsyncClient) -> None:
        try:
            await client.embed(image)
        except PixvecError as error:
            tally.statuses[error.code] += 1
            tally.odd.append(repr(error))
        else:
            tally.statuses["OK"] += 1

    async def run() -> None:
        async with AsyncClient(f"{server.target},{other.target}") as client, asyncio.TaskGroup() as group:
            steps = _until_stopped(server, rate)
            while await asyncio.to_thread(next, steps, None) is not None:
                group.create_task(call(client))

    asyncio.run(run())
    return tally


def _until_stopped(server: Server, rate: float) -> Iterator[int]:
    """Yield the number of each call when it is due; send SIGTERM on the way."""
    started = time.monotonic()
    index, signalled, until = 0, False, float("inf")
    while (now := time.monotonic()) < until:
        if not signalled and now > started + BEFORE_S:
            signalled = True
            server.process.send_signal(signal.SIGTERM)
        if until == float("inf") and server.process.poll() is not None:
            until = now + AFTER_S
        yield index
        index += 1
        time.sleep(max(0.0, started + index / rate - time.monotonic()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the statuses over all stops; return 1 when one of them is not allowed, or a server failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--rate", type=float, default=250.0)
    parser.add_argument("--frontends", type=int, default=0)
    parser.add_argument("--client", choices=tuple(ALLOWED), default="raw")
    parser.add_argument("--photo", action="store_true", help="a photograph, which may saturate the server")
    options = parser.parse_args(arguments)
    total, codes = Tally(), Counter[int]()
    with TemporaryDirectory() as folder:
        bundle = tiny.write(Path(folder) / "tiny")
        for _ in range(options.stops):
            tally, code = _stop(options, bundle)
            print(f"  {dict(tally.statuses)}", flush=True)
            total.statuses += tally.statuses
            total.odd += tally.odd
            codes[code] += 1
    print(
        f"{options.stops} stops, {options.rate:g} calls/s, {options.client}, {options.frontends} front ends"
    )
    print(f"  calls {total.statuses.total()}: {dict(total.statuses)}; exit codes {dict(codes)}")
    for line, count in Counter(total.odd).most_common(10):
        print(f"  {count} x {line}")
    fine = set(total.statuses) <= ALLOWED[options.client] and set(codes) == {0}
    return 0 if fine else 1


def _stop(options: argparse.Namespace, bundle: Path) -> tuple[Tally, int]:
    flags = ("--model", f"tiny={bundle}", "--frontends", str(options.frontends))
    env = {"PIXVEC_SERVER__LAME_DUCK_S": str(LAME_DUCK_S)}
    image = photos.jpeg("rocket.jpg") if options.photo else _small_image()
    with serve(*flags, env=env) as server:
        if options.client == "raw":
            tally = raw_calls(server, options.rate, image)
        else:
            calls = sync_calls if options.client == "sync" else async_calls
            with serve(*flags) as other:
                tally = calls(server, options.rate, image, other)
        return tally, server.process.wait(30)


def _small_image() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 30)).save(out, "JPEG")
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
