"""Bearer tokens, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from pixvec_server.errors import ConfigError
from pixvec_server.rpc.status import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_OPEN = "/grpc.health.v1.Health/"


class TokenAuth:
    """Any of a file's tokens opens every method; health needs none."""

    def __init__(self, file: Path | None) -> None:
        self._digests = () if file is None else _read(file)

    def check(self, method: str, metadata: Mapping[str, str]) -> None:
        """Raise UnauthenticatedError unless the call may pass."""
        if not self._digests or method.startswith(_OPEN):
            return
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        given = _digest(token.strip())
        # Every token is compared, so that time tells nothing of which one is near.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise UnauthenticatedError(
                "send metadata authorization: Bearer TOKEN, with a token of this server"
            )


def _read(file: Path) -> tuple[bytes, ...]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"server.token_file = {file}: {exc}") from exc
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"server.token_file = {file} holds no token: put one on each line")
    return tuple(_digest(token) for token in tokens)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
