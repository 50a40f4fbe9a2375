"""The process that the operator starts: it starts the others, replaces them, gathers metrics, and stops all.

Start: hold the port → metrics → a device process and the front ends (NOT_SERVING) → link them → SERVING.
Stop: front ends drain → the device process ends. A second signal ends all at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from pixvec_server import __version__, log
from pixvec_server.cpu import available_cpus
from pixvec_server.errors import BackendError, ConfigError, SetupError
from pixvec_server.frontends import exposition, ports, slots
from pixvec_server.frontends.children import Backoff, Child
from pixvec_server.frontends.control import pair
from pixvec_server.frontends.merging import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixvec_server.config import Config
    from pixvec_server.frontends.merging import Family

_FORCED = 130
_SCRAPE_S = 2.0
_STOP_S = 15.0  # beyond lame duck and drain; an engine that hangs takes ten of them
_GIVE_UP_S = 5.0
_DEVICE = "device"
_log = log.get("supervisor")


class Supervisor:
    """One server of several processes. `run` returns when all have ended as they were told."""

    def __init__(self, config: Config) -> None:
        if sys.platform != "linux":
            raise ConfigError("server.frontends needs Linux: leave it at 0 here")
        self._config = config
        self._frontends = [f"frontend-{i + 1}" for i in range(config.server.frontends)]
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[int]] = {}
        self._models: dict[str, Any] | None = None  # what the device process said, while it lives
        self._board = -1
        self._listening: set[str] = set()
        self._serving: set[str] = set()
        self._served = False
        self._stopping = asyncio.Event()
        self._ledger = Ledger()
        self._registry = exposition.of_this_process()

    async def run(self) -> None:
        """Serve until `stop`. Raises SetupError when the server cannot start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        server = self._config.server
        with ports.reserve(server.host, server.port) as held:
            self._port = held.getsockname()[1]
            self._metrics_port, close_metrics = self._open_metrics(loop)
            try:
                await self._run()
            finally:
                for child in self._children.values():
                    child.kill()
                await asyncio.to_thread(close_metrics)

    def stop(self) -> None:
        """Begin to stop; the second call ends all processes at once."""
        if self._stopping.is_set():
            _log.warning("told to stop twice: leaving without draining")
            for child in self._children.values():
                child.kill()
            log.leave(_FORCED)
        self._stopping.set()

    async def _run(self) -> None:
        for name in (_DEVICE, *self._frontends):
            self._keepers[name] = asyncio.create_task(self._keep(name))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((stopping, *self._keepers.values()), return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            stopping.cancel()
            await self._give_up()
        server = self._config.server
        fine = await self._end(self._frontends, server.lame_duck_s + server.drain_s + _STOP_S)
        if not (await self._end([_DEVICE], _STOP_S) and fine):
            raise BackendError("not every process ended as it was told: see the log")
        _log.info("stopped")

    async def _give_up(self) -> None:
        """End all, and raise what ended one of them before the server has ever served."""
        [first, *_] = [task for task in self._keepers.values() if task.done()]
        self._stopping.set()
        await self._end(list(self._keepers), _GIVE_UP_S)
        first.result()

    async def _end(self, names: list[str], within_s: float) -> bool:
        """Tell processes to stop; kill those that do not, and tell whether all did."""
        for name in names:
            if name in self._children:
                self._children[name].tell({"do": "stop"})
            else:
                self._keepers[name].cancel()  # between two lives
        waits = [self._keepers[name] for name in names]
        _, slow = await asyncio.wait(waits, timeout=within_s)
        for name in names:
            if self._keepers[name] in slow:
                _log.error("a process does not end: killed", name=name)
                self._children[name].kill()
        codes = await asyncio.gather(*waits, return_exceptions=True)
        return all(code == 0 or isinstance(code, asyncio.CancelledError) for code in codes)

    async def _keep(self, name: str) -> int:
        """Start a process again whenever it ends; return its exit code once the server stops."""
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while True:
            started = loop.time()
            child = await self._spawn(name)
            while (said := await child.hear()) is not None:
                self._heard(child, said)
            code = await child.ended()
            self._gone(name)
            if self._stopping.is_set():
                return code
            if not self._served:
                raise SetupError(child.why or f"{name} ended with {code} before the server could serve")
            wait = backoff.next(loop.time() - started)
            _log.error("a process has ended: replacing it", name=name, code=code, why=child.why, wait_s=wait)
            await asyncio.sleep(wait)

    async def _spawn(self, name: str) -> Child:
        first = {"config": _share(self._config, self._port).model_dump(mode="json")}
        fds = []
        if name == _DEVICE:
            self._board = slots.create("pixvec-board", slots.Board.bytes_for(len(self._config.served)))
            fds = [self._board]
        child = self._children[name] = await Child.spawn(name, first, fds)
        return child

    def _gone(self, name: str) -> None:
        del self._children[name]
        self._ledger.leave(name)
        self._listening.discard(name)
        self._serving.discard(name)
        if name == _DEVICE:
            self._models = None
            os.close(self._board)

    def _heard(self, child: Child, said: dict[str, Any]) -> None:
        if said["say"] == "ready":
            self._models = said
            for name in self._listening:
                self._link(name)
        elif said["say"] == "listening":
            self._listening.add(child.name)
            if self._models is not None:
                self._link(child.name)
        elif said["say"] == "lost":
            self._serving.discard(child.name)
        elif said["say"] == "serving":
            self._serving.add(child.name)
            if len(self._serving) == len(self._frontends):
                self._all_serve()

    def _all_serve(self) -> None:
        self._served = True
        words = {"port": self._port, "metrics_port": self._metrics_port, "version": __version__}
        _log.info("serving", **words, frontends=len(self._frontends))

    def _link(self, name: str) -> None:
        """Give a front end and the device process a socket and slots to share."""
        assert self._models is not None
        size = self._models["slot_bytes"]
        count = slots.slot_count(size, self._config.batch.max_queue_items)
        words = {"do": "link", "frontend": name, "slots": count, "slot_bytes": size}
        arena = slots.create(f"pixvec-{name}", count * size)
        ours, theirs = pair()
        with ours, theirs:
            self._children[_DEVICE].tell(words, (ours.fileno(), arena))
            models = {**words, "models": self._models["models"]}
            self._children[name].tell(models, (theirs.fileno(), arena, self._board))
        os.close(arena)

    def _open_metrics(self, loop: asyncio.AbstractEventLoop) -> tuple[int, Callable[[], None]]:
        server = self._config.server

        def gather() -> list[Family]:
            return asyncio.run_coroutine_threadsafe(self._gather(), loop).result(2 * _SCRAPE_S)

        try:
            return exposition.serve(server.metrics_host, server.metrics_port, gather)
        except OSError as exc:
            raise ConfigError(
                f"cannot serve metrics on {server.metrics_host}:{server.metrics_port}: {exc.strerror}"
            ) from exc

    async def _gather(self) -> list[Family]:
        """Ask every process; one that does not answer is told as it was last."""
        asked = list(self._children.values())
        told = await asyncio.gather(*(child.metrics(_SCRAPE_S) for child in asked))
        for child, families in zip(asked, told, strict=True):
            if families is not None and self._children.get(child.name) is child:
                self._ledger.tell(child.name, families)
        self._ledger.tell("supervisor", exposition.collect(self._registry))
        return self._ledger.merged()


def _share(config: Config, port: int) -> Config:
    """Return a front end's configuration: the port that was had, and its part of what decoding may take."""
    parts, decode = config.server.frontends, config.decode
    share = {
        "threads": decode.threads or max(1, available_cpus() // parts),
        "max_pixels_in_hand": max(1_000_000, decode.max_pixels_in_hand // parts),
    }
    sections = {
        "server": config.server.model_copy(update={"port": port}),
        "decode": decode.model_copy(update=share),
    }
    return config.model_copy(update=sections)
