"""torch on CPU or CUDA: the module itself, channels-last, under autocast for bf16 and fp16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pixvec_server import catalog
from pixvec_server.errors import BackendError
from pixvec_server.module import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32, U8

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """The source's own module. Refuses weights that are not those of the bundle."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        manifest = bundle.manifest
        module, weights = build(catalog.find(manifest.name))
        if weights != manifest.weights_sha256:
            raise BackendError(f"{manifest.source} no longer holds the weights that the bundle was made from")
        if placement.device == "cpu":
            torch.set_num_threads(max(1, options.threads // options.instances))
        self._device = torch.device(placement.device)
        self._module = module.to(self._device).to(memory_format=torch.channels_last)
        self._autocast = _TYPES.get(placement.precision)
        self._size = (manifest.preprocess.height, manifest.preprocess.width)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def run(self, batch: U8, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        pixels = torch.from_numpy(batch).to(self._device, non_blocking=True)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
        ):
            values = dict(zip(self._module.outputs, self._module(pixels), strict=True))
        return {name: values[name].float().cpu().numpy() for name in outputs}

    def warm_up(self, batch_sizes: Sequence[int], outputs: Sequence[str]) -> None:
        """See `Backend.warm_up`."""
        for size in batch_sizes:
            self.run(np.zeros((size, *self._size, 3), np.uint8), outputs)

    def close(self) -> None:
        """See `Backend.close`."""
        del self._module
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def missing_cuda() -> str:
    """Return what keeps torch off CUDA on this machine, or "" when nothing does."""
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is a CPU build: install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: the NVIDIA driver or the device is missing"
    return ""
