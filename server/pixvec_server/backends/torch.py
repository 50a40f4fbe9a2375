"""torch on CPU or CUDA: the module itself, channels-last, under autocast for bf16 and fp16."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pixvec_server.backends.base import example
from pixvec_server.cuda import QUIET, Lanes, Staging, batch_sizes, size_for
from pixvec_server.errors import BackendError, SetupError
from pixvec_server.module import build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.cuda import Allocate
    from pixvec_server.module import ImageModule, TextModule
    from pixvec_server.types import F32, U8

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SETTLING_RUNS = 3  # before a capture, as torch's notes on CUDA graphs have it


class TorchBackend:
    """The source's own module. Refuses weights that are not those of the bundle."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        manifest = bundle.manifest
        if manifest.spec is None:
            raise BackendError(f"{manifest.name} was made from a graph: take onnx or openvino")
        try:
            built = build(manifest.spec)
        except SetupError as exc:
            raise BackendError(f"the torch backend builds {manifest.name} from its source: {exc}") from exc
        if built.weights_sha256 != manifest.weights_sha256:
            raise BackendError(f"{manifest.source} no longer holds the weights that the bundle was made from")
        if placement.device == "cpu":
            torch.set_num_threads(max(1, options.threads // options.instances))
        self._device = torch.device(placement.device)
        self._modules: dict[str, ImageModule | TextModule] = {}
        with QUIET.shared():
            self._modules["image"] = built.image.to(self._device).to(memory_format=torch.channels_last)
            if built.text is not None:
                self._modules["text"] = built.text.to(self._device)
        self._autocast = _TYPES.get(placement.precision)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._lanes: Lanes[_Lane] | None = None
        if self._device.type == "cuda":
            self._lanes = Lanes(self._lane(bundle, options) for _ in range(options.instances))

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        if self._lanes is not None:
            with self._lanes.take() as lane, QUIET.shared():
                return lane.run(tower, batch, outputs)
        values = self._forward(tower, torch.from_numpy(batch))
        return {name: values[name].float().numpy() for name in outputs}

    def close(self) -> None:
        """See `Backend.close`."""
        with QUIET.shared():
            self._lanes = None
            self._modules.clear()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward(self, tower: str, given: torch.Tensor) -> dict[str, torch.Tensor]:
        module = self._modules[tower]
        with (
            torch.inference_mode(),
            # Its cache of cast weights would be filled inside a captured graph, and emptied after it.
            torch.autocast(
                given.device.type,
                self._autocast,
                enabled=self._autocast is not None,
                cache_enabled=given.device.type == "cpu",
            ),
        ):
            return dict(zip(module.outputs, module(given), strict=True))

    def _lane(self, bundle: Bundle, options: BackendOptions) -> _Lane:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call] # torch leaves it bare
        lane = _Lane(self._forward, stream, _pinned)
        if options.cuda_graph:
            for tower in bundle.manifest.towers:
                for size in batch_sizes(options.max_batch):
                    with QUIET.alone():
                        lane.capture(tower, example(bundle.manifest, tower, size))
        return lane


class _Lane:
    """One caller's stream on the device, and page-locked buffers that copies run from and to meanwhile."""

    def __init__(
        self,
        forward: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
        stream: torch.cuda.Stream,
        allocate: Allocate,
    ) -> None:
        self._forward = forward
        self._stream = stream
        self._staging = Staging(allocate)
        self._captured: dict[str, dict[int, _Captured]] = {}

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> dict[str, F32]:
        """See `Backend.run`."""
        host = self._staging.room("", batch.shape, batch.dtype)
        np.copyto(host, batch)
        graphs = self._captured.get(tower, {})
        size = size_for(len(batch), graphs)
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            given = torch.from_numpy(host)
            if size is None:
                values = self._forward(tower, given.to(self._stream.device, non_blocking=True))
            else:
                values = graphs[size].replay(given)
            held = {name: self._back(name, values[name][: len(batch)]) for name in outputs}
        self._stream.synchronize()
        return {name: array.copy() for name, array in held.items()}

    def capture(self, tower: str, batch: Batch) -> None:
        """Capture a graph for batches of this one's size."""
        given = torch.from_numpy(batch).to(self._stream.device)
        forward = partial(self._forward, tower)
        self._captured.setdefault(tower, {})[len(batch)] = _Captured(forward, given, self._stream)

    def _back(self, name: str, values: torch.Tensor) -> F32:
        host = self._staging.room(name, tuple(values.shape), np.float32)
        torch.from_numpy(host).copy_(values.float(), non_blocking=True)
        return host


class _Captured:
    """A run of one batch size, captured on a stream; every output is computed."""

    def __init__(
        self,
        forward: Callable[[torch.Tensor], dict[str, torch.Tensor]],
        given: torch.Tensor,
        stream: torch.cuda.Stream,
    ) -> None:
        self._given = given
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for _ in range(_SETTLING_RUNS):
                forward(given)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._values = forward(given)

    def replay(self, host: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of as many items as there is room for, and of what filled the room before."""
        with torch.inference_mode():
            self._given[: len(host)].copy_(host, non_blocking=True)
        self._graph.replay()
        return self._values


def _pinned(size: int) -> U8:
    array: U8 = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return array


def missing_cuda() -> str:
    """Return what keeps torch off CUDA on this machine, or "" when nothing does."""
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is a CPU build: install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: the NVIDIA driver or the device is missing"
    return ""
