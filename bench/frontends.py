"""What front ends carry and cost: on this CPU's own model, before a device of fixed speed, the link alone.

The CPU time of each process is told apart, so that what one machine costs an image can be reckoned for a
device that is not here. The load generator runs on the same cores.

    PYTHONPATH=tests python -m bench.frontends [--seconds 5] [--only link|device|model]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from support import photos
from support.servers import CACHE, ROOT, Server, serve

from bench import load
from bench.wire import WIRES
from pixvec_server import app, bundle, config
from pixvec_server.backends.base import Placement
from pixvec_server.cpu import available_cpus
from pixvec_server.frontends import slots
from pixvec_server.frontends.children import Child
from pixvec_server.frontends.control import pair
from pixvec_server.frontends.remote import Device, RemoteEngine
from pixvec_server.metrics import Metrics
from pixvec_server.served import Prepared, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.wire import Picture, Protocol

MODEL = "efficientnet_lite0"
WANTED = 10_000  # images a second: about what an H100 computes
BATCH = 32
FAKE = {"PYTHONPATH": str(ROOT), "FAKE_DEVICE_MS": "2,0", "PIXVEC_BATCH__MAX_SIZE": str(BATCH)}
SHAPES: dict[Protocol, tuple[int, int]] = {"embed": (1, 64), "embed_batch": (32, 4), "embed_stream": (8, 8)}


@dataclass(frozen=True, slots=True)
class Costs:
    """Images a second, CPU microseconds of an image by process, and the mean batch."""

    images_s: float
    micros: dict[str, float]
    batch: float

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.0f}" for name, value in sorted(self.micros.items()))
        return f"{self.images_s:7.0f} img/s, batches of {self.batch:4.1f}; CPU us an image: {parts}"


def _cpu_s(server: Server) -> dict[str, float]:
    root = psutil.Process(server.process.pid)
    found = {"server": sum(root.cpu_times()[:2])}
    for child in root.children():
        words = child.cmdline()
        if "pixvec_server.frontends" in words:
            name = words[words.index("pixvec_server.frontends") + 1].partition("-")[0]
            found[name] = found.get(name, 0.0) + sum(child.cpu_times()[:2])
    return found


def _plan(server: Server, protocol: Protocol, pictures: Sequence[Picture], seconds: float) -> load.Plan:
    images, callers = SHAPES[protocol]
    turns = [list(islice(cycle(pictures), i, i + images)) for i in range(len(pictures))]
    bodies = [WIRES[protocol].encode(MODEL, turn) for turn in turns]
    return load.Plan(server.target, protocol, bodies, images, callers, seconds=seconds, warm_up_s=1.0)


def costs(server: Server, protocol: Protocol, pictures: Sequence[Picture], seconds: float) -> Costs:
    """Load a server, and divide what each of its processes used by the images answered."""
    names = ("pixvec_items_total", "pixvec_batch_size_sum", "pixvec_batch_size_count")
    before, cpu = [server.metric(name) for name in names], _cpu_s(server)
    result = load.measure(_plan(server, protocol, pictures, seconds), server.process.pid)
    if result.failed:
        print(f"    {result.errors}")
    images, items, batches = (server.metric(name) - was for name, was in zip(names, before, strict=True))
    spent = {name: (value - cpu[name]) / images * 1e6 for name, value in _cpu_s(server).items()}
    return Costs(result.images_s, spent, items / batches)


def _small(name: str) -> bytes:
    picture = photos.image(name)
    picture.thumbnail((256, 256))
    return photos.encode(picture, "JPEG", quality=90)


def before_a_fixed_device(seconds: float) -> None:
    small = [_small(name) for name in ("rocket.jpg", "coffee.png", "chelsea.png")]
    pixels: list[Picture] = list(np.random.default_rng(1).integers(0, 256, (4, 224, 224, 3), np.uint8))
    print(f"\nA device of 2 ms a batch of {BATCH}; JPEGs of {np.mean(list(map(len, small))) / 1024:.0f} KiB")
    fronts: dict[Protocol, float] = {}
    for count in (0, 1, 2):
        with serve("--frontends", str(count), "--backend", "bench.devices:Fixed", env=FAKE) as server:
            for protocol in SHAPES:
                for kind, pictures in (("pixels", pixels), ("JPEGs", small)):
                    seen = costs(server, protocol, pictures, seconds)
                    print(f"  {count} front ends, {protocol:12} of {kind:6}: {seen}", flush=True)
                    if count and kind == "JPEGs":
                        fronts[protocol] = seen.micros["frontend"]
    for protocol, micros in fronts.items():
        cores = WANTED * micros / 1e6
        print(f"  {WANTED} small JPEGs/s by {protocol:12}: {cores:.1f} cores of front ends")


def on_the_model(seconds: float) -> None:
    pictures = [photos.jpeg(name) for name in ("rocket.jpg", "china.jpg", "flower.jpg", "coffee.png")]
    print("\nThe default model on this CPU, photographs of 640 x 427")
    for count in (0, 1, 2):
        with serve("--frontends", str(count)) as server:
            print(f"  {count} front ends: {costs(server, 'embed', pictures, seconds)}", flush=True)
    part = str(max(1, available_cpus() // 2))
    half = {"PIXVEC_MODEL__THREADS": part, "PIXVEC_DECODE__THREADS": part}
    with ExitStack() as stack:
        pairs = [stack.enter_context(serve(env=half)) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            seen = list(pool.map(lambda one: costs(one, "embed", pictures, seconds), pairs))
    print(f"  2 whole servers, each with half of the threads: {sum(one.images_s for one in seen):.0f} img/s")


async def link_alone(seconds: float) -> None:
    """Play a front end without gRPC and without decoding: 256 items of 150 KB under way at any time."""
    settings = config.load(flags={"model.backend": "bench.devices:Null", "batch.max_size": BATCH}, environ={})
    board = slots.create("board", slots.Board.bytes_for(1))
    child = await Child.spawn("device", {"config": settings.model_dump(mode="json")}, (board,))
    said = await child.hear()
    assert said is not None, "the device process has ended: see its words above"
    size = said["slot_bytes"]
    arena, (ours, theirs) = slots.create("arena", 512 * size), pair()
    words = {"do": "link", "frontend": "bench", "slots": 512, "slot_bytes": size}
    child.tell(words, (theirs.fileno(), arena))
    theirs.close()
    hearing = asyncio.create_task(child.hear())
    device = Device(slots.Arena(arena, 512, size), slots.Board(board, 1), lambda: None)
    engine = RemoteEngine(0, MODEL, partial(app.engine_options, settings), Metrics())
    [model] = said["models"]
    engine.know(Prepared(bundle.open_verified(Path(model["folder"])), Placement(**model["placement"])))
    await device.open(ours)
    engine.attach(device)
    work, done, ends = Work("image", np.ones((224, 224, 3), np.uint8)), 0, time.monotonic() + seconds

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < ends:
            await engine.infer(work, ("embedding",), ends + 10)
            done += 1

    other = next(one for one in psutil.Process().children() if "device" in one.cmdline())
    spent = time.process_time(), sum(other.cpu_times()[:2])
    await asyncio.gather(*(caller() for _ in range(256)))
    here, there = time.process_time() - spent[0], sum(other.cpu_times()[:2]) - spent[1]
    batches = sum(each.count for each in engine.statistics().by_size.values())
    print(f"\nThe link alone: {done / seconds:.0f} items/s in batches of {done / max(1, batches):.1f}")
    print(f"  CPU us an item: front end {here / done * 1e6:.0f}, device process {there / done * 1e6:.0f}")
    hearing.cancel()
    child.kill()
    await child.ended()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", choices=("link", "device", "model"))
    chosen = parser.parse_args()
    os.environ |= {"PYTHONPATH": str(ROOT), "PIXVEC_CACHE": str(CACHE)}
    print(f"{available_cpus()} processors, load {os.getloadavg()[0]:.1f}")
    if chosen.only in {None, "link"}:
        asyncio.run(link_alone(chosen.seconds))
    if chosen.only in {None, "device"}:
        before_a_fixed_device(chosen.seconds)
    if chosen.only in {None, "model"}:
        on_the_model(chosen.seconds)


if __name__ == "__main__":
    main()
