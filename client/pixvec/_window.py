"""How many requests are under way: grown until the server has enough to do, halved when it refuses."""

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import sha256

from pixvec.v1 import embedding_pb2 as pb

from ._errors import PixvecError
from ._types import Embedded, Timing

_FIRST, _MOST, _SHARE = 2.0, 64.0, 8
# Of what a run holds: images on their way, and answers remembered for images that come again.
MOST_HELD_BYTES = 32 << 20
_MOST_REMEMBERED_BYTES = 16 << 20
# Besides its numbers, of one remembered answer.
_ANSWER_BYTES = 1024


@dataclass(slots=True)
class Window:
    """The number of requests that a run keeps under way.

    It begins with two. Each answer lets it grow by one, or once the server has refused, by its share of one,
    unless the answer waited in the server's queue for more than half of its time: then more requests would
    only wait longer. A refusal halves it. Beyond the first two it is never more than an eighth of the answers
    so far: what is under way is sent again when the server dies. `fixed`: so many, whatever happens.
    """

    fixed: int | None = None
    _size: float = _FIRST
    _answered: int = 0
    _refused: bool = False

    @property
    def size(self) -> int:
        """Requests that may be under way."""
        return self.fixed or int(min(self._size, _FIRST + self._answered // _SHARE))

    def answered(self, timing: Timing) -> None:
        """Take note of an answer."""
        self._answered += 1
        if timing.queue_ns * 2 <= timing.total_ns:
            self._size = min(_MOST, self._size + (1 / self._size if self._refused else 1))

    def refused(self) -> None:
        """Take note of a refusal."""
        self._size, self._refused = max(1.0, self._size / 2), True


@dataclass(slots=True)
class Box:
    """Where the answer to an input is put, for itself and for the same input come again."""

    key: bytes
    outcome: Embedded | PixvecError | None = None


@dataclass(slots=True)
class Memory:
    """The latest inputs of a run by their content, with a bound on the bytes of their answers."""

    _boxes: OrderedDict[bytes, Box] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def find(self, message: pb.Input) -> tuple[Box, bool]:
        """Return the box of an input, and whether it was there already."""
        key = sha256(message.SerializeToString(deterministic=True)).digest()
        if known := self._boxes.get(key):
            return known, True
        self._boxes[key] = box = Box(key)
        return box, False

    def settle(self, box: Box, outcome: Embedded | PixvecError) -> None:
        """Put an answer into its box; failures are forgotten, and the oldest answers when there are many."""
        box.outcome = outcome
        if isinstance(outcome, PixvecError) or any(e.error is not None for row in outcome for e in row):
            self._boxes.pop(box.key, None)
            return
        self._bytes += _size(outcome)
        while self._bytes > _MOST_REMEMBERED_BYTES:
            oldest = next((key for key, box in self._boxes.items() if box.outcome is not None), None)
            if oldest is None:
                break
            dropped = self._boxes.pop(oldest).outcome
            self._bytes -= _size(dropped) if isinstance(dropped, Embedded) else 0


def _size(answer: Embedded) -> int:
    return _ANSWER_BYTES + sum(e.values.nbytes for row in answer for e in row if e.values is not None)
