"""pixvec beside other servers: the same graphs, pictures and machine, in turns within each round.

Prints a report in Markdown, and writes build/bench/compare.json and docs/images/compare.png, or with --quick
build/bench/quick.png. The machine should do nothing else.

    PYTHONPATH=tests python -m bench.compare [--rounds 3] [--quick] [--systems pixvec,triton]
        [--workloads small,large] [--models efficientnet_lite0] [--precision fp32,bf16] [--seconds 2]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
from support import fidelity
from support.servers import ROOT

from bench import bare, load, picture, report, workloads
from bench.peers import base
from bench.peers.litserve import LitServe
from bench.peers.mosec import Mosec
from bench.peers.pixvec import Pixvec
from bench.peers.triton import Triton
from bench.report import Bare, Load, Report
from bench.wire import WIRES
from pixvec_server.backends.select import computes_bf16

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.bare import Limit
    from bench.peers.base import Model, Running, System
    from bench.workloads import Kind, Workload

MODELS = ("efficientnet_lite0", "resnet50?weights=none", "vit_base_patch16_224?weights=none")
LADDER = (1, 4, 16, 32, 64)  # callers of the small pictures
SHARES = (0.3, 0.6, 0.9)
QUICK: tuple[Kind, ...] = ("small", "large", "batch", "stream")
# All that the models after the first are asked, in the first round; they are slow.
_OTHERS, _OTHER_LADDER = ("pixvec", "triton"), (1, 16)
_BARE_PICTURES: dict[Kind, int] = {"small": 192, "medium": 96, "large": 24, "png": 72, "mixture": 48}
_JSON = ROOT / "build" / "bench" / "compare.json"
_PNG, _QUICK_PNG = ROOT / "docs" / "images" / "compare.png", _JSON.with_name("quick.png")


def systems(precisions: Sequence[str]) -> list[System]:
    """Return every system: as its users run it, then tuned; those that have a choice in each precision."""
    ours: list[System] = [Pixvec(precision) for precision in precisions]
    tuned: list[System] = [Triton("tuned", precision) for precision in precisions]
    return [*ours, Triton(), Mosec(), LitServe(), *tuned, Mosec(precisions[-1])]


@dataclass(slots=True)
class Comparison:
    """A run: what is compared, and what has been seen."""

    asked: argparse.Namespace
    systems: list[System]
    measure: Callable[[load.Plan, int | None], load.Result]
    seen: Report
    limits: dict[tuple[str, str], Limit] = field(default_factory=dict)

    def run(self) -> None:
        """Measure everything, the rounds interleaved, every second one backwards so that drift cancels."""
        models = [base.model(source) for source in self.asked.models]
        with ExitStack() as stack:
            for precision in self.asked.precision if self.asked.bare else ():
                self._tune(models[0], precision, stack)
            for number in range(self.asked.rounds):
                self._bare(models[0], number)
                for system in self.systems[:: 1 if number % 2 == 0 else -1]:
                    self._system(system, models[0], number)
            for model in models[1:]:
                for system in self.systems:
                    if system.name.startswith(_OTHERS):
                        self._briefly(system, model)

    def _tune(self, model: Model, precision: str, stack: ExitStack) -> None:
        say(f"bare loop in {precision}: looking for its best settings")
        pictures = _bytes("small", model, 96)
        limit = stack.enter_context(closing(bare.tuned(model.source, precision, pictures)))
        self.limits[model.name, precision] = limit
        self.seen.parts[precision] = limit.parts
        self.seen.loops[precision] = limit.settings
        say(f"  {limit.settings}: {limit.images_s:.1f}/s, sum of the parts {limit.parts:.1f}/s")

    def _bare(self, model: Model, number: int) -> None:
        for (name, precision), limit in self.limits.items():
            lone = 1e3 / limit.lone_again(_bytes("small", model, 24))
            self.seen.bare.append(Bare(name, precision, "small", number, lone, lone=True))
            for kind in self.asked.workloads:
                if kind in _BARE_PICTURES:
                    pictures = _bytes(kind, model, _BARE_PICTURES[kind])
                    self.seen.bare.append(Bare(name, precision, kind, number, limit.again(pictures)))
                    say(f"round {number + 1}  bare {precision} {kind}: {self.seen.bare[-1].images_s:.1f}/s")

    def _system(self, system: System, model: Model, number: int) -> None:
        with system.start(model) as running:
            if number == 0 and model.source == MODELS[0]:
                self._fidelity(system, model, running)
            for workload in (workloads.WORKLOADS[kind] for kind in self.asked.workloads):
                if _can(system, workload):
                    ladder = self.asked.ladder if workload.name == "small" else (workload.callers,)
                    for callers in ladder:
                        self._load(system, model, running, workload, number, callers=callers)
            if number == self.asked.rounds - 1:
                self._open(system, model, running, number)

    def _briefly(self, system: System, model: Model) -> None:
        with system.start(model) as running:
            for callers in _OTHER_LADDER:
                self._load(system, model, running, workloads.WORKLOADS["small"], 0, callers=callers)

    def _load(
        self,
        system: System,
        model: Model,
        running: Running,
        workload: Workload,
        number: int,
        *,
        callers: int = 0,
        rate: float | None = None,
    ) -> load.Result:
        protocol = workload.protocol or running.protocol
        encode = WIRES[protocol].encode
        pictures = workloads.pictures(workload.name, model)
        if workload.images > 1:
            requests = [encode(model.name, list(islice(cycle(pictures), workload.images)))]
        else:
            requests = [encode(model.name, [one]) for one in pictures]
        plan = load.Plan(
            target=running.target,
            protocol=protocol,
            requests=requests,
            images=workload.images,
            callers=callers,
            rate=rate,
            seconds=self.asked.seconds if rate is None else 3 * self.asked.seconds,
            warm_up_s=0.5,
            seed=number + 1,
        )
        result = self.measure(plan, running.pid)
        row = Load.of(result, system, model.name, workload.name, callers=callers, number=number, rate=rate)
        self.seen.loads.append(row)
        say(f"round {number + 1}  {row}")
        return result

    def _open(self, system: System, model: Model, running: Running, number: int) -> None:
        """Send at shares of the most that this system answered."""
        capacity = self.seen.capacity(model.name, system.name)
        for share in self.asked.shares if capacity else ():
            rate = share * capacity
            self._load(system, model, running, workloads.WORKLOADS["small"], number, rate=rate)

    def _fidelity(self, system: System, model: Model, running: Running) -> None:
        wire = WIRES[running.protocol]
        requests = [wire.encode(model.name, [one]) for one in workloads.fidelity_pictures()]
        answers = load.ask(running.target, running.protocol, requests)
        vectors = np.stack(
            [vector for answer in answers for vector in wire.decode(answer) if vector is not None]
        )
        agreement = fidelity.agreement(self.seen.reference, vectors)
        self.seen.fidelity[system.name] = {
            "overlap_at_10": agreement.overlap_at_10,
            "same_nearest": agreement.same_nearest,
            "least": agreement.least,
        }
        say(f"  {system.name}: {agreement}")


def _bytes(kind: Kind, model: Model, count: int) -> list[bytes]:
    given = [one for one in workloads.pictures(kind, model) if isinstance(one, bytes)]
    return list(islice(cycle(given), count))


def _can(system: System, workload: Workload) -> bool:
    """Tell whether a system takes such requests: only ours has batches and streams, HTTP has files alone."""
    if workload.protocol is not None:
        return isinstance(system, Pixvec)
    return workload.name != "pixels" or isinstance(system, Pixvec | Triton)


def say(words: str) -> None:
    """Tell how far we are."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""

    def words(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window")
    parser.add_argument(
        "--quick", action="store_true", help="one round of few rows and no bare loop: four minutes"
    )
    parser.add_argument("--systems", type=words, help="by the first words of their names")
    parser.add_argument("--workloads", type=words, help=f"default: {','.join(workloads.WORKLOADS)}")
    parser.add_argument("--models", type=words, default=list(MODELS))
    parser.add_argument("--precision", type=words, default=["fp32", *(["bf16"] if computes_bf16() else [])])
    parser.add_argument("--no-bare", dest="bare", action="store_false", help="leave the bare loop out")
    asked = parser.parse_args(arguments)
    asked.ladder, asked.shares = LADDER, SHARES
    if asked.quick:
        asked.rounds, asked.seconds, asked.ladder, asked.shares = 1, 1.0, (1, 8, 32), (0.6,)
        asked.models, asked.bare = asked.models[:1], False
    asked.workloads = asked.workloads or list(QUICK if asked.quick else workloads.WORKLOADS)
    return asked


def main() -> None:
    asked = parse()
    chosen = [
        one
        for one in systems(asked.precision)
        if not asked.systems or any(one.name.startswith(name) for name in asked.systems)
    ]
    for system in chosen:
        say(f"installing {system.name}")
        system.install()
    seen = Report.here(asked.rounds, asked.seconds)
    seen.reference = report.reference(workloads.fidelity_pictures())
    with load.generator() as measure:
        Comparison(asked, chosen, measure, seen).run()
    _JSON.parent.mkdir(parents=True, exist_ok=True)
    _JSON.write_text(json.dumps(seen.record(), indent=1) + "\n")
    print(report.markdown(seen))
    picture.draw(seen, _QUICK_PNG if asked.quick else _PNG)


if __name__ == "__main__":
    main()
