"""Whether an ONNX graph points at other files, told without onnx: a server has only engines installed.

An engine may follow such a pointer anywhere on the disk, so a bundle's graph must have none.
"""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

# Where messages that may hold tensors stand: {message: {field number: message}}; numbers from onnx.proto3.
_HOLDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1


def names_other_files(graph: bytes) -> bool:
    """Tell whether any tensor of a serialised ModelProto is kept outside of it.

    Raises google.protobuf.message.DecodeError for bytes that are no protobuf message.
    """
    waiting = [("Model", graph)]
    while waiting:
        kind, data = waiting.pop()
        fields = UnknownFieldSet(Empty.FromString(data))
        for field in (fields[i] for i in range(len(fields))):
            if kind == "Tensor":
                external = field.field_number == _DATA_LOCATION and field.data == _EXTERNAL
                if external or field.field_number == _EXTERNAL_DATA:
                    return True
            elif field.field_number in _HOLDS[kind] and isinstance(field.data, bytes):
                waiting.append((_HOLDS[kind][field.field_number], field.data))
    return False
