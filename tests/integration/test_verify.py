"""`pixvec-server verify`: agreement with three libraries, and what it says of presets that are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import pytest
import torch
import transformers
from support import photos, tiny
from support.servers import ROOT, environment

from pixvec_server import bundle, catalog, export, upstream, verify
from pixvec_server.errors import ConfigError
from pixvec_server.preprocess.samples import samples
from pixvec_server.probes import sentences
from pixvec_server.spec import ModelSpec, Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixvec_server.bundle import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
_pictures = cache(samples)
BIN = Path(sys.executable).parent
VIT = {"name": "tiny-vit", "source": "timm:test_vit.r160_in1k", "weights": "none"}
PLAIN = {"height": 160, "width": 160, "crop": 0.95, "mean": (0.5,) * 3, "std": (0.5,) * 3}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SYSTEMS = ("handscan-", "supervisely-", "pupyl-", "easydl-", "transfer-")


def _export(folder: Path, **table: Any) -> Bundle:
    return export.export(ModelSpec.model_validate(table), folder)


def _verify(made: Bundle, count: int = 24) -> verify.Report:
    return verify.verify(made, _pictures()[:count], sentences())


def _with(made: Bundle, folder: Path, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """Copy a bundle and change its manifest."""
    shutil.copytree(made.folder, folder)
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    change(manifest)
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    return bundle.load(folder)


def _command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "pixvec-server", "verify", *words],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=150,
        check=False,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _export(tmp_path_factory.mktemp("verify") / "vit", **VIT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both towers of open_clip's own kind, two layers each."""
    folder = tmp_path_factory.mktemp("verify")
    tower = {"layers": 2, "width": 64}
    described = {
        "embed_dim": 32,
        "vision_cfg": {**tower, "image_size": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    (folder / "ViT-pixvec.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / "ViT-pixvec.json")
    source = {"name": "tiny-clip", "source": "open_clip:ViT-pixvec", "weights": "none"}
    return _export(folder / "clip", **source, layer="projected", towers=("image", "text"))


def test_the_default_model_is_timms_and_the_bundle_says_so(default_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(default_bundle.folder, folder)
    done = _command(f"efficientnet_lite0={folder}", "--against", "timm", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = told["towers"]["image"]
    print(f"\n{found}")
    assert (told["model"], told["passed"], found["count"], found["hints"]) == (
        "efficientnet_lite0",
        True,
        24,
        [],
    )
    assert found["against"].startswith("timm ")
    assert found["cosine_min"] >= 0.9995
    assert found["overlap_at_10"] >= 0.99
    kept = bundle.load(folder).manifest
    assert kept.verified["image"].model_dump() == {k: found[k] for k in kept.verified["image"].model_dump()}
    assert kept.model_copy(update={"verified": {}}) == default_bundle.manifest.model_copy(
        update={"verified": {}}
    )


def test_photographs_are_compared_and_what_is_no_image_is_left_out(
    default_bundle: Bundle, tmp_path: Path
) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (place / name).write_bytes(photos.data(name))
    (place / "broken.jpg").write_bytes(b"no image")
    report = verify.verify(default_bundle, *verify.inputs([place], None))
    assert report.passed
    assert report.findings[0].record.count == 3
    assert [(Path(name).name, "no image" in why) for name, why in report.skipped.items()] == [
        ("broken.jpg", True)
    ]


def test_a_wrong_mean_fails_by_command_with_its_name(vit: Bundle, tmp_path: Path) -> None:
    wrong = {**PLAIN, "mean": (0.485, 0.456, 0.406)}
    made = _export(tmp_path / "bundle", **VIT, preprocess=wrong)
    done = _command(f"tiny-vit={made.folder}")
    assert done.returncode == 3, done.stderr
    assert "mean = [0.485, 0.456, 0.406], theirs is [0.5, 0.5, 0.5]" in done.stdout
    kept = bundle.load(made.folder).manifest.verified["image"]
    assert not kept.passed
    good = _verify(vit).findings[0]
    print(f"\nright: {good.record.relative_error:.1e}, wrong mean: {kept.relative_error:.1e}")
    assert good.record.passed
    assert good.hints == ()
    assert good.record.relative_error < kept.relative_error / 10


def test_swapped_channels_are_named(vit: Bundle, tmp_path: Path) -> None:
    made = _export(tmp_path / "told", **VIT, preprocess={**PLAIN, "channels": "bgr"})
    [finding] = _verify(made, 8).findings
    assert not finding.record.passed
    assert "channels = bgr, theirs is rgb" in finding.hints

    def hide(manifest: dict[str, Any]) -> None:
        for held in (manifest, manifest["spec"]):
            held["preprocess"]["channels"] = "rgb"

    [hidden] = _verify(_with(made, tmp_path / "hidden", hide), 8).findings
    assert not hidden.record.passed
    assert any("red and blue exchanged the vectors agree" in hint for hint in hidden.hints)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": 0.8}, "short_side = 200, theirs is 168"),
        ({"interpolation": "bilinear", "antialias": False}, "antialias = False, theirs is True"),
    ],
)
def test_a_wrong_crop_is_seen_in_the_pixels(
    vit: Bundle, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    made = _with(vit, tmp_path / "bundle", lambda manifest: manifest["preprocess"].update(change))
    [finding] = _verify(made, 8).findings
    assert not finding.record.passed
    assert words in finding.hints
    assert any("grey levels off" in hint for hint in finding.hints)
    assert not any("the network" in hint for hint in finding.hints)


def test_another_layer_is_the_networks_fault(vit: Bundle, tmp_path: Path) -> None:
    made = _with(vit, tmp_path / "bundle", lambda manifest: manifest["spec"].update(pool="avg"))
    [finding] = _verify(made, 8).findings
    assert not finding.record.passed
    assert [hint.partition(":")[0] for hint in finding.hints] == ["the network"]


def test_both_towers_of_open_clip_agree(clip: Bundle) -> None:
    report = _verify(clip)
    image, text = report.findings
    print(f"\nimage {image.record.relative_error:.1e}, text {text.record.relative_error:.1e}")
    assert report.passed
    assert (image.record.count, text.record.count) == (24, len(sentences()))
    assert image.record.against.startswith("open_clip ")
    assert text.record.relative_error <= 1e-4
    verify.keep(clip, report)
    assert set(bundle.load(clip.folder).manifest.verified) == {"image", "text"}


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"clean": "none"}, ["clean = 'none': with 'lower'"]),
        (
            {"begin": 5, "end": 3, "pad": 7},
            ["begin = 5: with 49406", "end = 3: with 49407", "pad = 7: with 0"],
        ),
    ],
)
def test_a_wrong_tokenizer_is_named_by_field(
    clip: Bundle, tmp_path: Path, change: dict[str, Any], fields: list[str]
) -> None:
    made = _with(clip, tmp_path / "bundle", lambda manifest: manifest["text"]["tokenizer"].update(change))
    image, text = _verify(made, 4).findings
    assert image.record.passed
    assert not text.record.passed
    assert len(text.hints) == len(fields)
    assert all(any(field in hint for hint in text.hints) for field in fields), text.hints


def test_another_context_is_no_question_of_figures(clip: Bundle, tmp_path: Path) -> None:
    made = _with(clip, tmp_path / "bundle", lambda manifest: manifest["text"]["tokenizer"].update(context=60))
    with pytest.raises(ConfigError, match=r"tokenizer.context = 60, open_clip .* is 77"):
        _verify(made, 4)


def test_transformers_own_processor_and_network_agree(tmp_path: Path) -> None:
    """A repository of the hub's form, in a folder: what it says is read, its weights are fetched."""
    config = transformers.AutoConfig.for_model("vit", patch_size=32, image_size=96, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "repo")
    processor = transformers.ViTImageProcessor(size={"height": 96, "width": 96}, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path / "repo")
    made = _export(tmp_path / "bundle", name="tiny-hf", source=f"hf:{tmp_path / 'repo'}", pool="token")
    assert made.manifest.preprocess.mean == (0.4, 0.5, 0.6)
    [finding] = _verify(made).findings
    print(f"\ntransformers: {finding.record.relative_error:.1e}")
    assert finding.limits == verify.TRAINED
    assert finding.record.relative_error <= 2e-2
    assert finding.record.cosine_min >= 0.9995
    assert finding.record.against.startswith("transformers ")


def test_without_a_hub_transformers_has_its_own_defaults() -> None:
    profile = catalog.profile("hf-vit").model_dump()
    spec = ModelSpec(
        name="tiny-hf",
        source="hf:nobody/nothing",
        weights="none",
        config={"model_type": "vit", "patch_size": 32, **SMALL},
        pool="avg",
        preprocess=Preprocess(**profile, height=224, width=224),
    )
    assert spec.preprocess is not None
    theirs = upstream.load(spec)
    assert verify.differences(verify.settings_of(spec.preprocess), theirs.settings) == {}
    assert theirs.embed_images([_pictures()[0].data] * 9).shape == (9, 32)


def test_a_system_that_prepares_pictures_its_own_way_is_refused() -> None:
    spec = catalog.find("handscan-densenet121")
    with pytest.raises(ConfigError, match=r"on purpose \(profile scale01\): verify densenet121"):
        verify.check(spec)
    verify.check(catalog.find("easydl-resnet18"))  # timm's own, by another name
    for preset in catalog.presets().values():
        if not preset.name.startswith(SYSTEMS):
            assert catalog.profile_of(preset.name) in verify.LIBRARY_PROFILES, preset.name
            verify.check(preset)


def test_what_cannot_be_compared_is_refused_in_words(vit: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--against open_clip"):
        verify.check(catalog.find("clip-vit-b-32"), "timm")
    with pytest.raises(ConfigError, match="made from a graph"):
        _verify(bundle.load(tiny.write(tmp_path / "tiny")))
    with pytest.raises(ConfigError, match="1 images can be read, at least 2 are needed"):
        _verify(vit, 1)
    with pytest.raises(ConfigError, match="no such file or folder"):
        verify.inputs([tmp_path / "missing.jpg"], None)
    with pytest.raises(ConfigError, match=r"missing\.txt: No such file"):
        verify.inputs([], tmp_path / "missing.txt")
    (tmp_path / "texts").write_text("one\ntwo\n")
    assert verify.inputs([tmp_path / "texts"], tmp_path / "texts")[1] == ["one", "two"]


def test_settings_are_the_same_words_for_the_same_preprocessing() -> None:
    squashed = Preprocess(height=224, width=224, mode="squash", crop=0.9)
    assert verify.settings_of(squashed).short_side == 224
    cropped = Preprocess(height=224, width=224, crop=0.875)
    other = Preprocess(height=224, width=224, short_side=256)
    assert verify.differences(verify.settings_of(cropped), verify.settings_of(other)) == {}
    assert set(verify.differences(verify.settings_of(cropped), verify.settings_of(squashed))) == {
        "mode",
        "short_side",
    }
