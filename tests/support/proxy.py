"""A TCP proxy on loopback that counts what passes, changes its upstream and can fall silent."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 1 << 16


class Proxy:
    """Forwards every connection to `upstream`, a port of this machine.

    sent: bytes from callers that were handed on. silent: connections stay open and nothing passes, as with a
    peer that has vanished.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.sent = 0
        self.connections = 0
        self.silent = threading.Event()
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def target(self) -> str:
        """Address that callers use."""
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        """Close every connection and listen no more."""
        self._ended.set()
        for sock in (self._listener, *self._sockets):
            _close(sock)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                far = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            # What was silenced stays so: a vanished peer does not come back on the same connection.
            deaf = threading.Event()
            threading.Thread(target=self._copy, args=(near, far, deaf, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, deaf, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, deaf: threading.Event, count: bool) -> None:
        with suppress(OSError):
            while block := source.recv(_BLOCK):
                if self.silent.is_set():
                    deaf.set()
                if deaf.is_set():
                    continue
                if count:
                    self.sent += len(block)
                sink.sendall(block)
        if not deaf.is_set():
            _close(sink)
            _close(source)


@contextmanager
def proxy(upstream: int) -> Iterator[Proxy]:
    """Run a proxy until the block ends."""
    made = Proxy(upstream)
    try:
        yield made
    finally:
        made.close()


def _close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
