"""The one image network that every backend runs: uint8 pixels in, named float32 outputs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pixvec_server.module.towers import Tower
    from pixvec_server.spec import Layer, Pool, Preprocess


class ImageModule(nn.Module):
    """Mean, standard deviation, layout, network, pooling and projection.

    `forward` takes uint8 (n, height, width, 3) RGB and returns `outputs` in order: `embedding` (n, size);
    `pooled` (n, channels), the vector before head or projection; `features`, the map before pooling,
    (n, channels, height, width) or (n, tokens, channels); where the network has them `logits` (n, classes)
    and `fc2` (n, 4096), the second hidden layer of VGG.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        tower: Tower,
        preprocess: Preprocess,
        *,
        layer: Layer = "pooled",
        pool: Pool = "own",
        projection: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.layer, self.pool, self.projection = layer, pool, projection
        self.outputs = (
            "embedding",
            "pooled",
            "features",
            *(n for n in ("logits", "fc2") if n in tower.gives),
        )
        self.dtype = torch.float32
        self._bgr = preprocess.channels == "bgr"
        self.register_buffer("pixel_mean", torch.tensor(preprocess.mean) * 255.0, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(preprocess.std) * 255.0, persistent=False)

    def narrow(self, dtype: torch.dtype) -> None:
        """Compute in another type; mean and standard deviation stay in float32, and so do the outputs."""
        self.dtype = dtype
        self.tower.to(dtype)
        if self.projection is not None:
            self.projection.to(dtype)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the network once and take each output from it."""
        ordered = pixels.flip(-1) if self._bgr else pixels
        scaled = (ordered.to(torch.float32) - self.pixel_mean) / self.pixel_std
        found = dict(self.tower(scaled.permute(0, 3, 1, 2).to(self.dtype)))
        if self.pool != "own":
            found["pooled"] = pooled(found["features"], self.pool, self.tower.prefix_tokens)
        taken = found[self.layer]
        found["embedding"] = taken if self.projection is None else self.projection(taken)
        return tuple(found[name].float() for name in self.outputs)


def pooled(features: torch.Tensor, pool: Pool, prefix_tokens: int) -> torch.Tensor:
    """Pool a map (n, channels, h, w) or tokens (n, tokens, channels), whose first ones are no patches."""
    if features.ndim == 4:
        return features.amax((2, 3)) if pool == "max" else features.mean((2, 3))
    if pool == "token":
        return features[:, 0]
    patches = features[:, prefix_tokens:]
    return patches.amax(1) if pool == "max" else patches.mean(1)
