"""Values kept by key: bounded in bytes, the least recently used out first, each made by one caller at a time.

Pure asyncio, for one event loop. Knows no engine, no numpy and no gRPC.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from pixvec_server.errors import DeadlineError, RequestError
from pixvec_server.types import Pixels, Text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from pixvec_server.types import Content

# What an entry takes beside its value's numbers: key, objects and their places in the tables, measured.
ENTRY_BYTES = 640
V = TypeVar("V")


class _End(enum.Enum):
    """How the making of a value ended without one: by its maker's own clock or caller, or by a failure."""

    LEFT = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class Got(Generic[V]):
    """A value that somebody else made: kept from before, or `joined` while it was being made."""

    value: V
    joined: bool


_Flight: TypeAlias = "asyncio.Future[V | _End]"


class Cache(Generic[V]):
    """Keeps at most `max_bytes`.

    `size` says how many bytes a value's numbers take; None: it is not to be kept. `on_evict` is called for
    every entry that makes room for another.
    """

    def __init__(
        self,
        max_bytes: int,
        size: Callable[[V], int | None],
        on_evict: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._on_evict = on_evict
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self._flights: dict[bytes, _Flight[V]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    async def obtain(
        self,
        keys: Iterable[bytes],
        make: Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, V | RequestError]]],
    ) -> dict[bytes, Got[V]]:
        """Return the values that are kept or that other callers make now; have the rest made by `make`.

        `make` is called with the keys that are left, once for each key at most; what it gives is kept, goes
        to those who wait for it, and is not in the answer. Whatever it raises is raised. Those who wait
        share no failure: when a maker is cancelled or meets its deadline one of them takes over, and when it
        fails in any other way each makes the value for itself.
        """
        found: dict[bytes, Got[V]] = {}
        left, alone = list(dict.fromkeys(keys)), set[bytes]()
        waited = False
        while left:
            mine, theirs = [], {}
            for key in left:
                if (entry := self._entries.get(key)) is not None:
                    self._entries.move_to_end(key)
                    found[key] = Got(entry[0], joined=waited)
                elif key in self._flights and key not in alone:
                    theirs[key] = self._flights[key]
                else:
                    mine.append(key)
            # Never the other way round: two callers would wait for each other's second key.
            if mine:
                await self._lead(mine, make)
            outcomes = {key: await asyncio.shield(flight) for key, flight in theirs.items()}
            found |= {key: Got(v, joined=True) for key, v in outcomes.items() if not isinstance(v, _End)}
            left = [key for key in theirs if key not in found]
            alone |= {key for key in left if outcomes[key] is _End.FAILED}
            waited = True
        return found

    async def _lead(
        self,
        keys: Sequence[bytes],
        make: Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, V | RequestError]]],
    ) -> None:
        loop = asyncio.get_running_loop()
        flights: dict[bytes, _Flight[V]] = {k: loop.create_future() for k in keys if k not in self._flights}
        self._flights |= flights
        made: Mapping[bytes, V | RequestError] = {}
        end = _End.FAILED
        try:
            made = await make(keys)
        except (asyncio.CancelledError, DeadlineError):
            end = _End.LEFT
            raise
        finally:
            for key in keys:
                outcome = made.get(key, end)
                if isinstance(outcome, RequestError):
                    outcome = _End.LEFT if isinstance(outcome, DeadlineError) else _End.FAILED
                elif not isinstance(outcome, _End):
                    self._keep(key, outcome)
                if key in flights:
                    del self._flights[key]
                    flights[key].set_result(outcome)

    def _keep(self, key: bytes, value: V) -> None:
        size = self._size(value)
        if size is None or size + ENTRY_BYTES > self._max_bytes or key in self._entries:
            return
        self._entries[key] = (value, size + ENTRY_BYTES)
        self.bytes += size + ENTRY_BYTES
        while self.bytes > self._max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed
            self._on_evict()


def digest(content: Content) -> bytes:
    """Return SHA-256 of what was sent, as it was sent; files, pixels of each shape and texts stay apart."""
    if isinstance(content, Text):
        kind, data = "text", content.text.encode()
    elif isinstance(content, Pixels):
        kind, data = f"pixels {content.shape}", content.data
    else:
        kind, data = "image", content.data
    sha = hashlib.sha256(f"{kind}\n".encode())
    sha.update(data)
    return sha.digest()


def key(*words: object) -> bytes:
    """Return SHA-256 of words whose `repr` tells them apart."""
    return hashlib.sha256(repr(words).encode()).digest()
