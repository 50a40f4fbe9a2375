"""The port that all front ends share, held by the supervisor so that it stays theirs between two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixvec_server.rpc.address import bind

if TYPE_CHECKING:
    import socket


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds the port and never listens; 0 takes any free one.

    Raises ConfigError when the port is in use, by another server of ours too.
    """
    with bind(host, port, shared=False) as alone:
        free = alone.getsockname()[1]
    return bind(host, free, shared=True)
