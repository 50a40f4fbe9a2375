"""What a plan may ask of the driver that runs it.

A plan is a generator: it yields an effect, is sent the outcome or thrown a PixvecError, and at last
returns its answer.
"""

import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")
Items: TypeAlias = Iterator[object] | AsyncIterator[object]
END: Any = object()


@dataclass(frozen=True, slots=True)
class Rpc:
    """One call, ready to be made. deadline: in seconds of time.monotonic()."""

    method: str
    request: Message | bytes
    metadata: tuple[tuple[str, str], ...]
    deadline: float

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of a gRPC callable, the time that is left among them."""
        return {"timeout": max(self.deadline - time.monotonic(), 0.001), "metadata": self.metadata}


class Pending(Protocol):
    """A call under way, sync or async."""

    def cancel(self) -> Any:  # noqa: ANN401 - bool or None, by transport
        """Give it up."""


@dataclass(frozen=True, slots=True)
class Call:
    """Make a call and wait for its response."""

    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a call; the outcome is a Pending."""

    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the response of a call under way."""

    pending: Pending


@dataclass(frozen=True, slots=True)
class Read:
    """Turn what the caller calls an image into an Input."""

    image: object


@dataclass(frozen=True, slots=True)
class Take:
    """Take the next item of the caller's iterator, END after the last."""

    iterator: Items


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand one result to the caller."""

    value: Any


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let this many seconds pass."""

    seconds: float


Effect: TypeAlias = Call | Start | Wait | Read | Take | Emit | Sleep
Plan: TypeAlias = Generator[Effect, Any, T]
