"""The layer behind a model's embedding, where the spec asks for one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pixvec_server.errors import BundleError
from pixvec_server.module.weights import fill, read_checkpoint

if TYPE_CHECKING:
    from pixvec_server.module.towers import Tower
    from pixvec_server.spec import ModelSpec, Preprocess


def projection_of(spec: ModelSpec, tower: Tower, preprocess: Preprocess) -> nn.Linear | None:
    """Return the layer behind the embedding: random for a number, else a checkpoint of weight and bias."""
    if not spec.projection:
        return None
    if spec.projection.isdigit():
        return nn.Linear(_width(tower, spec, preprocess), int(spec.projection))
    given = read_checkpoint(Path(spec.projection), allow_pickle=spec.allow_pickle)
    named = {name.rpartition(".")[2]: value for name, value in given.items()}
    if "weight" not in named or named["weight"].ndim != 2:
        raise BundleError(
            f"{spec.projection}: a projection is a `weight` of shape [D, size] and maybe a `bias`"
        )
    size, width = named["weight"].shape
    needed = _width(tower, spec, preprocess)
    if width != needed or not size:
        raise BundleError(
            f"{spec.projection} makes {size} numbers of {width}; {spec.name}'s {spec.layer} has {needed}"
        )
    layer = nn.Linear(width, size, bias="bias" in named)
    fill(layer, named, spec.projection)
    return layer


def _width(tower: Tower, spec: ModelSpec, preprocess: Preprocess) -> int:
    with torch.inference_mode():
        found = tower.eval()(torch.zeros(2, 3, preprocess.height, preprocess.width))
    if spec.layer == "pooled" and spec.pool != "own":
        return int(found["features"].shape[1 if found["features"].ndim == 4 else 2])
    return int(found[spec.layer].shape[1])
