"""Vision models of transformers, from repositories of the hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pixvec_server.errors import BundleError, CatalogError
from pixvec_server.module.hub import asking
from pixvec_server.module.network import Network, given_weights, import_library
from pixvec_server.module.towers import TransformersTower
from pixvec_server.module.weights import fill
from pixvec_server.spec import ModelSpec, Preprocess

_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_BILINEAR = 2
_CROPPED_BELOW = 384  # pixels; ConvNeXt's processor squashes from here on


def network_of(spec: ModelSpec) -> Network:
    """Return the image network of a repository, or of the spec's own config where that is enough."""
    library = import_library("transformers", "hf", spec)
    library.logging.set_verbosity_error()
    # Left unsaid, the library asks at the terminal whether to run what the repository brings.
    pin: dict[str, Any] = {"trust_remote_code": False}
    if spec.revision:
        pin["revision"] = spec.revision
    with asking(spec):
        if spec.weights != "pretrained" and spec.config:
            rest = {key: value for key, value in spec.config.items() if key != "model_type"}
            config = library.AutoConfig.for_model(spec.config["model_type"], **rest)
        else:
            config = library.AutoConfig.from_pretrained(spec.location, **pin)
        # The checkpoints of classifiers have no pooler: it would be random.
        options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        if spec.weights == "pretrained":
            safe = None if spec.allow_pickle else True
            model, loaded = library.AutoModel.from_pretrained(
                spec.location,
                use_safetensors=safe,
                dtype=torch.float32,
                output_loading_info=True,
                **pin,
                **options,
            )
            _refuse_lacking(model, config.model_type, set(loaded["missing_keys"]), spec)
        else:
            model = library.AutoModel.from_config(config, trust_remote_code=False, **options)
        preprocess = spec.preprocess or _preprocess(
            library.AutoImageProcessor.from_pretrained(spec.location, **pin).to_dict()
        )
    given = given_weights(spec)
    if given is not None:
        fill(model, given, spec.weights)
    model.eval()
    return Network(TransformersTower(model, config.model_type), model, preprocess)


def _refuse_lacking(model: nn.Module, kind: str, missing: set[str], spec: ModelSpec) -> None:
    """Refuse a repository without weights that the image network needs: the library would make them up."""
    used = {id(value) for value in TransformersTower(model, kind).parameters()}
    lacking = [name for name, value in model.named_parameters() if name in missing and id(value) in used]
    if lacking:
        raise BundleError(f"{spec.source} lacks weights of the network: {', '.join(lacking[:4])}")


def _preprocess(data: dict[str, Any]) -> Preprocess:
    """Read an image processor's settings, as its preprocessor_config.json has them."""
    size, cut = data["size"], data.get("crop_size") if data.get("do_center_crop") else None
    side, share = size.get("shortest_edge"), data.get("crop_pct")
    if share:  # ConvNeXt's own way
        squash, short, target = side >= _CROPPED_BELOW, int(side / share), {"height": side, "width": side}
    elif side:
        target = cut or {"height": side, "width": side}
        squash, short = False, side
    elif cut and (cut["height"], cut["width"]) != (size["height"], size["width"]):
        raise CatalogError(f"the processor squashes to {size} and crops to {cut}: give a profile and input")
    else:
        squash, short, target = True, None, size
    normalises = data.get("do_normalize", True)
    resample = _BILINEAR if data.get("resample") is None else int(data["resample"])
    if resample not in _INTERPOLATIONS:
        raise CatalogError(
            f"the processor's resample = {resample} is not known here: give a profile and input"
        )
    return Preprocess(
        height=int(target["height"]),
        width=int(target["width"]),
        mode="squash" if squash else "short_side_crop",
        short_side=None if squash else short,
        interpolation=_INTERPOLATIONS[resample],
        antialias=_INTERPOLATIONS[resample] != "nearest",
        mean=tuple(data["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        std=tuple(data["image_std"]) if normalises else (1.0, 1.0, 1.0),
    )
