"""Memory that a front end and the device process share: slots of one item each, and a board of what is up.

It is anonymous (memfd): it has no name to leak, is outside /dev/shm and its limit, and is gone with the last
process that maps it. It cannot shrink, so that nobody's read can fault.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server.types import State

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from pixvec_server.manifest import Manifest

_LEAST_BYTES = 8192  # an error's words fit
_MOST_BYTES = 1 << 30  # of one front end's slots, touched only as far as they are used
_FEWEST = 64
_PAGE = mmap.PAGESIZE


def create(name: str, size: int) -> int:
    """Return the file descriptor of `size` new bytes, all 0. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def slot_bytes(manifest: Manifest) -> int:
    """Return the room that an item of a model needs: for its input, and after it for all of its outputs."""
    size = manifest.preprocess
    text = 0 if manifest.text is None else manifest.text.tokenizer.context * 8
    answer = sum(4 * int(np.prod(record.shape)) for record in manifest.outputs.values())
    return -(-max(_LEAST_BYTES, size.height * size.width * 3, text, answer) // _PAGE) * _PAGE


def slot_count(size: int, items: int) -> int:
    """Return how many slots of `size` bytes a front end gets that may have `items` in hand."""
    return min(items, max(_FEWEST, _MOST_BYTES // size))


class Arena:
    """The slots of one front end. Takes the file descriptor over."""

    def __init__(self, fd: int, count: int, size: int) -> None:
        self._memory = mmap.mmap(fd, count * size)
        os.close(fd)
        self.count = count
        self.size = size
        # Looked up for every item. Nothing here holds itself: the last use of the memory frees it.
        self._tables: dict[tuple[tuple[int, ...], Any], NDArray[Any]] = {}

    def table(self, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
        """Return all slots as one array: (count, *shape). Raises ValueError for what no slot holds."""
        found = self._tables.get((shape, kind))
        if found is None:
            found = self._tables[shape, kind] = self._table(shape, kind)
        return found

    def _table(self, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
        inner: NDArray[Any] = np.empty(shape, kind)
        if inner.nbytes > self.size:
            raise ValueError(f"{inner.nbytes} bytes are over a slot's {self.size}")
        strides = (self.size, *inner.strides)
        return np.ndarray((self.count, *shape), kind, buffer=self._memory, strides=strides)

    def close(self) -> None:
        """Give the memory back now. No array of `table` may be in use."""
        self._tables.clear()
        self._memory.close()

    def write(self, slot: int, data: bytes) -> None:
        """Put bytes at the beginning of a slot."""
        at = slot * self.size
        self._memory[at : at + len(data)] = data

    def read(self, slot: int, length: int) -> bytes:
        """Return the first bytes of a slot."""
        at = slot * self.size
        return self._memory[at : at + length]


class Slots:
    """Which slots are free. The last one given back is taken next: its pages are warm."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._waiting: deque[asyncio.Future[int]] = deque()

    @property
    def free(self) -> int:
        """How many may be taken at once."""
        return len(self._free)

    async def take(self) -> int:
        """Return a slot, as soon as there is one; those who wait are served in their order."""
        if self._free:
            return self._free.pop()
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(turn.result())
            raise

    def give(self, slot: int) -> None:
        """Give a slot back."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._free.append(slot)

    def fail(self, error: Exception) -> None:
        """End the waiting of all who wait."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()


class Board:
    """What the device process tells all front ends of each model, by its index. Takes the descriptor over."""

    _ROW = np.dtype([("state", "<u8"), ("queue_s", "<f8")])

    def __init__(self, fd: int, models: int) -> None:
        self._memory = mmap.mmap(fd, self.bytes_for(models))
        os.close(fd)
        rows = np.frombuffer(self._memory, self._ROW, models)
        # One aligned store for each number: a reader sees the old one or the new one.
        self._states, self._queues = rows["state"], rows["queue_s"]

    @classmethod
    def bytes_for(cls, models: int) -> int:
        """Return the size of a board."""
        return models * cls._ROW.itemsize

    def tell(self, model: int, state: State, queue_s: float) -> None:
        """Write what is up with a model."""
        self._states[model] = state.value
        self._queues[model] = queue_s

    def state(self, model: int) -> State:
        """Return a model's state; LOADING before anything was told."""
        told = int(self._states[model])
        return State(told) if told else State.LOADING

    def queue_s(self, model: int) -> float:
        """Return the seconds that a model's queue takes."""
        return float(self._queues[model])
