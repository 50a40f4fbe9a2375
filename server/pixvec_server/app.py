"""Puts a server together from its configuration, runs it, and stops it in order.

Start: listen (NOT_SERVING) → metrics → load and warm up every model → SERVING.
Stop: NOT_SERVING → lame duck → refuse and drain → release models. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pixvec_server import __version__, log, provision, tuned
from pixvec_server.backends.base import BackendOptions
from pixvec_server.backends.select import accelerated, factory, has_lone
from pixvec_server.batching import Admission
from pixvec_server.cache import Cache
from pixvec_server.config import cache_folder, prepare_hub, prepare_tensorrt
from pixvec_server.cpu import available_cpus, processor
from pixvec_server.engine import Engine, Residency
from pixvec_server.errors import ConfigError
from pixvec_server.inference import Inferrer, Kept, kept_bytes
from pixvec_server.metrics import Metrics
from pixvec_server.pipeline import Pipeline, PipelineLimits
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, nvjpeg, turbo
from pixvec_server.rpc.oip import InferenceService
from pixvec_server.rpc.server import GrpcServer, ServerOptions
from pixvec_server.rpc.service import EmbeddingService, ServiceOptions
from pixvec_server.served import EngineOptions, Prepared
from pixvec_server.similarity import Comparer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pixvec_server.backends.base import Backend, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.config import Config
    from pixvec_server.served import Served

_CPU_BATCH, _CUDA_BATCH = 8, 32
_CPU_INSTANCES, _CUDA_INSTANCES, _MOST_INSTANCES = 1, 2, 4
_AHEAD = {"openvino": 2}
_ON_DEVICE = "exact-nvjpeg"  # how `build` names it
_FORCED = 130
_log = log.get("app")


class Front:
    """What callers reach: the port, the services behind it, and the pipeline behind those."""

    def __init__(
        self, config: Config, engines: Sequence[Served], metrics: Metrics, *, shared_port: bool = False
    ) -> None:
        self._section = config.server
        self._draining = asyncio.Event()
        self.pipeline = _pipeline(config, engines, metrics)
        self._comparer = Comparer(self.pipeline, max_cells=config.limits.similarity_cells)
        timing = _service_options(config)
        service = EmbeddingService(self.pipeline, self._comparer, config.limits, timing, self._draining)
        options = ServerOptions(config.server, config.limits.request_bytes, __version__, shared_port)
        inference = InferenceService(self.pipeline, config.limits, timing, self._draining)
        self.grpc = GrpcServer(service, inference, metrics, options)

    async def drain(self) -> None:
        """Say NOT_SERVING and keep serving; then refuse, and let what is in hand end."""
        _log.info("not serving; lame duck", seconds=self._section.lame_duck_s)
        await self.grpc.lame_duck(self._section.lame_duck_s)
        _log.info("draining", seconds=self._section.drain_s)
        self._draining.set()
        await self.grpc.stop(self._section.drain_s)

    async def close(self) -> None:
        """Stop at once, and let the threads end when they are done."""
        await self.grpc.stop(0)
        self.pipeline.close()
        self._comparer.close()


class App:
    """One server. `run` returns when it has been told to stop and has drained."""

    def __init__(self, config: Config, cache: Path | None = None) -> None:
        self._config = config
        self.metrics = Metrics()
        self._stopping = asyncio.Event()
        self._engines = engines(config, self.metrics, cache)
        self._front = Front(config, self._engines, self.metrics)

    async def run(self) -> None:
        """Serve until `stop`. Raises SetupError when the server cannot start."""
        self._handle_signals()
        port = await self._front.grpc.start()
        try:
            metrics_port, close_metrics = self._open_metrics()
            try:
                if await self._load_models():
                    await self._front.grpc.set_serving()
                    _log.info("serving", port=port, metrics_port=metrics_port, version=__version__)
                    await self._stopping.wait()
                await self._drain()
            finally:
                close_metrics()
        finally:
            await self._front.close()

    def stop(self) -> None:
        """Begin to stop; the second call ends the process at once."""
        if self._stopping.is_set():
            _log.warning("told to stop twice: leaving without draining")
            log.leave(_FORCED)
        self._stopping.set()

    async def _load_models(self) -> bool:
        """Load every model, one after the other; False when told to stop meanwhile."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            for engine in self._engines:
                starting = asyncio.ensure_future(engine.start())
                await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    _log.warning("told to stop while loading", model=engine.name)
                    provision.abandon()
                    log.leave(0)
                starting.result()
                if not engine.manifest.trained:
                    _log.warning("RANDOM WEIGHTS: this model's vectors mean nothing", model=engine.name)
        finally:
            stopping.cancel()
        # What is loaded stays: leave it out of every later collection.
        gc.freeze()
        return not self._stopping.is_set()

    async def _drain(self) -> None:
        await self._front.drain()
        ended = [await engine.stop() for engine in self._engines]
        if not all(ended):
            # A thread inside an engine cannot be ended any other way.
            log.leave(1)
        _log.info("stopped")

    def _open_metrics(self) -> tuple[int, partial[None]]:
        server = self._config.server
        try:
            port, close = self.metrics.serve(server.metrics_host, server.metrics_port)
        except OSError as exc:
            raise ConfigError(
                f"cannot serve metrics on {server.metrics_host}:{server.metrics_port}: {exc.strerror}"
            ) from exc
        return port, partial(close)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)


def requests(config: Config) -> list[provision.Request]:
    """Return the models to serve. Raises ConfigError or CatalogError before anything is loaded."""
    prepare_hub(offline=config.model.offline)
    wanted = [provision.parse(text, config.models) for text in config.served]
    if len({request.name for request in wanted}) < len(wanted):
        raise ConfigError(f"model.names = {', '.join(config.served)}: a model is named twice")
    return wanted


def engines(
    config: Config,
    metrics: Metrics,
    cache: Path | None = None,
    on_state: Callable[[], None] = lambda: None,
) -> list[Engine]:
    """Return an engine for each model, none of them started. Raises what `requests` raises."""
    folder = cache_folder() if cache is None else cache
    return [_engine(config, request, folder, metrics, on_state) for request in requests(config)]


def _engine(
    config: Config,
    request: provision.Request,
    cache: Path,
    metrics: Metrics,
    on_state: Callable[[], None],
) -> Engine:
    section, own = config.model, request.settings

    def prepare() -> Prepared:
        bundle = provision.obtain(request, cache)
        if section.tensorrt:
            prepare_tensorrt()
        place = _spread(config, tuned.place(config, bundle, cache), bundle)
        if place.emulated:
            _log.warning(
                "bf16 is emulated on this processor: it is slower than fp32",
                model=request.name,
                processor=processor().name,
                alternatives="precision fp32, a processor with bf16, or device cuda",
            )
        return Prepared(bundle, accelerated(place, cuda_graph=section.cuda_graph, tensorrt=section.tensorrt))

    def load(prepared: Prepared, instances: int) -> Backend:
        place = prepared.placement
        options = BackendOptions(
            threads=section.threads or available_cpus(),
            instances=instances,
            max_batch=_max_batch(config, place),
            cuda_graph=section.cuda_graph,
            engines=cache / "tensorrt",
        )
        return factory(place.kind)(prepared.bundle, place, options)

    idle = section.idle_unload_s if own.idle_unload_s is None else own.idle_unload_s
    residency = Residency((own.load or section.load) == "first_use", idle)
    batching = partial(engine_options, config)
    return Engine(request.name, prepare, load, batching, metrics, residency=residency, on_state=on_state)


def _spread(config: Config, place: Placement, bundle: Bundle) -> Placement:
    """Settle how many batches share a CPU: each thread by itself is best, but for who calls alone.

    So whoever is alone gets a second engine, on all processors; not where it would take too much memory.
    OpenVINO keeps batches that wait for a thread, and is given as many again.
    """
    if not has_lone(place, bundle.manifest):
        return place
    automatic = min(config.model.threads or available_cpus(), _MOST_INSTANCES) * _AHEAD.get(place.kind, 1)
    instances = config.batch.instances or place.instances or automatic
    return replace(place, instances=instances, lone=instances > 1)


def engine_options(config: Config, placement: Placement) -> EngineOptions:
    """Return how a model batches where it was placed."""
    return EngineOptions(
        max_batch=_max_batch(config, placement),
        max_delay_s=config.batch.max_delay_ms / 1000,
        instances=_instances(config, placement),
        decode_mode=_decode_mode(config),
    )


def _decode_mode(config: Config) -> str:
    """Return what `build` records of decoding: the JPEG mode or device, and a conversion of colors."""
    mode = config.decode.mode if config.decode.device == "cpu" else _ON_DEVICE
    return mode if config.decode.color == "ignore" else f"{mode}-{config.decode.color}"


def _max_batch(config: Config, placement: Placement) -> int:
    automatic = _CPU_BATCH if placement.device == "cpu" else _CUDA_BATCH
    return config.batch.max_size or placement.max_batch or automatic


def _instances(config: Config, placement: Placement) -> int:
    automatic = _CPU_INSTANCES if placement.device == "cpu" else _CUDA_INSTANCES
    return config.batch.instances or placement.instances or automatic


def _pipeline(config: Config, engines: Sequence[Served], metrics: Metrics) -> Pipeline:
    limits, decode, batch = config.limits, config.decode, config.batch
    threads = decode.threads or available_cpus()
    colour = bytes.fromhex(decode.background[1:])
    decoder = Decoder(
        ImageLimits(
            formats=limits.formats,
            image_bytes=limits.image_bytes,
            pixels=limits.image_pixels,
            side=limits.image_side,
            aspect=limits.image_aspect,
            frames=limits.frames,
        ),
        DecodeOptions(decode.mode, (colour[0], colour[1], colour[2]), decode.frames, decode.color),
        PixelBudget(decode.max_pixels_in_hand),
        turbo if decode.device == "cpu" else nvjpeg.on_device(decode.device, turbo),
    )
    admission = Admission(max_items=batch.max_queue_items, max_bytes=batch.max_queue_bytes)
    bounds = PipelineLimits(limits.vectors, limits.response_bytes)
    kept = _cache(config.cache.max_bytes, metrics) if config.cache.max_bytes else None
    inferrer = Inferrer(decoder, metrics, decode_threads=threads, kept=kept)
    return Pipeline(engines, inferrer, admission, bounds, metrics)


def _cache(max_bytes: int, metrics: Metrics) -> Cache[Kept]:
    cache = Cache(max_bytes, kept_bytes, metrics.cache_evictions.inc)
    metrics.cache_bytes.set_function(lambda: cache.bytes)
    metrics.cache_entries.set_function(lambda: len(cache))
    return cache


def _service_options(config: Config) -> ServiceOptions:
    server = config.server
    return ServiceOptions(
        default_deadline_s=server.default_deadline_s,
        max_deadline_s=server.max_deadline_s,
        send_margin_s=server.send_margin_ms / 1000,
        stream_window=server.stream_window,
        version=__version__,
    )
