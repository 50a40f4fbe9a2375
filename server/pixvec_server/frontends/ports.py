"""The port that all front ends share, held by the supervisor so that it stays theirs between two of them."""

from __future__ import annotations

import socket

from pixvec_server.errors import ConfigError


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds the port and never listens; 0 takes any free one.

    Raises ConfigError when the port is in use, by another server of ours too.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with _bound(family, kind, address, shared=False) as alone:
            free = alone.getsockname()[1]
        return _bound(family, kind, (address[0], free, *address[2:]), shared=True)
    except OSError as exc:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigError(
            f"cannot listen on {where}: the port is in use, or the address is none of this machine's"
        ) from exc


def _bound(
    family: socket.AddressFamily, kind: socket.SocketKind, address: object, *, shared: bool
) -> socket.socket:
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)  # type: ignore[arg-type] # as getaddrinfo gave it
    except OSError:
        made.close()
        raise
    return made
