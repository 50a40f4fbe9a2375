"""Which other files an ONNX graph points at, told without onnx: a server has only engines installed.

An engine follows such a pointer anywhere on the disk, so a bundle's own list of files must hold each one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where messages that may hold tensors stand: {message: {field number: message}}; numbers from onnx.proto3.
_HOLDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
_KEY, _VALUE = 1, 2
_KEYS = {"location", "offset", "length", "checksum"}


@dataclass(frozen=True, slots=True)
class External:
    """One tensor's pointer: the file's name as written, and the bytes that are read of it."""

    location: str
    offset: int
    length: int


def externals(graph: bytes) -> list[External]:
    """Return every pointer to another file of a serialised ModelProto.

    Raises ValueError for bytes that are no protobuf message, and for a pointer that is malformed.
    """
    try:
        return list(_walk(graph))
    except DecodeError as exc:
        raise ValueError("not a whole ONNX graph") from exc


def _walk(graph: bytes) -> Iterator[External]:
    waiting = [("Model", graph)]
    while waiting:
        kind, data = waiting.pop()
        fields = UnknownFieldSet(Empty.FromString(data))
        held = [(fields[i].field_number, fields[i].data) for i in range(len(fields))]
        if kind == "Tensor":
            yield from _pointer(held)
            continue
        waiting += [
            (_HOLDS[kind][number], value)
            for number, value in held
            if number in _HOLDS[kind] and isinstance(value, bytes)
        ]


def _pointer(fields: list[tuple[int, object]]) -> Iterator[External]:
    """Read a tensor's fields: it points elsewhere when it says so or when it names a place."""
    says_so = any(number == _DATA_LOCATION and value == _EXTERNAL for number, value in fields)
    found = [_entry(value) for number, value in fields if number == _EXTERNAL_DATA]
    if not says_so and not found:
        return
    entries = dict(found)
    if len(entries) != len(found) or not entries.keys() <= _KEYS:
        raise ValueError(f"a tensor's pointer has the keys {[key for key, _ in found]}")
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    if not (offset.isascii() and offset.isdigit() and length.isascii() and length.isdigit()):
        raise ValueError(f"a tensor's offset {offset!r} or length {length!r} is no number")
    yield External(entries.get("location", ""), int(offset), int(length))


def _entry(data: object) -> tuple[str, str]:
    if not isinstance(data, bytes):
        raise ValueError("a tensor's pointer is malformed")  # noqa: TRY004 - bad data, not a bad type of ours
    fields = UnknownFieldSet(Empty.FromString(data))
    held = {fields[i].field_number: fields[i].data for i in range(len(fields))}
    key, value = held.get(_KEY, b""), held.get(_VALUE, b"")
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        raise ValueError("a tensor's pointer is malformed")  # noqa: TRY004 - as above
    return key.decode(errors="replace"), value.decode(errors="replace")
