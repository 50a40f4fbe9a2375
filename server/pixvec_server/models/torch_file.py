"""Read the tensors of a legacy torch file (before torch 1.6, no zip archive) without torch.

The file is five pickles and then raw numbers: a magic number, a protocol version, facts of the writer's
machine, the tensors by name with references to their storages, and the storages' keys in order. After them
stand the storages: 8 bytes of length, then the values. torch reads it in `torch.serialization._legacy_load`.
Nothing in the file is executed: the unpickler knows two constructors and two types of numbers.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from pixvec_server.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Tensors: TypeAlias = "dict[str, NDArray[Any]]"

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_AXES = 8
_DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True, slots=True)
class _Reference:
    """A tensor before its storage is read: where it lies there, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_legacy_torch_file(path: Path) -> Tensors:
    """Return the tensors of the table `name -> tensor` that the file holds, as contiguous arrays.

    Only float32 and int64 tensors are read. Raises BundleError that names the file when it cannot be read, is
    of another format, is damaged, or asks for anything but tensors.
    """
    try:
        return _read(io.BytesIO(path.read_bytes()))
    except OSError as exc:
        raise BundleError(f"{path}: {exc.strerror}") from exc
    except BundleError as exc:
        raise BundleError(f"{path}: {exc}") from exc
    except Exception as exc:  # an unpickler raises anything on hostile bytes
        raise BundleError(f"{path}: not a whole legacy torch file of tensors") from exc


def _read(file: io.BytesIO) -> Tensors:
    if _load(file) != _MAGIC or _load(file) != _PROTOCOL:
        raise BundleError("not a legacy torch file (torch before 1.6)")
    machine = _load(file)
    if not machine["little_endian"]:
        raise BundleError("its numbers are big-endian")
    table, keys = _load(file), _load(file)
    if not isinstance(table, dict) or not all(isinstance(held, _Reference) for held in table.values()):
        raise BundleError("it holds something else than a table of tensors")
    storages = {held.storage.key: held.storage for held in table.values()}
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise BundleError("its list of storages does not fit its tensors")
    values = {key: _values(file, storages[key]) for key in keys}
    return {str(name): _tensor(held, values[held.storage.key]) for name, held in table.items()}


def _load(file: io.BytesIO) -> Any:  # noqa: ANN401 - a pickle holds anything
    return _TensorUnpickler(file, encoding="utf-8").load()


def _values(file: io.BytesIO, storage: _Storage) -> NDArray[Any]:
    (count,) = struct.unpack("<q", file.read(8))
    data = file.read(storage.count * storage.dtype.itemsize) if count == storage.count else b""
    if count < 0 or len(data) != storage.count * storage.dtype.itemsize:
        raise BundleError(f"storage {storage.key} is not whole")
    return np.frombuffer(data, storage.dtype)


def _tensor(held: _Reference, values: NDArray[Any]) -> NDArray[Any]:
    """Copy a tensor out of its storage. Its strides are any: converters from TensorFlow keep theirs."""
    shape, strides = held.shape, held.strides
    if len(shape) != len(strides) or len(shape) > _MAX_AXES or min((0, held.offset, *shape, *strides)) < 0:
        raise BundleError("a tensor has a malformed shape")
    last = held.offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    # A tensor of few stored values with stride 0 would be larger in memory than its file.
    if max(count, held.offset) > len(values) or (count and last >= len(values)):
        raise BundleError("a tensor lies outside its storage")
    steps = tuple(step * values.itemsize for step in strides)
    view = np.lib.stride_tricks.as_strided(values[held.offset :], shape, steps, writeable=False)
    return np.ascontiguousarray(view).reshape(shape)


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`. It has no attributes, so a pickle cannot change it."""

    __slots__ = ()

    def __call__(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
    ) -> _Reference:
        """Return the reference; what follows (gradients, hooks) does not concern the values."""
        return _Reference(storage, offset, tuple(shape), tuple(strides))


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that constructs ordered tables and references to tensors, and refuses every other name."""

    _KNOWN: ClassVar[dict[tuple[str, str], object]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        **{("torch", name): name for name in _DTYPES},
    }

    def find_class(self, module: str, name: str, /) -> Any:  # noqa: ANN401 - as its base
        """Return what stands for a known name. Raises BundleError for every other."""
        if (module, name) not in self._KNOWN:
            raise BundleError(f"it asks for {module}.{name}: only plain float32 and int64 tensors are read")
        return self._KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:  # noqa: ANN401 - as its base
        """Return a storage by its reference: ("storage", type, key, device, count, None)."""
        kind, numbers, key, _device, count, view = pid
        if (
            (kind, view) != ("storage", None)
            or not isinstance(numbers, str)
            or not isinstance(key, str)
            or count < 0
        ):
            raise BundleError("it refers to something else than a storage of numbers")
        return _Storage(key, _DTYPES[numbers], int(count))
