"""What CUDA asks of its callers: page-locked memory, batches of few sizes, quiet while a graph is captured.

Only `pinned` needs a device; all else is plain, and tested without one.
"""

from __future__ import annotations

import ctypes
import math
import queue
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np

from pixvec_server.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import DTypeLike, NDArray

    from pixvec_server.types import U8

    Allocate: TypeAlias = Callable[[int], U8]  # bytes to a buffer of at least as many

T = TypeVar("T")
_PORTABLE = 1  # cudaHostAllocPortable: page-locked for every device


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the batch sizes that graphs are captured for: 1, 2, 4 … and `most` itself."""
    return (*(1 << power for power in range((most - 1).bit_length())), most)


def size_for(count: int, sizes: Iterable[int]) -> int | None:
    """Return the smallest size that holds `count` items; None when none does."""
    return min((size for size in sizes if size >= count), default=None)


class Staging:
    """One caller's buffers, by name: reused from batch to batch, enlarged where one is too small."""

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate
        self._held: dict[str, U8] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array over a buffer: whatever it held last, and the caller's until the next call."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or held.nbytes < size:
            held = self._held[name] = self._allocate(1 << max(0, size - 1).bit_length())
        return held[:size].view(dtype).reshape(shape)


def runtime(major: str) -> Any:  # noqa: ANN401 - a C library
    """Load CUDA's runtime of a major version, which the engine's own wheels bring. Raises BackendError."""
    name = f"libcudart.so.{major}"
    try:
        return ctypes.CDLL(name)
    except OSError as exc:
        raise BackendError(f"CUDA's runtime ({name}) is not here: pip install 'pixvec[gpu]'") from exc


def pinned(library: Any, index: int, size: int) -> U8:  # noqa: ANN401 - as above
    """Return `size` bytes of page-locked memory, freed with the last array over it. Raises BackendError."""
    pointer = ctypes.c_void_p()
    # Unsaid, a thread's device is the first one, which would get a context of its own.
    code = library.cudaSetDevice(ctypes.c_int(index)) or library.cudaHostAlloc(
        ctypes.byref(pointer), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE)
    )
    if code or pointer.value is None:
        raise BackendError(f"no {size} bytes of page-locked memory for cuda:{index}: CUDA error {code}")
    memory = (ctypes.c_uint8 * size).from_address(pointer.value)
    weakref.finalize(memory, library.cudaFreeHost, pointer).atexit = False
    return np.frombuffer(memoryview(memory), np.uint8)


class Lanes(Generic[T]):
    """What each caller has to itself for the length of a batch: one lane for each instance."""

    def __init__(self, lanes: Iterable[T]) -> None:
        self.all = list(lanes)
        self._free: queue.SimpleQueue[T] = queue.SimpleQueue()
        for lane in self.all:
            self._free.put(lane)

    @contextmanager
    def take(self) -> Iterator[T]:
        """Wait for a free lane, and give it back at the end."""
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)


class Quiet:
    """Runs together, captures alone: a CUDA call of any other thread breaks the capture of a graph."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._capturing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait out a capture, then run beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold newcomers back, wait for those who run, then have the device alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._capturing = True
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._capturing = False
                self._changed.notify_all()


QUIET = Quiet()  # of the whole process, as the device's is
