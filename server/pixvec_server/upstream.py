"""The libraries that publish models, run as their authors run them: their transform, network and tokenizer.

Another way from a file to the vector, for `verify`: shares no line with `preprocess`'s decoding and fitting,
with `module.towers` or with `tokenizer`. Weights are those that the library itself fetches; where it cannot
(random ones, checkpoints, wheels), the bundle's, loaded into the library's own network.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import timm
import timm.data
import torch
from numpy.typing import NDArray

from pixvec_server.errors import BundleError, ConfigError
from pixvec_server.module import build
from pixvec_server.module.weights import read_wheel
from pixvec_server.preprocess.samples import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pixvec_server.spec import ModelSpec
    from pixvec_server.types import F32

Tokens: TypeAlias = NDArray[np.int64]
# The library that a kind of source is of.
LIBRARIES = {
    "timm": "timm",
    "wheel": "timm",
    "file": "timm",
    "open_clip": "open_clip",
    "hf": "transformers",
}
_BATCH = 8
_TOKENS, _MAP = 3, 4  # axes of (n, tokens, channels) and of (n, channels, height, width)
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_IMAGE_PARTS = ("image_model", "vision_model")  # of transformers' models that embed texts too
_CROPPED_BELOW = 384  # ConvNeXt's processor squashes from here on
_MODES = {"shortest": "short_side_crop", "center": "short_side_crop"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a picture becomes a network's input, in a library's own words made comparable.

    `size` is (height, width), `short_side` the length that the shorter side is resized to before the crop;
    `mean` and `std` are per channel on a 0 to 1 scale.
    """

    size: tuple[int, int]
    mode: str
    short_side: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    antialias: bool = True
    channels: str = "rgb"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model as its library runs it, on the CPU in float32, vectors as the network gives them.

    `transform` takes a picture to (3, height, width), `image` a batch of those to (n, size), `tokenize`
    sentences to (n, context), `text` those to (n, size); the last two are None where there is no text tower.
    """

    library: str
    settings: Settings
    transform: Callable[[Any], torch.Tensor]
    image: Callable[[torch.Tensor], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor] | None = None
    text: Callable[[torch.Tensor], torch.Tensor] | None = None

    def embed_images(self, files: Sequence[bytes]) -> F32:
        """Return (n, size) float32 of image files. Raises OSError for one that Pillow cannot open."""
        batches = (files[at : at + _BATCH] for at in range(0, len(files), _BATCH))
        stacked = (torch.stack([self.transform(opened(data)) for data in batch]) for batch in batches)
        return _run(self.image, stacked)

    def embed_tokens(self, tokens: Tokens) -> F32:
        """Return (n, size) float32 of the library's own tokens."""
        assert self.text is not None
        batches = (torch.from_numpy(tokens[at : at + _BATCH]) for at in range(0, len(tokens), _BATCH))
        return _run(self.text, batches)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Return (n, context) int64 of sentences."""
        assert self.tokenize is not None
        found: Tokens = self.tokenize(list(texts)).numpy().astype(np.int64)
        return found

    def pixels(self, data: bytes) -> F32:
        """Return what the transform makes of a file, less the normalisation: (height, width, 3), 0 to 255."""
        normalised = self.transform(opened(data)).permute(1, 2, 0).numpy()
        std, mean = (np.array(values, np.float32) for values in (self.settings.std, self.settings.mean))
        found: F32 = (normalised * std + mean) * 255
        return found


def _run(network: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[torch.Tensor]) -> F32:
    with torch.inference_mode():
        found: F32 = torch.cat([network(batch) for batch in batches]).float().numpy()
    return found


def load(spec: ModelSpec) -> Upstream:
    """Return a model as its own library makes it.

    Raises ConfigError for a source that no library has, BundleError when weights cannot be had or do not fit.
    """
    if spec.kind == "file" and spec.location.endswith(".onnx"):
        raise ConfigError(f"{spec.name} was made from a graph: there is no library to compare it with")
    try:
        return _LOADERS[LIBRARIES[spec.kind]](spec)
    except (OSError, RuntimeError, ValueError, ImportError) as exc:
        words = str(exc).strip().splitlines() or [type(exc).__name__]
        raise BundleError(
            f"{spec.name}: {LIBRARIES[spec.kind]} cannot make {spec.source}: {words[0]} (verify where the "
            "library is installed and the model's hub, or its cache, can be reached)"
        ) from exc


def _fetched(spec: ModelSpec) -> bool:
    """Tell whether the library itself can fetch a model's weights; a pinned revision it cannot."""
    return spec.weights == "pretrained" and spec.kind in ("timm", "open_clip", "hf") and not spec.revision


def _timm(spec: ModelSpec) -> Upstream:
    name = spec.architecture or spec.location
    if _fetched(spec):
        model = timm.create_model(name, pretrained=True)
    elif spec.kind == "wheel" and spec.weights == "pretrained":
        model = timm.create_model(name, pretrained=False)
        held = read_wheel(spec.location).values()
        model.load_state_dict(dict(zip(model.state_dict(), held, strict=True)))
    else:
        ours = build(spec).network
        model = timm.create_model(name, pretrained=False, num_classes=getattr(ours, "num_classes", 0))
        model.load_state_dict(ours.state_dict())
    model.eval()
    data = timm.data.resolve_model_data_config(model)
    height, width = data["input_size"][1:]
    return Upstream(
        library=f"timm {timm.__version__}",
        settings=Settings(
            size=(height, width),
            mode=_MODES.get(data["crop_mode"], data["crop_mode"]),
            short_side=math.floor(min(height, width) / data["crop_pct"]),
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        ),
        transform=timm.data.create_transform(**data, is_training=False),
        image=lambda batch: _of_timm(model, batch, spec),
    )


def _of_timm(model: Any, batch: torch.Tensor, spec: ModelSpec) -> torch.Tensor:  # noqa: ANN401 - of many classes
    """Return the vector that a spec's embedding is, as timm's documentation takes it."""
    if spec.layer in ("logits", "projected"):
        answer: torch.Tensor = model(batch)
        return answer
    features = model.forward_features(batch)
    if spec.layer == "pooled" and isinstance(model, timm.models.VGG):
        return _pooled(features, "max" if spec.pool == "max" else "avg", 0)
    if spec.layer == "pooled" and spec.pool != "own":
        return _pooled(features, spec.pool, int(getattr(model, "num_prefix_tokens", 0)))
    before_head: torch.Tensor = model.forward_head(features, pre_logits=True)
    return before_head


def _open_clip(spec: ModelSpec) -> Upstream:
    library = importlib.import_module("open_clip")
    architecture, _, tag = spec.location.partition("/")
    if _fetched(spec):
        model, _, transform = library.create_model_and_transforms(architecture, pretrained=tag)
    else:
        published = library.get_pretrained_cfg(architecture, tag) or {}
        model, _, transform = library.create_model_and_transforms(
            architecture,
            pretrained_text=False,
            **{f"image_{key}": published.get(key) for key in ("mean", "std", "interpolation", "resize_mode")},
        )
        model.load_state_dict(build(spec).network.state_dict())
    model.eval()
    data = model.visual.preprocess_cfg
    height, width = data["size"] if isinstance(data["size"], list | tuple) else (data["size"],) * 2
    with_text = "text" in spec.towers
    return Upstream(
        library=f"open_clip {library.__version__}",
        settings=Settings(
            size=(height, width),
            mode=_MODES.get(data["resize_mode"], data["resize_mode"]),
            short_side=min(height, width),
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        ),
        transform=transform,
        image=_before_projection(model.visual) if spec.layer == "pooled" else model.encode_image,
        tokenize=library.get_tokenizer(architecture) if with_text else None,
        text=model.encode_text if with_text else None,
    )


def _before_projection(visual: Any) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401 - of two classes
    """Return an image tower that ends before the space that it shares with texts."""
    if not hasattr(visual, "trunk"):
        visual.proj = None
        answer: Callable[[torch.Tensor], torch.Tensor] = visual
        return answer
    trunk = visual.trunk
    return lambda batch: trunk.forward_head(trunk.forward_features(batch), pre_logits=True)


def _transformers(spec: ModelSpec) -> Upstream:
    library = importlib.import_module("transformers")
    library.logging.set_verbosity_error()
    pin: dict[str, Any] = {"trust_remote_code": False}
    if spec.revision:
        pin["revision"] = spec.revision
    if spec.weights != "pretrained" and spec.config:
        given = dict(spec.config)
        config = library.AutoConfig.for_model(str(given.pop("model_type")), **given)
        processor = _default_processor(library, config.model_type)
    else:
        config = library.AutoConfig.from_pretrained(spec.location, **pin)
        processor = library.AutoImageProcessor.from_pretrained(spec.location, **pin)
    # A classifier's checkpoint has no pooler: it would be random.
    bare = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    if _fetched(spec):
        model = library.AutoModel.from_pretrained(
            spec.location,
            dtype=torch.float32,
            use_safetensors=None if spec.allow_pickle else True,
            **pin,
            **bare,
        )
    else:
        model = library.AutoModel.from_config(config, **bare)
        model.load_state_dict(build(spec).network.state_dict())
    model.float().eval()
    return Upstream(
        library=f"transformers {library.__version__}",
        settings=_of_processor(processor),
        transform=lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0],
        image=lambda batch: _of_transformers(model, batch, spec),
    )


def _default_processor(library: Any, model_type: str) -> Any:  # noqa: ANN401 - a module; one of many classes
    """Return the image processor of a kind of model as it is when no hub says otherwise."""
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    names = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    if not names:
        raise ConfigError(f"transformers has no image processor for model_type = {model_type!r}")
    return getattr(library, names.get("torchvision") or names["pil"])()


def _of_processor(processor: Any) -> Settings:  # noqa: ANN401 - one of many classes
    size = processor.size
    cut = processor.crop_size if getattr(processor, "do_center_crop", None) else None
    short = size.shortest_edge
    squash, side = short is None, short or min(size.height, size.width)
    target = cut or size
    height, width = (target.height or side, target.width or side)
    share = getattr(processor, "crop_pct", None)
    if share:
        squash = side >= _CROPPED_BELOW
        side = side if squash else int(side / share)
    return Settings(
        size=(height, width),
        mode="squash" if squash else "short_side_crop",
        short_side=side,
        interpolation=_FILTERS[int(processor.resample)],
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0,) * 3,
        std=tuple(processor.image_std) if processor.do_normalize else (1.0,) * 3,
    )


def _of_transformers(model: Any, batch: torch.Tensor, spec: ModelSpec) -> torch.Tensor:  # noqa: ANN401 - of many classes
    if spec.layer == "projected":
        answer = model.get_image_features(pixel_values=batch)
        projected: torch.Tensor = getattr(answer, "pooler_output", answer)
        return projected
    part = next((getattr(model, name) for name in _IMAGE_PARTS if hasattr(model, name)), model)
    answer = part(pixel_values=batch)
    features = answer.last_hidden_state
    if spec.pool != "own":
        return _pooled(features, spec.pool, _prefix_tokens(features, batch, part.config))
    own = getattr(answer, "pooler_output", None)
    if own is None:
        return _pooled(features, "token" if features.ndim == _TOKENS else "avg", 0)
    flat: torch.Tensor = own.flatten(1)
    return flat


def _prefix_tokens(features: torch.Tensor, batch: torch.Tensor, config: Any) -> int:  # noqa: ANN401 - as above
    """Count the tokens that are more than the patches of a batch (n, 3, height, width)."""
    patch = getattr(config, "patch_size", None)
    if features.ndim != _TOKENS or not isinstance(patch, int):
        return 0
    height, width = batch.shape[2:]
    return max(0, features.shape[1] - (height // patch) * (width // patch))


def _pooled(features: torch.Tensor, pool: str, prefix_tokens: int) -> torch.Tensor:
    """Pool (n, channels, height, width) or (n, tokens, channels), whose first ones stand for no patch."""
    if pool == "token":
        return features[:, 0]
    flat = features.flatten(2) if features.ndim == _MAP else features[:, prefix_tokens:].transpose(1, 2)
    return flat.max(2).values if pool == "max" else flat.mean(2)


_LOADERS: dict[str, Callable[[ModelSpec], Upstream]] = {
    "timm": _timm,
    "open_clip": _open_clip,
    "transformers": _transformers,
}
