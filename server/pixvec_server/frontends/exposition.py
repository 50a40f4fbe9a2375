"""From Prometheus' registry to what `merging` merges, and from that to /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    ProcessCollector,
)
from prometheus_client.metrics_core import Metric

from pixvec_server.frontends.merging import Family
from pixvec_server.metrics import LogCollector, serve_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def collect(registry: CollectorRegistry) -> list[Family]:
    """Return what a registry holds now."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            {(s.name, tuple(s.labels.items())): float(s.value) for s in metric.samples},
        )
        for metric in registry.collect()
    ]


def of_this_process() -> CollectorRegistry:
    """Return a registry of this process's own memory, time, garbage collection and dropped log lines."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in (PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    registry.register(LogCollector())
    return registry


class _Gathered:
    """A collector that asks for families when it is scraped."""

    def __init__(self, gather: Callable[[], Iterable[Family]]) -> None:
        self._gather = gather

    def collect(self) -> Iterator[Metric]:
        """Yield what /metrics tells."""
        for family in self._gather():
            metric = Metric(family.name, family.text, family.kind)
            for (name, labels), value in family.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def serve(host: str, port: int, gather: Callable[[], Iterable[Family]]) -> tuple[int, Callable[[], None]]:
    """Serve /metrics from a thread, which calls `gather`. Return the port and a function that stops it.

    Raises OSError when the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(_Gathered(gather))
    return serve_registry(registry, host, port)
