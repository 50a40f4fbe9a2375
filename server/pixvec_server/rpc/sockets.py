"""The TCP sockets of this process's own gRPC port, found among its open files.

grpc.aio can stop accepting calls only together with `server.stop`, and gRPC's core then answers CANCELLED to
every call that no handler has seen yet. Closing the sockets first leaves the core no such call to answer.
Where a system does not list a process's open files, nothing is found and nothing is closed.
"""

from __future__ import annotations

import os
import socket
import stat
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_OPEN_FILES = (Path("/proc/self/fd"), Path("/dev/fd"))


def close_listeners(port: int) -> None:
    """Refuse connections to a port from now on; those that the kernel alone has accepted are reset."""
    for descriptor in _sockets():
        with suppress(OSError), _opened(descriptor) as opened:
            if _port(opened.getsockname()) == port and _is_listening(opened):
                # Replaced rather than shut down: gRPC would log a failed accept.
                with socket.socket(opened.family) as idle:
                    os.dup2(idle.fileno(), descriptor, inheritable=False)


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


def _sockets() -> Iterator[int]:
    folder = next((folder for folder in _OPEN_FILES if folder.is_dir()), None)
    for path in folder.iterdir() if folder else ():
        with suppress(OSError):
            descriptor = int(path.name)
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                yield descriptor


def _opened(descriptor: int) -> socket.socket:
    """Return a socket of its own descriptor, so that its owner may close the other one meanwhile."""
    return socket.socket(fileno=os.dup(descriptor))


def _port(address: object) -> int:
    """Return the port of an IPv4 or IPv6 address, -1 for any other."""
    return int(address[1]) if isinstance(address, tuple) and len(address) > 1 else -1


def _is_listening(opened: socket.socket) -> bool:
    return bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
