"""Puts a server together from its configuration, runs it, and stops it in order.

Start: listen (NOT_SERVING) → metrics → load and warm up every model → SERVING.
Stop: NOT_SERVING → lame duck → refuse and drain → release models. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

from pixvec_server import __version__, log, provision
from pixvec_server.backends.base import BackendOptions
from pixvec_server.backends.select import choose, factory
from pixvec_server.batching import Admission
from pixvec_server.config import cache_folder, prepare_hub
from pixvec_server.cpu import available_cpus
from pixvec_server.engine import Engine, EngineOptions, Prepared, Residency
from pixvec_server.errors import ConfigError
from pixvec_server.metrics import Metrics
from pixvec_server.pipeline import Pipeline, PipelineLimits
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget
from pixvec_server.rpc.oip import InferenceService
from pixvec_server.rpc.server import GrpcServer, ServerOptions
from pixvec_server.rpc.service import EmbeddingService, ServiceOptions
from pixvec_server.similarity import Comparer

if TYPE_CHECKING:
    from pathlib import Path

    from pixvec_server.backends.base import Backend, Placement
    from pixvec_server.config import Config

_CPU_BATCH, _CUDA_BATCH = 8, 32
_CPU_INSTANCES, _CUDA_INSTANCES = 1, 2
_FORCED = 130
_log = log.get("app")


class App:
    """One server. `run` returns when it has been told to stop and has drained."""

    def __init__(self, config: Config, cache: Path | None = None) -> None:
        self._config = config
        self.metrics = Metrics()
        self._draining = asyncio.Event()
        self._stopping = asyncio.Event()
        prepare_hub(offline=config.model.offline)
        requests = [provision.parse(text, config.models) for text in config.served]
        if len({request.name for request in requests}) < len(requests):
            raise ConfigError(f"model.names = {', '.join(config.served)}: a model is named twice")
        folder = cache_folder() if cache is None else cache
        engines = [_engine(config, request, folder, self.metrics) for request in requests]
        self.pipeline = _pipeline(config, engines, self.metrics)
        self._comparer = Comparer(self.pipeline, max_cells=config.limits.similarity_cells)
        timing = _service_options(config)
        service = EmbeddingService(self.pipeline, self._comparer, config.limits, timing, self._draining)
        options = ServerOptions(config.server, config.limits.request_bytes, __version__)
        inference = InferenceService(self.pipeline, config.limits, timing, self._draining)
        self.grpc = GrpcServer(service, inference, self.metrics, options)

    async def run(self) -> None:
        """Serve until `stop`. Raises SetupError when the server cannot start."""
        self._handle_signals()
        port = await self.grpc.start()
        try:
            metrics_port, close_metrics = self._open_metrics()
            try:
                if await self._load_models():
                    await self.grpc.set_serving()
                    _log.info("serving", port=port, metrics_port=metrics_port, version=__version__)
                    await self._stopping.wait()
                await self._drain()
            finally:
                close_metrics()
        finally:
            await self.grpc.stop(0)
            self.pipeline.close()
            self._comparer.close()

    def stop(self) -> None:
        """Begin to stop; the second call ends the process at once."""
        if self._stopping.is_set():
            _log.warning("told to stop twice: leaving without draining")
            os._exit(_FORCED)
        self._stopping.set()

    async def _load_models(self) -> bool:
        """Load every model, one after the other; False when told to stop meanwhile."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            for engine in self.pipeline.engines.values():
                starting = asyncio.ensure_future(engine.start())
                await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    _log.warning("told to stop while loading", model=engine.name)
                    provision.abandon()
                    os._exit(0)
                starting.result()
                if not engine.manifest.trained:
                    _log.warning("RANDOM WEIGHTS: this model's vectors mean nothing", model=engine.name)
        finally:
            stopping.cancel()
        # What is loaded stays: leave it out of every later collection.
        gc.freeze()
        return not self._stopping.is_set()

    async def _drain(self) -> None:
        server = self._config.server
        _log.info("not serving; lame duck", seconds=server.lame_duck_s)
        await self.grpc.lame_duck(server.lame_duck_s)
        _log.info("draining", seconds=server.drain_s)
        self._draining.set()
        await self.grpc.stop(server.drain_s)
        ended = [await engine.stop() for engine in self.pipeline.engines.values()]
        if not all(ended):
            # A thread inside an engine cannot be ended any other way.
            os._exit(1)
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


def _engine(config: Config, request: provision.Request, cache: Path, metrics: Metrics) -> Engine:
    section, own = config.model, request.settings

    def prepare() -> Prepared:
        bundle = provision.obtain(request, cache)
        stored = bundle.manifest.precision
        return Prepared(bundle, choose(section.backend, section.device, section.precision, stored=stored))

    def load(prepared: Prepared) -> Backend:
        place = prepared.placement
        options = BackendOptions(section.threads or available_cpus(), _instances(config, place))
        return factory(place.kind)(prepared.bundle, place, options)

    idle = section.idle_unload_s if own.idle_unload_s is None else own.idle_unload_s
    residency = Residency((own.load or section.load) == "first_use", idle)
    return Engine(request.name, prepare, load, partial(_engine_options, config), metrics, residency=residency)


def _engine_options(config: Config, placement: Placement) -> EngineOptions:
    automatic = _CPU_BATCH if placement.device == "cpu" else _CUDA_BATCH
    return EngineOptions(
        max_batch=config.batch.max_size or automatic,
        max_delay_s=config.batch.max_delay_ms / 1000,
        instances=_instances(config, placement),
        decode_mode=config.decode.mode,
    )


def _instances(config: Config, placement: Placement) -> int:
    return config.batch.instances or (_CPU_INSTANCES if placement.device == "cpu" else _CUDA_INSTANCES)


def _pipeline(config: Config, engines: list[Engine], metrics: Metrics) -> Pipeline:
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
        DecodeOptions(decode.mode, (colour[0], colour[1], colour[2]), decode.frames),
        PixelBudget(decode.max_pixels_in_hand),
    )
    admission = Admission(max_items=batch.max_queue_items, max_bytes=batch.max_queue_bytes)
    bounds = PipelineLimits(limits.vectors, limits.response_bytes)
    return Pipeline(engines, decoder, admission, bounds, metrics, decode_threads=threads)


def _service_options(config: Config) -> ServiceOptions:
    server = config.server
    return ServiceOptions(
        default_deadline_s=server.default_deadline_s,
        max_deadline_s=server.max_deadline_s,
        send_margin_s=server.send_margin_ms / 1000,
        stream_window=server.stream_window,
        version=__version__,
    )
