"""How a server that stops parts from its callers: each connection ends once its calls are answered.

No handler is cancelled and gRPC's core has no call left to answer CANCELLED, so that every call ends with its
answer or UNAVAILABLE:

1. New connections are refused, and new calls are answered UNAVAILABLE.
2. A connection ends when the calls that it had before have been answered.
3. After the grace period the other connections end too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from pixvec_server.errors import DrainingError
from pixvec_server.rpc import sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Context(Protocol):
    """What a Drain uses of grpc's own context."""

    def peer(self) -> str:
        """Return the caller's address, such as `ipv4:192.0.2.1:443`."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        """Call this once the status of the call has been sent, or the caller has gone."""


class Drain:
    """Counts the calls in progress by connection; `run` ends the connections."""

    def __init__(self) -> None:
        # By the port of the peer. Two peers may share a port number: their connections then end together.
        self._calls: Counter[int] = Counter()
        self._connections: Mapping[int, Sequence[int]] = {}
        self._draining = False
        self._idle = asyncio.Event()

    def accept(self, context: Context) -> None:
        """Count a call until its status has been sent. Raises DrainingError when the server is stopping."""
        if self._draining:
            raise DrainingError("the server is stopping; ask another replica")
        peer_port = _peer_port(context.peer())
        self._calls[peer_port] += 1
        context.add_done_callback(partial(self._done, peer_port))

    def refuse(self) -> None:
        """Refuse every call from now on."""
        self._draining = True

    async def run(self, port: int, grace_s: float) -> None:
        """Wait for every accepted call, `grace_s` at most, and end all connections to `port`."""
        self.refuse()
        sockets.close_listeners(port)
        self._connections = sockets.connections(port)
        for peer_port in self._connections.keys() - self._calls.keys():
            self._end(peer_port)
        if self._calls:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace_s)
        self._connections = sockets.connections(port)
        for peer_port in self._connections:
            self._end(peer_port)

    def _done(self, peer_port: int, _context: object) -> None:
        self._calls[peer_port] -= 1
        if self._calls[peer_port]:
            return
        del self._calls[peer_port]
        if self._draining:
            self._end(peer_port)
            if not self._calls:
                self._idle.set()

    def _end(self, peer_port: int) -> None:
        for descriptor in self._connections.get(peer_port, ()):
            sockets.end_connection(descriptor, peer_port)


def _peer_port(peer: str) -> int:
    """Return the port of a peer as gRPC names it, such as `ipv4:192.0.2.1:443`; -1 when it has none."""
    port = peer.rpartition(":")[2]
    return int(port) if port.isdecimal() else -1
