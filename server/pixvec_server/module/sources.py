"""From a spec to its network, whichever library knows it: timm, open_clip or transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import timm.layers
import torch
from torch import nn

from pixvec_server.errors import CatalogError
from pixvec_server.module import open_clip_source, timm_source, transformers_source
from pixvec_server.module.image import ImageModule
from pixvec_server.module.projection import projection_of
from pixvec_server.module.text import TextModule
from pixvec_server.module.weights import tensors_sha256

if TYPE_CHECKING:
    from pixvec_server.spec import ModelSpec

_SEED = 20_251  # random weights are the same on every machine that runs the same torch
_NETWORKS = {
    "timm": timm_source.network_of,
    "wheel": timm_source.network_of,
    "file": timm_source.network_of,
    "open_clip": open_clip_source.network_of,
    "hf": transformers_source.network_of,
}


@dataclass(slots=True)
class Built:
    """A model in torch, and all that a bundle says of it. `spec` has its preprocessing filled in."""

    spec: ModelSpec
    image: ImageModule
    network: nn.Module  # everything that holds weights, under the source's own names
    weights_sha256: str
    text: TextModule | None = None
    tokenizer: Any = None
    facts: dict[str, float] = field(default_factory=dict)  # logit_scale and logit_bias, where it has them


def build(spec: ModelSpec, *, fused: bool = True) -> Built:
    """Return the model in eval mode. Not `fused`: attention in single steps, which an exporter can follow.

    Raises BundleError when weights cannot be had or do not fit, CatalogError for what a source does not have.
    """
    timm.layers.set_fused_attn(fused)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        made = _NETWORKS[spec.kind](spec)
        preprocess = spec.preprocess or made.preprocess
        projection = projection_of(spec, made.tower, preprocess)
    if spec.layer not in made.tower.gives:
        raise CatalogError(
            f"{spec.name}: layer = {spec.layer}: {spec.source} has {', '.join(made.tower.gives)}"
        )
    tensors = made.weights.state_dict()
    if projection is not None:
        tensors = {**tensors, **{f"projection.{k}": v for k, v in projection.state_dict().items()}}
    known = spec.parameters or sum(p.numel() for p in made.weights.parameters())
    image = ImageModule(made.tower, preprocess, layer=spec.layer, pool=spec.pool, projection=projection)
    text = None if made.text is None else TextModule(made.text).eval().requires_grad_(requires_grad=False)
    return Built(
        spec=spec.model_copy(update={"preprocess": preprocess, "parameters": known}),
        image=image.eval().requires_grad_(requires_grad=False),
        network=made.weights,
        weights_sha256=tensors_sha256(tensors),
        text=text,
        tokenizer=made.tokenizer,
        facts=made.facts,
    )
