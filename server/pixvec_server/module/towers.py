"""One face for the image networks of three libraries: a picture in, its map and vectors out by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from torch import nn

if TYPE_CHECKING:
    import torch

_TOKENS = 3


class Tower(nn.Module):
    """A network; `forward` returns the outputs that `gives` names.

    `features` is the map before pooling, `pooled` the network's own vector of it, `projected` that vector in
    the space that it shares with texts, `logits` and `fc2` as in `ImageModule`. `prefix_tokens` is how many
    of the tokens stand for no patch.
    """

    def __init__(self, network: nn.Module, gives: tuple[str, ...], prefix_tokens: int = 0) -> None:
        super().__init__()
        self.network: Any = network
        self.gives = gives
        self.prefix_tokens = prefix_tokens


class TimmTower(Tower):
    """Any network of timm. `head` names what its head gives: logits, a projection, or nothing."""

    def __init__(self, network: nn.Module, *, projects: bool) -> None:
        vgg = isinstance(network, timm.models.VGG)
        head = ("projected" if projects else "logits",) if getattr(network, "num_classes", 0) else ()
        gives = ("features", "pooled", *head, *(("fc2",) if vgg else ()))
        super().__init__(network, gives, int(getattr(network, "num_prefix_tokens", 0)))
        self._vgg, self._head = vgg, head

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Tower`."""
        features = self.network.forward_features(pixels)
        before_head = self.network.forward_head(features, pre_logits=True)
        found = {"features": features, "pooled": before_head}
        if self._vgg:
            found |= {"fc2": before_head, "pooled": features.mean((2, 3))}
        return found | {name: self.network.forward_head(features) for name in self._head}


class OpenClipTower(Tower):
    """open_clip's image tower: a vision transformer of its own, or a trunk of timm with a head."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual, ("features", "pooled", "projected"), prefix_tokens=1)
        self._has_trunk = hasattr(visual, "trunk")
        if self._has_trunk:
            self.prefix_tokens = int(getattr(self.network.trunk, "num_prefix_tokens", 0))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Tower`."""
        visual = self.network
        if self._has_trunk:
            features = visual.trunk.forward_features(pixels)
            pooled = visual.trunk.forward_head(features, pre_logits=True)
            return {
                "features": features,
                "pooled": pooled,
                "projected": visual.head(visual.trunk.forward_head(features)),
            }
        features = visual.transformer(visual._embeds(pixels))  # noqa: SLF001 - its forward, in its own steps
        pooled, _ = visual._pool(features)  # noqa: SLF001 - as above
        projected = pooled if visual.proj is None else pooled @ visual.proj
        return {"features": features, "pooled": pooled, "projected": projected}


class TransformersTower(Tower):
    """A vision model of transformers; `pooled` is what its pooler gives, else its first token."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        network, projection = _image_part(model, kind)
        gives = ("features", "pooled", *(("projected",) if projection is not None else ()))
        registers = int(getattr(network.config, "num_register_tokens", 0))
        super().__init__(network, gives, 0 if kind.startswith("siglip") else 1 + registers)
        self.projection = projection

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `Tower`."""
        answer = self.network(pixel_values=pixels)
        features = answer.last_hidden_state
        pooled = getattr(answer, "pooler_output", None)
        if pooled is None:
            pooled = features[:, 0] if features.ndim == _TOKENS else features.mean((2, 3))
        found = {"features": features, "pooled": pooled.flatten(1)}
        return found if self.projection is None else found | {"projected": self.projection(pooled)}


def _image_part(model: Any, kind: str) -> tuple[nn.Module, nn.Module | None]:  # noqa: ANN401 - one of many classes
    """Return the image network of a model that may have others, and its projection if it has one."""
    if kind == "flava":
        return model.image_model, None
    network = getattr(model, "vision_model", model)
    return network, getattr(model, "visual_projection", None)
