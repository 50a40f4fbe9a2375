"""How many inputs fit into one request: the server's limits, and this client's own."""

import math
from dataclasses import dataclass, field

import numpy as np

from pixvec.v1 import embedding_pb2 as pb

from ._errors import BadOptionError, PixvecError, TooLargeError
from ._types import Catalog, Limits, Target
from ._window import Box

# The request's own fields, beside its inputs and targets.
_SLACK_BYTES = 4096
# What a vector's numbers are wrapped in, and an input's source: generous.
_WRAPPING_BYTES = 256
# Tag and length before each input.
_TAG_BYTES = 6
_ITEM_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "binary": 1}


@dataclass(frozen=True, slots=True)
class Room:
    """What one request may hold: inputs, bytes, vectors, and bytes of its answer."""

    inputs: int
    request_bytes: int
    vectors: int
    response_bytes: int
    vector_bytes: int
    targets: int

    @property
    def answer_bytes(self) -> int:
        """Bytes of the answer for one region."""
        return self.vector_bytes + _WRAPPING_BYTES * self.targets

    @classmethod
    def of(cls, catalog: Catalog, targets: list[Target], batch_size: int, max_message_bytes: int) -> "Room":
        """Return the room that a server's limits leave, never more than the client's own."""
        limits = catalog.limits
        if batch_size < 1:
            raise BadOptionError(f"batch_size must be at least 1, not {batch_size}")
        return cls(
            inputs=_least(batch_size, limits.inputs),
            request_bytes=_least(max_message_bytes, limits.request_bytes) - _SLACK_BYTES,
            vectors=limits.vectors or np.iinfo(np.int64).max,
            response_bytes=_least(max_message_bytes, limits.response_bytes) - _SLACK_BYTES,
            vector_bytes=sum(vector_bytes(catalog, target) for target in targets),
            targets=len(targets),
        )


@dataclass(slots=True)
class Chunk:
    """The inputs of one request, by the caller's index, each with the box for its answer.

    errors: of inputs that could not be read. copies: inputs that were sent before, with the box of that one.
    """

    room: Room
    inputs: list[pb.Input] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    errors: list[tuple[int, PixvecError]] = field(default_factory=list)
    copies: list[tuple[int, Box]] = field(default_factory=list)
    _request_bytes: int = 0
    _regions: int = 0

    @property
    def items(self) -> int:
        """Inputs, errors and copies together: what the caller passed in."""
        return len(self.inputs) + len(self.errors) + len(self.copies)

    @property
    def answer_bytes(self) -> int:
        """Bytes of the answer to the inputs, about."""
        return self._regions * self.room.answer_bytes

    def full(self) -> bool:
        """Tell whether not even an empty input fits."""
        return self.items >= self.room.inputs

    def fits(self, message: pb.Input) -> bool:
        """Tell whether the input fits beside those that are here; the first always does."""
        if not self.inputs:
            return True
        regions = self._regions + _region_count(message)
        return (
            self._request_bytes + _wire_bytes(message) <= self.room.request_bytes
            and regions * self.room.targets <= self.room.vectors
            and regions * self.room.answer_bytes <= self.room.response_bytes
        )

    def add(self, index: int, message: pb.Input, box: Box) -> None:
        """Take an input in."""
        self.inputs.append(message)
        self.indices.append(index)
        self.boxes.append(box)
        self._request_bytes += _wire_bytes(message)
        self._regions += _region_count(message)


def check_size(message: pb.Input, limits: Limits, max_message_bytes: int) -> None:
    """Raise TooLargeError for an input that no request can hold; the message names limit and size."""
    wire = _wire_bytes(message)
    if limits.image_bytes and wire > limits.image_bytes:
        _check("image", len(message.image), "image_bytes", limits.image_bytes)
        _check("array", len(message.pixels.data), "image_bytes", limits.image_bytes)
    if limits.image_pixels and len(message.pixels.shape) >= 2:
        _check("image", math.prod(message.pixels.shape[:2]), "image_pixels", limits.image_pixels)
    if limits.request_bytes:
        _check("request", wire, "request_bytes", limits.request_bytes)
    _check("request", wire, "max_message_bytes", max_message_bytes)


def _check(what: str, size: int, limit: str, most: int) -> None:
    if size > most:
        owner, unit = ("client" if limit.startswith("max") else "server"), limit.rpartition("_")[2]
        fix = ": send it as an encoded file, or make it smaller" if what == "array" else ""
        raise TooLargeError(f"the {what} has {size} {unit}, the {owner}'s {limit} is {most}{fix}")


def vector_bytes(catalog: Catalog, target: Target) -> int:
    """Return the bytes of one vector of a target, 0 when the server does not list it."""
    shape = vector_shape(catalog, target)
    bits = _ITEM_BITS[target.encoding or "float32"]
    return math.prod(shape) * bits // 8 if shape else 0


def vector_shape(catalog: Catalog, target: Target) -> tuple[int, ...] | None:
    """Return the shape of one vector of a target, None when the server does not list it."""
    output = catalog.output(target)
    if output is None:
        return None
    return (target.dimensions,) if target.dimensions else output.shape


def _wire_bytes(message: pb.Input) -> int:
    return message.ByteSize() + _TAG_BYTES


def _region_count(message: pb.Input) -> int:
    return max(1, len(message.regions))


def _least(own: int, stated: int) -> int:
    return min(own, stated) if stated else own
