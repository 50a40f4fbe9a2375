"""The server's Prometheus metrics, as one typed class. Base units; never a label by tenant."""

from __future__ import annotations

import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Generic, Literal, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily

from pixvec_server import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# From a cached header check (1 ms) to a deadline's end; steps of about 2 show a p99 within a factor of 1.5.
SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
_M = TypeVar("_M", Counter, Histogram)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Family(Generic[_M]):
    """A metric whose children are remembered: the library's own look-up costs more than the counting."""

    def __init__(self, metric: _M) -> None:
        self._metric = metric
        self._children: dict[tuple[str, ...], _M] = {}

    def labels(self, *values: str) -> _M:
        """Return the child with these values of the labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


class LogCollector:
    """Reads how many log lines this process has dropped."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield `pixvec_log_dropped_total`."""
        family = CounterMetricFamily(
            "pixvec_log_dropped", "Log lines that were not written, by reason.", labels=["reason"]
        )
        for reason, count in log.dropped().items():
            family.add_metric([reason], count)
        yield family


class Metrics:
    """One registry for one server, so that tests may run several in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        for collector in (PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)
        self.registry.register(LogCollector())
        self.requests = self._counter(
            "requests", "Calls ended, by gRPC method and status code.", "method", "code"
        )
        self.lanes = self._counter(
            "lane_requests", "Calls by the lane that their metadata asked for.", "lane"
        )
        self.retries = Counter(
            "pixvec_retry_attempts", "Earlier attempts that arriving calls report.", registry=self.registry
        )
        self.items = self._counter(
            "items", "Vectors answered (ok) or refused, by reason.", "model", "outcome"
        )
        self.decodes = Counter(
            "pixvec_decodes", "Images decoded; one serves every region and model.", registry=self.registry
        )
        self.cache_hits = self._counter("cache_hits", "Outputs that were kept from before.", "model")
        self.cache_joins = self._counter(
            "cache_joins", "Outputs that another request was making, and that were waited for.", "model"
        )
        self.cache_misses = self._counter("cache_misses", "Outputs that were not kept.", "model")
        self.cache_evictions = Counter(
            "pixvec_cache_evictions", "Outputs that made room for others.", registry=self.registry
        )
        self.cache_bytes = self._plain_gauge("cache_bytes", "Bytes of the outputs that are kept.")
        self.cache_entries = self._plain_gauge("cache_entries", "Outputs that are kept.")
        self.request_seconds = self._histogram("request_seconds", "A call, from arrival to answer.")
        self.decode_seconds = self._histogram("decode_seconds", "Decoding and resizing one input.")
        self.queue_seconds = self._histogram("queue_seconds", "One item's wait for its batch to start.")
        self.compute_seconds = self._histogram("compute_seconds", "One batch on the device.")
        self.batch_size = self._histogram("batch_size", "Items of one batch.", SIZES)
        self.queue_items = self._gauge("queue_items", "Items that wait for a batch.")
        self.inflight_items = self._gauge("inflight_items", "Items admitted and not yet answered.")
        self.model_loaded = self._gauge("model_loaded", "1 while the model is in memory and warm.")
        self.model_info = Info(
            "pixvec_model", "What is served, on what, and in which space.", ["model"], registry=self.registry
        )

    def watch(self, gauge: Gauge, model: str, read: Callable[[], float]) -> None:
        """Let a gauge read its value when it is scraped."""
        gauge.labels(model).set_function(read)

    def looked_up(self, how: Literal["hit", "join", "miss"], models: Iterable[str]) -> None:
        """Count outputs that were looked for in the cache."""
        counter = {"hit": self.cache_hits, "join": self.cache_joins, "miss": self.cache_misses}[how]
        for model in models:
            counter.labels(model).inc()

    def serve(self, host: str, port: int) -> tuple[int, Callable[[], None]]:
        """Serve /metrics from a thread of its own. Return the bound port and a function that stops it."""
        return serve_registry(self.registry, host, port)

    def _counter(self, name: str, text: str, *labels: str) -> Family[Counter]:
        return Family(Counter(f"pixvec_{name}", text, labels, registry=self.registry))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Family[Histogram]:
        return Family(Histogram(f"pixvec_{name}", text, ["model"], registry=self.registry, buckets=buckets))

    def _plain_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"pixvec_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"pixvec_{name}", text, ["model"], registry=self.registry)


class _Server(ThreadingMixIn, WSGIServer):
    """The standard library's server, which would look the host's name up when it binds."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without a DNS query: the name is for CGI's SERVER_NAME, and nobody reads it."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, _format: str, *_args: object) -> None:
        """Leave the line for each scrape out."""


def serve_registry(registry: CollectorRegistry, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve a registry's /metrics from a thread. Return the bound port and a function that stops it.

    Raises OSError when the port cannot be had.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind = _Server6 if family == socket.AF_INET6 else _Server
    httpd = make_server(str(address[0]), port, make_wsgi_app(registry), kind, _Handler)
    thread = threading.Thread(target=httpd.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

    return httpd.server_port, stop
