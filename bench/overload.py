"""Goodput under overload: what is still answered in time when three times too much is asked.

Calls leave at seeded random times (Poisson), 0.9 to 3 times as many a second as the server's own capacity,
which is measured before by 32 callers; each has a deadline of one second, none is tried again. Goodput is
what of the calls due in the window was answered OK, a second. Two servers: one whose device takes a fixed
time, so that only the server's own work can spoil it, and the default model with photographs.

The generator shares the server's processors: the last column but one takes its CPU time off the clock, as
goodput = answers / (seconds - generator's CPU seconds / processors).

    PYTHONPATH=tests python -m bench.overload [--seconds 10] [--only fixed] [--only model] [--precision fp32]
"""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from support import photos, tiny
from support.servers import ROOT, serve

from bench import load
from bench.wire import WIRES
from bench.workloads import PHOTOGRAPHS
from pixvec_server.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.servers import Server

    from bench.load import Result

FACTORS = (0.9, 1.0, 1.5, 2.0, 3.0)
DEADLINE_S = 1.0
CALLERS = 32
LEAST = 0.9  # of the peak, at the largest factor


@dataclass(frozen=True, slots=True)
class Point:
    """One load. rate: calls asked for a second, over `seconds`."""

    factor: float
    rate: float
    seconds: float
    result: Result

    @property
    def goodput(self) -> float:
        """Calls answered in time, a second."""
        return self.result.requests / self.seconds

    @property
    def alone(self) -> float:
        """The same, with the generator's CPU taken off the clock."""
        return self.result.requests / max(self.seconds * (1 - self.generator), 1e-9)

    @property
    def generator(self) -> float:
        """The generator's share of the processors."""
        return self.result.client_cpu_s / self.result.seconds / available_cpus()

    @property
    def server(self) -> float:
        """The server's share of the processors."""
        return self.result.server_cpu_s / self.result.seconds / available_cpus()


@contextmanager
def fixed(device_ms: str) -> Iterator[tuple[Server, list[bytes]]]:
    """Serve the tiny model on a device that takes a fixed time; small photographs."""
    env = {"PYTHONPATH": str(ROOT), "FAKE_DEVICE_MS": device_ms}
    small = photos.encode(photos.image("rocket.jpg").resize((64, 43)), "JPEG")
    with TemporaryDirectory() as folder:
        model = f"tiny={tiny.write(Path(folder) / 'tiny')}"
        with serve("--model", model, "--backend", "bench.devices:Fixed", env=env) as server:
            yield server, [WIRES["embed"].encode("tiny", [small])]


@contextmanager
def default(precision: str) -> Iterator[tuple[Server, list[bytes]]]:
    """Serve the default model; photographs in turn."""
    bodies = [WIRES["embed"].encode("", [photos.jpeg(name)]) for name in PHOTOGRAPHS]
    with serve("--precision", precision) as server:
        yield server, bodies


def capacity(server: Server, bodies: Sequence[bytes], seconds: float) -> float:
    """Return the calls a second that callers get who wait for their answers."""
    plan = load.Plan(server.target, "embed", bodies, callers=CALLERS, seconds=seconds)
    result = load.measure(plan, server.process.pid)
    if result.failed:
        raise SystemExit(f"calls failed without overload: {dict(result.errors)}")
    return result.images_s


def offer(server: Server, bodies: Sequence[bytes], factor: float, rate: float, seconds: float) -> Point:
    """Ask for so many calls a second."""
    plan = load.Plan(
        server.target,
        "embed",
        bodies,
        rate=rate * factor,
        seconds=seconds,
        warm_up_s=2 * DEADLINE_S,
        timeout_s=DEADLINE_S,
    )
    return Point(factor, rate * factor, seconds, load.measure(plan, server.process.pid))


def run(name: str, server: Server, bodies: Sequence[bytes], seconds: float) -> bool:
    """Measure one server, print its table, and tell whether it holds its goodput."""
    most = capacity(server, bodies, seconds)
    print(f"\n{name}: {most:.1f} calls/s from {CALLERS} callers, {available_cpus()} processors\n")
    points = [offer(server, bodies, factor, most, seconds) for factor in FACTORS]
    peak, alone = (max(values) for values in zip(*((p.goodput, p.alone) for p in points), strict=True))
    print("| asked for | calls/s | goodput/s | of the peak | less the generator's CPU | p99 ms of the OK | "
          "not OK | server's CPU | generator's CPU |")  # fmt: skip
    print("|" + "---|" * 9)
    for point in points:
        errors = ", ".join(f"{code} {count}" for code, count in sorted(point.result.errors.items()))
        cells = (
            f"{point.factor:g} x", f"{point.rate:.0f}", f"{point.goodput:.1f}", f"{point.goodput / peak:.2f}",
            f"{point.alone / alone:.2f}", f"{point.result.p99:.0f}", errors or "-",
            f"{point.server:.0%}", f"{point.generator:.0%}",
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    kept, kept_alone = points[-1].goodput / peak, points[-1].alone / alone
    good = bool(kept >= LEAST)
    print(
        f"verdict, {name}: at {points[-1].factor:g} times its capacity it keeps {kept:.2f} of its peak "
        f"({kept_alone:.2f} less the generator's CPU): {'yes' if good else 'no'}, {LEAST} is wanted",
        flush=True,
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load, after two of warm-up")
    parser.add_argument("--only", action="append", choices=("fixed", "model"))
    parser.add_argument("--precision", default="fp32", help="of the default model")
    parser.add_argument(
        "--device-ms", default="5,8", help="of the fixed device: a batch, and each item of it"
    )
    asked = parser.parse_args()
    servers = {
        "fixed": (f"fixed device, {asked.device_ms} ms", partial(fixed, asked.device_ms)),
        "model": (f"default model, {asked.precision}", partial(default, asked.precision)),
    }
    good = []
    for key in asked.only or servers:
        name, start = servers[key]
        with start() as (server, bodies):
            good.append(run(name, server, bodies, asked.seconds))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
