"""torch on CPU or CUDA: the module itself, channels-last, under autocast for bf16 and fp16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pixvec_server.errors import BackendError, SetupError
from pixvec_server.module import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.module import ImageModule, TextModule
    from pixvec_server.types import F32

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        image = built.image.to(self._device).to(memory_format=torch.channels_last)
        self._modules: dict[str, ImageModule | TextModule] = {"image": image}
        if built.text is not None:
            self._modules["text"] = built.text.to(self._device)
        self._autocast = _TYPES.get(placement.precision)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        module = self._modules[tower]
        given = torch.from_numpy(batch).to(self._device, non_blocking=True)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
        ):
            values = dict(zip(module.outputs, module(given), strict=True))
        return {name: values[name].float().cpu().numpy() for name in outputs}

    def close(self) -> None:
        """See `Backend.close`."""
        self._modules.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def missing_cuda() -> str:
    """Return what keeps torch off CUDA on this machine, or "" when nothing does."""
    if torch.version.cuda is None:
        return f"the installed torch {torch.__version__} is a CPU build: install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: the NVIDIA driver or the device is missing"
    return ""
