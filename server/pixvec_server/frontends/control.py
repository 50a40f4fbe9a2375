"""The socket between the supervisor and a process of its own: messages as JSON, with file descriptors."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = Struct("<IB")  # bytes of the body, file descriptors that come with it
_CHUNK, _MOST_FDS = 1 << 16, 8


class Control:
    """One end. Both ends are ours; a message is a dict, and its descriptors are the receiver's to close."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[tuple[bytes, Sequence[int]]] = deque()
        self._incoming: asyncio.Queue[tuple[dict[str, Any], list[int]] | None] = asyncio.Queue()
        self._buffer = b""
        self._fds: list[int] = []
        self._loop.add_reader(end, self._read)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors are copied at once and stay the caller's. Nothing, once closed."""
        if self._socket.fileno() < 0:
            return
        body = json.dumps(message).encode()
        first = not self._outgoing
        self._outgoing.append((_HEAD.pack(len(body), len(fds)) + body, [os.dup(fd) for fd in fds]))
        if first:
            self._loop.add_writer(self._socket, self._write)
            self._write()

    async def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next message and its descriptors; None when the other end is gone."""
        return await self._incoming.get()

    def close(self) -> None:
        """Close this end and what was not received."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for fd in [*self._fds, *(fd for _, fds in self._outgoing for fd in fds)]:
            os.close(fd)
        self._fds.clear()
        self._outgoing.clear()
        self._incoming.put_nowait(None)

    def _write(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing.popleft()
            try:
                sent = socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                self._outgoing.appendleft((data, fds))
                return
            except OSError:
                self._outgoing.appendleft((data, fds))
                self.close()
                return
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._outgoing.appendleft((data[sent:], ()))
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _CHUNK, _MOST_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        if not data:
            self.close()
            return
        self._buffer += data
        while (message := self._next()) is not None:
            self._incoming.put_nowait(message)

    def _next(self) -> tuple[dict[str, Any], list[int]] | None:
        if len(self._buffer) < _HEAD.size:
            return None
        length, count = _HEAD.unpack_from(self._buffer)
        end = _HEAD.size + length
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[_HEAD.size : end], self._buffer[end:]
        fds, self._fds = self._fds[:count], self._fds[count:]
        return json.loads(body), fds


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
