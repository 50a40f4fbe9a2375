"""The socket between a front end and the device process: records of one size each way, and no pickle.

What is large lies in a slot: the input, then in its place the outputs or an error's words. A record says
which slot, and what of it.
"""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from pixvec_server import errors
from pixvec_server.errors import InternalError, Reason, RequestError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

# kind, model, tower, -, slot, deadline in seconds of the monotonic clock, the outputs as bits
ASK = Struct("<BBBxIdQ")
# kind, -, items of the batch if this was its first, slot, bytes in the slot, seconds queued, seconds computed
ANSWER = Struct("<BxHIIff")
WANTED, DROPPED = 1, 2  # kinds of ASK: compute a slot; nobody waits for it any more
VALUES, REFUSAL, FAULT = 1, 2, 3  # kinds of ANSWER: outputs; a RequestError; another failure, in words
TOWERS = ("image", "text")
MOST_OUTPUTS = 64
_CLASSES: dict[Reason, type[RequestError]] = {
    kind.reason: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RequestError) and kind is not RequestError
}


class Link(asyncio.Protocol):
    """One end. What is sent in one turn of the event loop leaves in one write.

    on_records gets what has arrived; on_flush is called before a write; on_lost once, when the other end is
    gone.
    """

    def __init__(
        self,
        incoming: Struct,
        on_records: Callable[[Iterator[tuple[Any, ...]]], None],
        on_lost: Callable[[], None],
        on_flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._incoming = incoming
        self._on_records = on_records
        self._on_lost = on_lost
        self._on_flush = on_flush
        self._rest = b""
        self._outgoing: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    async def open(self, end: socket.socket) -> None:
        """Take a connected socket over."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def send(self, record: bytes) -> None:
        """Send a record with this turn's others; to a lost link, nothing."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(record)

    def close(self) -> None:
        """Close this end."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand over the whole records, and keep the rest of the last one."""
        whole = self._rest + data if self._rest else data
        end = len(whole) - len(whole) % self._incoming.size
        self._rest = whole[end:]
        self._on_records(self._incoming.iter_unpack(memoryview(whole)[:end]))

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        told, self._on_lost = self._on_lost, _nothing
        # Whoever held this end, and the memory that goes with it, is free to go.
        self._on_records, self._on_flush = _nothing, _nothing
        told()

    def _flush(self) -> None:
        self._on_flush()
        if self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()


@lru_cache(1024)
def to_bits(names: tuple[str, ...], known: tuple[str, ...]) -> int:
    """Return names as bits, by their places among those known."""
    return sum(1 << known.index(name) for name in names)


@lru_cache(1024)
def from_bits(bits: int, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of bits, sorted. Raises ValueError for a bit without a name."""
    if bits >> len(known):
        raise ValueError(f"{bits:#x} has bits beyond {len(known)} outputs")
    return tuple(sorted(name for i, name in enumerate(known) if bits >> i & 1))


def _nothing(*_: object) -> None:
    """Do nothing."""


def pack_error(error: RequestError) -> bytes:
    """Return an error as bytes, 8 KiB at most."""
    words = [error.reason.value, error.message, error.field, error.retry_after]
    return json.dumps(words, ensure_ascii=False).encode(errors="replace")


def unpack_error(data: bytes) -> RequestError:
    """Return the error that was packed; of its own kind or, for one unknown, an InternalError."""
    reason, message, field, retry_after = json.loads(data)
    kind = _CLASSES.get(Reason(reason), InternalError)
    return kind(message, field=field, retry_after=retry_after)
