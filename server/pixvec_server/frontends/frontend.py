"""A front end: the port, decoding and admission, with the models in another process."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvec_server import app, bundle, log
from pixvec_server.backends.base import Placement
from pixvec_server.frontends.remote import Device, RemoteEngine
from pixvec_server.frontends.slots import Arena, Board
from pixvec_server.metrics import Metrics
from pixvec_server.served import Prepared

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pixvec_server.config import Config

_log = log.get("frontend")


class FrontEnd:
    """One front end. It is SERVING while it has a device process."""

    def __init__(self, config: Config, on_lost: Callable[[], None]) -> None:
        self.metrics = Metrics()
        options = partial(app.engine_options, config)
        names = [request.name for request in app.requests(config)]
        self._engines = [RemoteEngine(i, name, options, self.metrics) for i, name in enumerate(names)]
        self._front = app.Front(config, self._engines, self.metrics, shared_port=True)
        self._on_lost = on_lost
        self._device: Device | None = None
        self._serving = self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, NOT_SERVING. Raises ConfigError when the port cannot be had."""
        await self._front.grpc.start()

    async def attach(self, said: dict[str, Any], end: socket.socket, arena: Arena, board_fd: int) -> None:
        """Serve with a device process that has said this. Raises BundleError when a bundle has gone."""
        prepared = await asyncio.to_thread(_open_all, said["models"])
        for engine, ready in zip(self._engines, prepared, strict=True):
            now = ready.bundle.manifest, ready.placement
            if not engine.prepared or (engine.manifest, engine.placement) != now:
                engine.know(ready)
        device = Device(arena, Board(board_fd, len(self._engines)), self._lost)
        await device.open(end)
        self._device = device
        for engine in self._engines:
            engine.attach(device)
        if not self._serving:
            # What is loaded stays: leave it out of every later collection.
            gc.freeze()
        await self._say()

    async def stop(self) -> None:
        """Lame duck and drain, if it has ever served; then close."""
        self._stopping = True
        if self._serving:
            await self._front.drain()
        if self._device is not None:
            self._device.close()
        await self._front.close()

    def _lost(self) -> None:
        if self._stopping:
            return
        _log.error("the device process is gone: not serving")
        task = asyncio.get_running_loop().create_task(self._say())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._on_lost()

    async def _say(self) -> None:
        """Let health tell whether there is a device process."""
        if self._stopping:
            return
        if self._device is not None and self._device.alive:
            self._serving = True
            await self._front.grpc.set_serving()
        else:
            await self._front.grpc.set_not_serving()


def _open_all(models: list[dict[str, Any]]) -> list[Prepared]:
    return [
        Prepared(bundle.open_verified(Path(model["folder"])), Placement(**model["placement"]))
        for model in models
    ]
