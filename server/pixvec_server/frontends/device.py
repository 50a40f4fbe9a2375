"""The device process: one copy of every model, one queue for the items of all front ends."""

from __future__ import annotations

import gc
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server import app, log, provision
from pixvec_server.errors import BackendError, ConfigError, RequestError
from pixvec_server.frontends import link
from pixvec_server.frontends.slots import Arena, Board, slot_bytes
from pixvec_server.metrics import Metrics
from pixvec_server.served import Inference, Work

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterator

    from pixvec_server.config import Config
    from pixvec_server.engine import Engine

_log = log.get("device")


class DeviceProcess:
    """The models. `serve` adds a front end."""

    def __init__(self, config: Config, board_fd: int) -> None:
        self.metrics = Metrics()
        self._engines = app.engines(config, self.metrics, on_state=self._tell)
        self._board = Board(board_fd, len(self._engines))
        self._loaded = False

    async def start(self) -> dict[str, Any]:
        """Load every model; return what front ends must know of them. Raises SetupError."""
        for engine in self._engines:
            await engine.start()
            if len(engine.manifest.outputs) > link.MOST_OUTPUTS:
                raise ConfigError(
                    f"model {engine.name} has over {link.MOST_OUTPUTS} outputs: serve it without front ends"
                )
            if not engine.manifest.trained:
                _log.warning("RANDOM WEIGHTS: this model's vectors mean nothing", model=engine.name)
        # What is loaded stays: leave it out of every later collection.
        gc.freeze()
        self._loaded = True
        return {
            "models": [_place(engine) for engine in self._engines],
            "slot_bytes": max(slot_bytes(engine.manifest) for engine in self._engines),
        }

    async def serve(self, name: str, end: socket.socket, arena: Arena) -> None:
        """Answer a front end until its link is lost."""
        await Peer(name, self._engines, arena, self._tell).open(end)

    async def stop(self) -> None:
        """Answer what is queued and release the models. Raises BackendError when one hangs."""
        if not self._loaded:
            provision.abandon()
            log.leave(0)
        ended = [await engine.stop() for engine in self._engines]
        if not all(ended):
            raise BackendError("a backend hangs")

    def _tell(self) -> None:
        for i, engine in enumerate(self._engines):
            self._board.tell(i, engine.state, engine.queue_s if engine.prepared else 0.0)


class Peer:
    """One front end, as the device process sees it: its slots, and what it waits for."""

    def __init__(self, name: str, engines: list[Engine], arena: Arena, tell: Callable[[], None]) -> None:
        self._name = name
        self._engines = engines
        self._known = [tuple(engine.manifest.outputs) for engine in engines]
        self._inputs = [_inputs(engine, arena) for engine in engines]
        self._arena = arena
        self._tell = tell
        self._works: dict[int, Work] = {}
        self._gone = False
        self._link = link.Link(link.ASK, self._asked, self._lost, on_flush=tell)

    async def open(self, end: socket.socket) -> None:
        """Take the connected socket over."""
        await self._link.open(end)

    def _asked(self, records: Iterator[tuple[Any, ...]]) -> None:
        for kind, model, tower, slot, deadline, bits in records:
            if kind == link.WANTED:
                try:
                    self._submit(model, tower, slot, deadline, bits)
                except RequestError as exc:
                    self._refuse(slot, exc)
            elif slot in self._works:
                self._works[slot].dropped = True
        self._tell()

    def _submit(self, model: int, tower: int, slot: int, deadline: float, bits: int) -> None:
        outputs = link.from_bits(bits, self._known[model])
        work = Work(link.TOWERS[tower], self._inputs[model][tower][slot])
        future = self._engines[model].submit(work, outputs, deadline)
        self._works[slot] = work
        future.add_done_callback(partial(self._done, slot, outputs))

    def _done(self, slot: int, outputs: tuple[str, ...], future: asyncio.Future[Inference]) -> None:
        del self._works[slot]
        if self._gone:
            return
        if future.cancelled():
            self._say(link.FAULT, slot, b"")  # nobody waits for it
            return
        error = future.exception()
        if error is None:
            self._give(slot, outputs, future.result())
        elif isinstance(error, RequestError):
            self._refuse(slot, error)
        else:
            _log.error("a batch failed", frontend=self._name, exc_info=error)
            self._say(link.FAULT, slot, f"{type(error).__name__}: {error}".encode(errors="replace"))

    def _give(self, slot: int, outputs: tuple[str, ...], done: Inference) -> None:
        """Lay the outputs into the slot, where the input was: it is not needed any more."""
        values = [done.values[name].reshape(-1) for name in outputs]
        flat = values[0] if len(values) == 1 else np.concatenate(values)
        self._arena.table(flat.shape, np.float32)[slot] = flat
        self._link.send(
            link.ANSWER.pack(link.VALUES, done.batch, slot, flat.nbytes, done.queue_s, done.compute_s)
        )

    def _refuse(self, slot: int, error: RequestError) -> None:
        self._say(link.REFUSAL, slot, link.pack_error(error))

    def _say(self, kind: int, slot: int, words: bytes) -> None:
        words = words[: self._arena.size]
        self._arena.write(slot, words)
        self._link.send(link.ANSWER.pack(kind, 0, slot, len(words), 0.0, 0.0))

    def _lost(self) -> None:
        """Compute none of what waits, and answer none of what is being computed."""
        self._gone = True
        self._inputs.clear()
        for work in self._works.values():
            work.dropped = True
        _log.info("a front end has left", frontend=self._name, items=len(self._works))


def _place(engine: Engine) -> dict[str, Any]:
    return {"folder": str(engine.folder), "placement": asdict(engine.placement)}


def _inputs(engine: Engine, arena: Arena) -> list[Any]:
    """Return an arena's slots as the inputs of each tower, in the order of TOWERS."""
    size, text = engine.manifest.preprocess, engine.manifest.text
    tables = [arena.table((size.height, size.width, 3), np.uint8)]
    if text is not None:
        tables.append(arena.table((text.tokenizer.context,), np.int64))
    return tables
