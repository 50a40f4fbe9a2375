"""Binds the gRPC port with plain sockets: gRPC itself does not tell why it cannot, and logs it twice."""

from __future__ import annotations

import socket

from pixvec_server.errors import ConfigError


def check_address(host: str, port: int) -> None:
    """Raise ConfigError with the system's reason when nothing can listen on host and port."""
    bind(host, port, shared=False).close()


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """Return a socket that holds the port and does not listen; 0 takes any free one.

    shared: other sockets that are shared may hold the port too. Raises ConfigError.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except (OSError, UnicodeError) as exc:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            f"cannot listen on {where}: {reason}: choose another server.host or server.port"
        ) from exc
    return made
