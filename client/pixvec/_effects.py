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
    """One call, ready to be made, or one message of a stream. deadline: in seconds of time.monotonic().

    request: a Message, or bytes that go as they are.
    """

    method: str
    request: Any
    metadata: tuple[tuple[str, str], ...]
    deadline: float
    stream: "Stream | None" = None

    @property
    def size(self) -> int:
        """Bytes of the request on the wire."""
        return self.request.ByteSize() if isinstance(self.request, Message) else len(self.request)

    def kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments of a gRPC callable, the time that is left among them."""
        return {"timeout": max(self.deadline - time.monotonic(), 0.001), "metadata": self.metadata}


class Pending(Protocol):
    """A call under way, sync or async."""

    def cancel(self) -> Any:  # noqa: ANN401 - bool or None, by transport
        """Give it up."""

    def done(self) -> bool:
        """Tell whether it has an outcome."""


class Stream(Protocol):
    """An open stream of calls, sync or async."""

    @property
    def broken(self) -> bool:
        """Whether it can carry nothing more."""

    def close(self) -> None:
        """End it; calls under way are cancelled."""


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
class Open:
    """Open the stream that a call is a message of; the outcome is a Stream."""

    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Read:
    """Turn what the caller calls an image into an Input.

    least: pixels of height and width that the models look at; a smaller picture is never made of a larger.
    """

    image: object
    least: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Broken:
    """What the caller's iterator raised, in place of an item."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Take:
    """Take the next item of the caller's iterator, END after the last, Broken when it raises."""

    iterator: Items


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand one result to the caller."""

    value: Any


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let this many seconds pass."""

    seconds: float


Effect: TypeAlias = Call | Open | Start | Wait | Read | Take | Emit | Sleep
Plan: TypeAlias = Generator[Effect, Any, T]
