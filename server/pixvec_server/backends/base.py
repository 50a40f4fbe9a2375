"""What an engine is: numpy at the border, never tensors; uint8 in, float32 out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pixvec_server.bundle import Bundle
    from pixvec_server.manifest import Manifest, Precision
    from pixvec_server.types import F32

Batch: TypeAlias = NDArray[Any]  # uint8 pixels or int64 tokens

Kind: TypeAlias = Literal["onnx", "openvino", "torch"]


class Backend(Protocol):
    """A loaded model. `run` is called from the engine's own threads, `instances` at a time."""

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """Turn a batch into (n, …) float32 for each output named.

        `image` takes (n, height, width, 3) uint8 RGB, `text` (n, context) int64 tokens.
        """
        ...

    def close(self) -> None:
        """Release the device's memory."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """What was chosen to run a model on, and why, in words for people.

    `kind` is one of ours, or the `module:Class` of somebody else's. `instances` and `max_batch` are what
    `pixvec-server tune` found best; 0: by device. With `lone`, a batch that has the machine to itself gets
    an engine of its own, on all processors. `emulated`: the processor does not compute `precision` itself.
    """

    kind: str
    device: str
    precision: Precision
    why: str
    tensorrt: bool = False
    instances: int = 0
    max_batch: int = 0
    lone: bool = False
    emulated: bool = False

    @property
    def engine(self) -> str:
        """What computes the vectors, as `build` names it."""
        return f"{self.kind}-tensorrt" if self.tensorrt else self.kind

    @property
    def cuda_index(self) -> int:
        """Index of the CUDA device; 0 for plain `cuda`."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What every backend is built with: `threads` for a CPU, `instances` callers at a time.

    On CUDA also: graphs captured for batches of up to `max_batch`, and the folder of TensorRT's engines.
    """

    threads: int
    instances: int
    max_batch: int = 32
    cuda_graph: bool = False
    engines: Path | None = None


class BackendFactory(Protocol):
    """How a backend is made."""

    def __call__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> Backend:
        """Load a bundle. Raises BackendError when device or precision turn out not to be usable."""
        ...


def example(manifest: Manifest, tower: str, count: int) -> Batch:
    """Return a batch of nothing, of the shape that a tower takes: what engines are warmed up with."""
    if tower == "text":
        assert manifest.text is not None
        return np.zeros((count, manifest.text.tokenizer.context), np.int64)
    return np.zeros((count, manifest.preprocess.height, manifest.preprocess.width, 3), np.uint8)
