"""What reflection shows: our descriptors, and the Open Inference Protocol's under its public name.

Its messages live in a private package, so that the process may hold tritonclient's or KServe's as well; a
descriptor pool of reflection's own has them as clients know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import descriptor_pb2, descriptor_pool

from pixvec_server.oip import inference_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.descriptor import FileDescriptor

_PRIVATE, _PUBLIC = inference_pb2.DESCRIPTOR.package, "inference"
_FILE = "inference.proto"


def pool(services: Iterable[str]) -> descriptor_pool.DescriptorPool:
    """Return a pool with the files of these services and what they import."""
    default = descriptor_pool.Default()
    made = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for name in services:
        if name.startswith(f"{_PUBLIC}."):
            made.Add(_public())
        else:
            _add(made, default.FindFileContainingSymbol(name), added)
    return made


def _add(made: descriptor_pool.DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for needed in file.dependencies:
        _add(made, needed, added)
    made.AddSerializedFile(file.serialized_pb)


def _public() -> descriptor_pb2.FileDescriptorProto:
    """Return the protocol's file with its public package in place of ours, wherever a type is named."""
    file = descriptor_pb2.FileDescriptorProto.FromString(inference_pb2.DESCRIPTOR.serialized_pb)
    file.name, file.package = _FILE, _PUBLIC
    for message in file.message_type:
        _rename(message)
    for method in file.service[0].method:
        method.input_type, method.output_type = _named(method.input_type), _named(method.output_type)
    return file


def _rename(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        if field.type_name:
            field.type_name = _named(field.type_name)
    for nested in message.nested_type:
        _rename(nested)


def _named(name: str) -> str:
    return name.replace(f".{_PRIVATE}.", f".{_PUBLIC}.", 1)
