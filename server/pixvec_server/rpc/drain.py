"""How a server that stops parts from its callers: each connection ends once its calls are answered.

No handler is cancelled and gRPC's core has no call left to answer CANCELLED, so that every call ends with its
answer or UNAVAILABLE:

1. New connections are refused. Calls of a connection are accepted until its first quiet moment, when it ends.
2. After a second, new calls are answered UNAVAILABLE, so that busy connections become quiet too.
3. After the grace period the connections that are left end.
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
    from collections.abc import Callable, Sequence

_ACCEPT_S = 1.0  # of a drain
_QUIET_S = 0.005


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
        self._since: Counter[int] = Counter()  # calls accepted while draining
        self._connections: dict[int, Sequence[int]] = {}
        self._draining = self._refusing = False
        self._idle = asyncio.Event()

    def accept(self, context: Context) -> None:
        """Count a call until its status has been sent. Raises DrainingError when it comes too late."""
        peer_port = _peer_port(context.peer())
        # What waited in gRPC's core when its connection ended has nobody to answer.
        if self._refusing or (self._draining and peer_port not in self._connections):
            raise DrainingError("the server is stopping; ask another replica")
        self._calls[peer_port] += 1
        if self._draining:
            self._since[peer_port] += 1
        context.add_done_callback(partial(self._done, peer_port))

    async def run(self, port: int, grace_s: float) -> None:
        """Wait for every accepted call, `grace_s` at most, and end all connections to `port`."""
        self._draining = True
        sockets.close_listeners(port)
        self._connections = dict(sockets.connections(port))
        for peer_port in self._connections.keys() - self._calls.keys():
            self._settle(peer_port)
        accept_s = min(_ACCEPT_S, grace_s)
        await self._wait(accept_s)
        self._refusing = True
        for peer_port in self._connections.keys() - self._calls.keys():
            self._end(peer_port)
        await self._wait(grace_s - accept_s)
        self._connections = dict(sockets.connections(port))
        for peer_port in list(self._connections):
            self._end(peer_port)

    async def _wait(self, seconds: float) -> None:
        if self._calls or self._connections:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    def _done(self, peer_port: int, _context: object) -> None:
        self._calls[peer_port] -= 1
        if self._calls[peer_port]:
            return
        del self._calls[peer_port]
        if self._refusing:
            self._end(peer_port)
        elif self._draining:
            self._settle(peer_port)
        self._check_idle()

    def _settle(self, peer_port: int) -> None:
        """End a connection unless a call comes within a moment: some may wait in gRPC's core."""
        loop = asyncio.get_running_loop()
        due = loop.time() + _QUIET_S
        loop.call_at(due, self._end_if_quiet, peer_port, self._since[peer_port], due)

    def _end_if_quiet(self, peer_port: int, since: int, due: float) -> None:
        if peer_port in self._calls or self._since[peer_port] != since:
            return
        if not self._refusing and asyncio.get_running_loop().time() > due + _QUIET_S:
            self._settle(peer_port)  # a busy event loop has not seen yet what came meanwhile
        else:
            self._end(peer_port)

    def _end(self, peer_port: int) -> None:
        for descriptor in self._connections.pop(peer_port, ()):
            sockets.end_connection(descriptor, peer_port)
        self._check_idle()

    def _check_idle(self) -> None:
        if self._draining and not self._calls and not self._connections:
            self._idle.set()


def _peer_port(peer: str) -> int:
    """Return the port of a peer as gRPC names it, such as `ipv4:192.0.2.1:443`; -1 when it has none."""
    port = peer.rpartition(":")[2]
    return int(port) if port.isdecimal() else -1
