"""What an engine is: numpy at the border, never tensors; uint8 in, float32 out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32, U8

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Kind: TypeAlias = Literal["onnx", "openvino", "torch"]


class Backend(Protocol):
    """A loaded model. `run` and `warm_up` are called from the engine's own threads, `instances` at a time."""

    def run(self, batch: U8, outputs: Sequence[str]) -> Mapping[str, F32]:
        """Turn (n, height, width, 3) uint8 RGB into (n, …) float32 for each output named."""
        ...

    def warm_up(self, batch_sizes: Sequence[int], outputs: Sequence[str]) -> None:
        """Run once for each size, so that no caller pays for compilation."""
        ...

    def close(self) -> None:
        """Release the device's memory."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """What was chosen to run a model on, and why, in words for people."""

    kind: Kind
    device: str
    precision: Precision
    why: str

    @property
    def cuda_index(self) -> int:
        """Index of the CUDA device; 0 for plain `cuda`."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What every backend is built with: `threads` for a CPU, `instances` callers at a time."""

    threads: int
    instances: int


class BackendFactory(Protocol):
    """How a backend is made."""

    def __call__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> Backend:
        """Load a bundle. Raises BackendError when device or precision turn out not to be usable."""
        ...
