"""Where the time of a call goes, from the caller's image to the caller's array."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ._types import Timing

_MS = 1e-6
_BAR = 24


@dataclass(frozen=True, slots=True)
class Lap:
    """One call's nanoseconds at the client, and what the server said of its own."""

    read_ns: int
    round_trip_ns: int
    decode_ns: int
    server: Timing


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a call. ns: the median over the calls. where: "client", "network" or "server"."""

    name: str
    where: str
    ns: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What calls one after the other took, by stage; `print` draws it.

    network: round trip less the server's time, so gRPC's own work at both ends is in it. The medians of the
    stages need not add up to `total_ns`, the median of the whole.
    """

    calls: int
    request_bytes: int
    stages: tuple[Stage, ...]
    total_ns: int

    @classmethod
    def of(cls, laps: Sequence[Lap], request_bytes: int) -> "Profile":
        """Return the medians of some laps."""

        def stage(name: str, where: str, ns: Sequence[int]) -> Stage:
            return Stage(name, where, round(median(ns)))

        servers = [lap.server for lap in laps]
        named = [t.decode_ns + t.queue_ns + t.compute_ns for t in servers]
        stages = (
            stage("read the image", "client", [lap.read_ns for lap in laps]),
            stage("network and gRPC", "network", [lap.round_trip_ns - lap.server.total_ns for lap in laps]),
            stage("decode and resize", "server", [t.decode_ns for t in servers]),
            stage("wait for a batch", "server", [t.queue_ns for t in servers]),
            stage("compute", "server", [t.compute_ns for t in servers]),
            stage("the rest", "server", [t.total_ns - ns for t, ns in zip(servers, named, strict=True)]),
            stage("make arrays", "client", [lap.decode_ns for lap in laps]),
        )
        totals = [lap.read_ns + lap.round_trip_ns + lap.decode_ns for lap in laps]
        return cls(len(laps), request_bytes, stages, round(median(totals)))

    def __str__(self) -> str:
        lines = [f"{self.calls} calls of {self.request_bytes} bytes, one after the other; medians"]
        for part in self.stages:
            share = max(0.0, part.ns / self.total_ns)
            bar = "█" * round(share * _BAR)
            lines.append(f"{part.where:8}{part.name:20}{part.ns * _MS:10.2f} ms {share:5.0%}  {bar}".rstrip())
        lines.append(f"{'':8}{'in all':20}{self.total_ns * _MS:10.2f} ms")
        return "\n".join(lines)
