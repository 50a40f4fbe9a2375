"""Writes legacy torch files without torch, good ones and damaged ones."""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for; its module need not exist here."""

    module: str
    name: str

    def __call__(self) -> None:
        """Make it callable for the pickler, which writes it and never calls it."""


@dataclass(frozen=True)
class Storage:
    """A reference to a storage, written as a persistent id."""

    kind: str
    key: str
    count: int


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


class Tensor:
    """A tensor as torch pickles it: a call that rebuilds it from its storage."""

    def __init__(
        self, storage: Storage, offset: Any, shape: Any, strides: Any, rebuild: Global = REBUILD
    ) -> None:
        self._call: tuple[Any, ...] = rebuild, (storage, offset, shape, strides, False, {})

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


_PythonPickler: Any = pickle._Pickler  # its save_global can be replaced


class _Pickler(_PythonPickler):  # type: ignore[misc] # see above
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", Global("torch", obj.kind), obj.key, "cpu", obj.count, None)
        return None

    def reducer_override(self, obj: Any) -> Any:
        return obj.name if isinstance(obj, Global) else NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if not isinstance(obj, Global):
            super().save_global(obj, name)
            return
        self.write(f"c{obj.module}\n{obj.name}\n".encode())


def pickled(held: Any) -> bytes:
    """Return a pickle in which `Global`, `Storage` and `Tensor` stand for torch's own."""
    target = io.BytesIO()
    _Pickler(target, 2).dump(held)
    return target.getvalue()


def legacy_file(table: Any, storages: dict[str, NDArray[Any]], machine: Any = MACHINE) -> bytes:
    """Return a file whose table of tensors and storages are those given."""
    heads = b"".join(pickled(held) for held in (MAGIC, PROTOCOL, machine, table, list(storages)))
    return heads + b"".join(struct.pack("<q", values.size) + values.tobytes() for values in storages.values())


def plain_table(tensors: dict[str, NDArray[Any]]) -> bytes:
    """Return a file of contiguous tensors, each with a storage of its own."""
    kinds = {np.dtype("<f4"): "FloatStorage", np.dtype("<i8"): "LongStorage"}
    table, storages = {}, {}
    for i, (name, values) in enumerate(tensors.items()):
        strides = tuple(step // values.itemsize for step in values.strides)
        table[name] = Tensor(Storage(kinds[values.dtype], str(i), values.size), 0, values.shape, strides)
        storages[str(i)] = values
    return legacy_file(table, storages)
