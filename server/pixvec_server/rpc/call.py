"""What a call brings beside its message: request id, lane, tenant, deadline."""

from __future__ import annotations

import asyncio
import random
import re
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from pixvec_server.errors import BadOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

LANES = ("interactive", "bulk")
# No secrets: the system's own random bytes cost a call into the kernel, and the interpreter's lock with it.
_ids = random.Random()  # noqa: S311
_PRINTABLE = re.compile(r"^[\x20-\x7e]{1,128}$")


class Context(Protocol):
    """What the service uses of grpc's own context."""

    async def write(self, message: Message) -> None:
        """Send a message of a stream; returns when the transport took it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call's metadata. `deadline`: seconds left at arrival; None when the caller brought none."""

    request_id: str
    method: str
    arrived: float
    deadline: float | None
    lane: str
    tenant: str
    model: str
    attempts: int

    def check(self) -> None:
        """Raise BadOptionError for metadata that cannot be obeyed."""
        if self.lane not in LANES:
            raise BadOptionError(f"{self.lane!r} is neither interactive nor bulk", field="pixvec-priority")

    def until(self, default_s: float, most_s: float) -> float:
        """Return the event loop's time by which the call is answered."""
        return self.arrived + min(default_s if self.deadline is None else self.deadline, most_s)

    def anew(self) -> Call:
        """Return the call as a message of its stream has it: it arrives now, without a deadline."""
        return replace(self, arrived=asyncio.get_running_loop().time(), deadline=None)


current: ContextVar[Call] = ContextVar("call")


def read(method: str, metadata: Mapping[str, str], deadline: float | None) -> Call:
    """Read a call's metadata; a missing or unprintable request id is replaced by one of ours."""
    given = metadata.get("x-request-id", "")
    attempts = metadata.get("grpc-previous-rpc-attempts", "")
    return Call(
        request_id=given if _PRINTABLE.match(given) else f"{_ids.getrandbits(128):032x}",
        method=method,
        arrived=asyncio.get_running_loop().time(),
        deadline=deadline,
        lane=metadata.get("pixvec-priority", "interactive"),
        tenant=metadata.get("pixvec-tenant", ""),
        model=metadata.get("pixvec-model", ""),
        attempts=int(attempts) if attempts.isdecimal() else 0,
    )


def check_route(route: str, model: str, same: Callable[[str, str], bool]) -> None:
    """Raise BadOptionError when metadata routed a call by another model than its message names."""
    if route and not same(route, model):
        raise BadOptionError(
            f"{route!r} contradicts the message's {model!r}: send the same", field="pixvec-model"
        )


def since(started: float) -> float:
    """Return the seconds since a time of the event loop."""
    return asyncio.get_running_loop().time() - started
