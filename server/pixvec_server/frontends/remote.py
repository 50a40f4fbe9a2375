"""A front end's side of the link: engines that hand their items to the device process."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server.errors import ModelNotReadyError
from pixvec_server.frontends import link
from pixvec_server.frontends.slots import Arena, Board, Slots
from pixvec_server.served import Inference, Served
from pixvec_server.types import State

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from pixvec_server.backends.base import Placement
    from pixvec_server.forms import Form
    from pixvec_server.metrics import Metrics
    from pixvec_server.served import EngineOptions, Work
    from pixvec_server.types import F32, Target

_AGAIN_S = 1.0  # about what a small model takes to come back


class DeviceFaultError(Exception):
    """The device process failed on an item for a reason of ours; its log has it in full."""


@dataclass(slots=True)
class _Asked:
    """One slot under way: who waits, for which outputs, and what the answer is entered into."""

    future: asyncio.Future[Inference]
    engine: RemoteEngine
    outputs: tuple[str, ...]
    view: str


class Device:
    """The device process, as long as it lives. A new one gets a new `Device`."""

    def __init__(self, arena: Arena, board: Board, on_lost: Callable[[], None]) -> None:
        self.board = board
        self._arena = arena
        self._slots = Slots(arena.count)
        self._asked: dict[int, _Asked] = {}
        self._on_lost = on_lost
        self._link = link.Link(link.ANSWER, self._answered, self._lost)
        self.alive = True

    async def open(self, end: socket.socket) -> None:
        """Take the connected socket over."""
        await self._link.open(end)

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    async def ask(
        self, engine: RemoteEngine, work: Work, outputs: tuple[str, ...], deadline: float, view: str
    ) -> Inference:
        """Run an item over there. Raises RequestError, DeviceFaultError, ModelNotReadyError when it dies."""
        slot = await self._slots.take()
        self._arena.table(work.array.shape, work.array.dtype)[slot] = work.array
        asked = _Asked(asyncio.get_running_loop().create_future(), engine, outputs, view)
        self._asked[slot] = asked
        bits = link.to_bits(outputs, engine.known)
        tower = link.TOWERS.index(work.tower)
        self._link.send(link.ASK.pack(link.WANTED, engine.index, tower, slot, deadline, bits))
        try:
            return await asked.future
        except asyncio.CancelledError:
            # The slot comes back with the answer: until then the device may read it.
            if slot in self._asked:
                self._link.send(link.ASK.pack(link.DROPPED, 0, 0, slot, 0.0, 0))
            raise

    def _answered(self, records: Iterator[tuple[Any, ...]]) -> None:
        for kind, batch, slot, length, queue_s, compute_s in records:
            asked = self._asked.pop(slot)
            if kind == link.VALUES:
                asked.engine.count(asked.view, batch, compute_s)
            if not asked.future.done():
                self._settle(asked, kind, slot, length, Inference({}, queue_s, compute_s, batch))
            self._slots.give(slot)

    def _settle(self, asked: _Asked, kind: int, slot: int, length: int, inference: Inference) -> None:
        if kind == link.VALUES:
            inference.values = self._values(asked, slot)
            asked.future.set_result(inference)
        elif kind == link.REFUSAL:
            asked.future.set_exception(link.unpack_error(self._arena.read(slot, length)))
        else:
            words = self._arena.read(slot, length).decode(errors="replace")
            asked.future.set_exception(DeviceFaultError(words))

    def _values(self, asked: _Asked, slot: int) -> dict[str, F32]:
        parts, total = asked.engine.layout(asked.outputs)
        flat = self._arena.table((total,), np.float32)[slot].copy()
        return {name: flat[part].reshape(shape) for name, part, shape in parts}

    def _lost(self) -> None:
        self.alive = False
        error = gone()
        for asked in self._asked.values():
            if not asked.future.done():
                asked.future.set_exception(error)
        self._asked.clear()
        self._slots.fail(error)
        # Now: what the errors' tracebacks hold may live for long.
        self._arena.close()
        self._on_lost()


class RemoteEngine(Served):
    """A served model that the device process runs. `index` is its place in the configuration."""

    def __init__(
        self, index: int, name: str, options: Callable[[Placement], EngineOptions], metrics: Metrics
    ) -> None:
        super().__init__(name, options, metrics)
        self.index = index
        self.known: tuple[str, ...] = ()
        self._device: Device | None = None
        metrics.watch(metrics.inflight_items, name, lambda: self.inflight)
        self.layout = lru_cache(1024)(self._layout)

    def attach(self, device: Device) -> None:
        """Ask this device from now on; the model must be known."""
        self.known = tuple(self.manifest.outputs)
        self.layout.cache_clear()
        self._device = device

    @property
    def state(self) -> State:
        """See `Served.state`; LOADING while there is no device process."""
        device = self._living()
        return State.LOADING if device is None else device.board.state(self.index)

    @property
    def queue_s(self) -> float:
        """See `Served.queue_s`; of all front ends' items together."""
        device = self._living()
        return 0.0 if device is None else device.board.queue_s(self.index)

    def resolve(self, target: Target) -> Form:
        """See `Served.resolve`. Raises ModelNotReadyError while there is no device process."""
        if self.prepared and self._living() is None:
            raise gone()
        return super().resolve(target)

    async def infer(self, work: Work, outputs: Sequence[str], deadline: float, view: str = "") -> Inference:
        """See `Served.infer`."""
        device = self._living()
        if device is None:
            raise gone()
        return await device.ask(self, work, tuple(sorted(set(outputs))), deadline, view)

    def _layout(self, outputs: tuple[str, ...]) -> tuple[list[tuple[str, slice, tuple[int, ...]]], int]:
        """Return where in a slot each output lies and its shape, and how many numbers there are in all."""
        parts, at = [], 0
        for name in outputs:
            shape = self.manifest.outputs[name].shape
            size = math.prod(shape)
            parts.append((name, slice(at, at + size), shape))
            at += size
        return parts, at

    def count(self, view: str, batch: int, compute_s: float) -> None:
        """Enter an item that was computed, and its batch if it was that one's first."""
        done = self.statistics(view)
        done.items += 1
        if batch:
            done.batch(batch, compute_s)

    def _living(self) -> Device | None:
        return self._device if self._device is not None and self._device.alive else None


def gone() -> ModelNotReadyError:
    """Return what callers hear while the device process is away."""
    return ModelNotReadyError("the device is being started: try another replica", retry_after=_AGAIN_S)
