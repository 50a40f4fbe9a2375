"""Image-text models of open_clip: both towers, and the tokenizer."""

from __future__ import annotations

from typing import Any

from pixvec_server.errors import BundleError, CatalogError
from pixvec_server.module.hub import asking
from pixvec_server.module.network import Network, given_weights, import_library
from pixvec_server.module.towers import OpenClipTower
from pixvec_server.module.weights import fill
from pixvec_server.spec import ModelSpec, Preprocess


def network_of(spec: ModelSpec) -> Network:
    """Return the model of a location ARCHITECTURE/TAG, with its text tower where the spec asks for one."""
    open_clip = import_library("open_clip", "clip", spec)
    architecture, _, tag = spec.location.partition("/")
    if architecture not in open_clip.list_models():
        raise CatalogError(f"{spec.source}: open_clip has no architecture {architecture!r}")
    given = given_weights(spec)
    published = open_clip.get_pretrained_cfg(architecture, tag) or {}
    with asking(spec):
        path = _file(open_clip, spec, published) if given is None else None
        model = open_clip.create_model(
            architecture, pretrained=path, load_weights=path is not None, pretrained_text=False
        )
        tokenizer = open_clip.get_tokenizer(architecture) if "text" in spec.towers else None
    if given is not None:
        fill(model, given, spec.source)
    model.eval()
    return Network(
        tower=OpenClipTower(model.visual),
        weights=model,
        preprocess=spec.preprocess or _preprocess(model.visual.preprocess_cfg, published),
        text=model if "text" in spec.towers else None,
        tokenizer=tokenizer,
        facts=_logit_facts(model),
    )


def _file(open_clip: Any, spec: ModelSpec, published: dict[str, Any]) -> str | None:  # noqa: ANN401 - a module
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


def _preprocess(own: dict[str, Any], published: dict[str, Any]) -> Preprocess:
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
