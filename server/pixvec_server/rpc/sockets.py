"""The TCP sockets of this process's own gRPC port, found among its open files.

grpc.aio can stop accepting calls only together with `server.stop`, and gRPC's core then answers CANCELLED to
every call that no handler has seen yet. Closing the sockets first leaves the core no such call to answer.
Where a system does not list a process's open files, nothing is found and nothing is closed. A process that
has no descriptor left drains as well: callers that open many connections must not prevent it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_EXHAUSTED = (errno.EMFILE, errno.ENFILE)
_OPEN_FILES = (Path("/proc/self/fd"), Path("/dev/fd"))


def close_listeners(port: int) -> None:
    """Refuse connections to a port from now on; those that the kernel alone has accepted are reset."""
    for descriptor in _sockets():
        with suppress(OSError), _opened(descriptor) as opened:
            if _port(opened.getsockname()) == port and _is_listening(opened):
                _stop_listening(opened, descriptor)


def connections(port: int) -> Mapping[int, Sequence[int]]:
    """Return the descriptors of a port's connections, by the port of their peer."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for descriptor in _sockets():
        with suppress(OSError), _opened(descriptor) as opened:
            if _port(opened.getsockname()) == port and not _is_listening(opened):
                found[_port(opened.getpeername())].append(descriptor)
    return found


def end_connection(descriptor: int, peer_port: int) -> None:
    """Send nothing more over a connection: its peer gets what was written, then the end of the stream.

    peer_port: what it must have; a descriptor may belong to another file by now.
    """
    with suppress(OSError), _opened(descriptor) as opened:
        if _port(opened.getpeername()) == peer_port:
            # Not both ways: the kernel would answer bytes that still come with a reset, which drops answers.
            opened.shutdown(socket.SHUT_WR)


def _stop_listening(opened: socket.socket, descriptor: int) -> None:
    """Replace a listener by a socket that is not connected; without a free descriptor, shut it down.

    Replaced, it makes gRPC log nothing; shut down, a failed accept.
    """
    try:
        idle = socket.socket(opened.family)
    except OSError as exc:
        if exc.errno not in _EXHAUSTED:
            raise
        opened.shutdown(socket.SHUT_RDWR)
        return
    with idle:
        os.dup2(idle.fileno(), descriptor, inheritable=False)


def _sockets() -> Iterator[int]:
    for descriptor in _descriptors():
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                yield descriptor


def _descriptors() -> Iterable[int]:
    """Return the numbers of the open files; without a descriptor to list them by, all below the limit."""
    folder = next((folder for folder in _OPEN_FILES if folder.is_dir()), None)
    try:
        return [int(path.name) for path in folder.iterdir()] if folder else ()
    except OSError as exc:
        if exc.errno not in _EXHAUSTED:
            raise
        return range(os.sysconf("SC_OPEN_MAX"))


@contextmanager
def _opened(descriptor: int) -> Iterator[socket.socket]:
    """Give a socket of its own descriptor, so that its owner may close the other one meanwhile.

    Without a free descriptor it is the owner's.
    """
    own: int | None = None
    try:
        own = os.dup(descriptor)
    except OSError as exc:
        if exc.errno not in _EXHAUSTED:
            raise
    opened = socket.socket(fileno=descriptor if own is None else own)
    try:
        yield opened
    finally:
        if own is None:
            opened.detach()
        else:
            opened.close()


def _port(address: object) -> int:
    """Return the port of an IPv4 or IPv6 address, -1 for any other."""
    return int(address[1]) if isinstance(address, tuple) and len(address) > 1 else -1


def _is_listening(opened: socket.socket) -> bool:
    return bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
