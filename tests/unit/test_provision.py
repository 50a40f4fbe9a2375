"""What a `--model` means: names, sources, settings, and where the cache keeps their bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pixvec_server import config, provision
from pixvec_server.config import ModelSettings
from pixvec_server.errors import BundleError, CatalogError, ConfigError
from pixvec_server.spec import ModelSpec


def spec(text: str, **tables: ModelSettings) -> ModelSpec:
    found = provision.parse(text, tables).spec
    assert found is not None
    return found


def test_a_name_is_the_catalogues() -> None:
    found = spec("ResNet50.tv_in1k")
    assert (found.name, found.source, found.weights) == ("resnet50", "timm:resnet50.tv_in1k", "pretrained")


def test_a_source_that_is_listed_brings_what_is_known_of_it() -> None:
    found = spec("mine=timm:vgg16.tv_in1k")
    assert (found.name, found.layer, found.aliases) == ("mine", "fc2", ())
    assert found.preprocess == spec("vgg16").preprocess


def test_a_source_that_is_not_listed_is_named_after_itself() -> None:
    found = spec("timm:vit_tiny_patch16_224.augreg_in21k@abc123")
    assert found.name == "vit_tiny_patch16_224.augreg_in21k-abc123"
    assert (found.location, found.revision) == ("vit_tiny_patch16_224.augreg_in21k", "abc123")
    assert found.preprocess is None


def test_settings_behind_a_question_mark_change_the_spec() -> None:
    found = spec("densenet121?weights=none&pool=max&projection=64&normalize=false&profile=scale01")
    assert (found.weights, found.pool, found.projection, found.normalize) == ("none", "max", "64", False)
    assert found.preprocess is not None
    assert (found.preprocess.mode, found.preprocess.height) == ("squash", 224)
    assert not found.trained
    # Another model than the one that the alias promises.
    assert found.aliases == ()


def test_a_table_of_the_configuration_does_the_same_and_the_flag_goes_before() -> None:
    table = ModelSettings(source="timm:resnet18.tv_in1k", weights="none", pool="max", idle_unload_s=5)
    request = provision.parse("cats?pool=avg", {"cats": table})
    assert request.spec is not None
    assert (request.spec.name, request.spec.source, request.spec.pool) == (
        "cats",
        "timm:resnet18.tv_in1k",
        "avg",
    )
    assert request.settings.idle_unload_s == 5


def test_the_models_of_a_file_are_served_when_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pixvec.toml"
    file.write_text('[models.a]\nsource = "timm:resnet18.tv_in1k"\nprojection = 64\n[models.b]\ninput = 9\n')
    settings = config.load(file, environ={})
    assert settings.served == ("a", "b")
    assert settings.models["a"].projection == "64"
    assert config.load(environ={}).served == ("efficientnet_lite0",)
    assert config.load(file, {"model.names": ["c"]}, {}).served == ("c",)


def test_an_input_of_another_side_keeps_the_rest() -> None:
    plain, changed = spec("resnet50").preprocess, spec("resnet50?input=160").preprocess
    assert plain is not None
    assert changed == plain.model_copy(update={"height": 160, "width": 160})


def test_each_spec_has_a_folder_of_its_own_in_the_cache(tmp_path: Path) -> None:
    texts = ("resnet50", "resnet50?weights=none", "resnet50?pool=max", "resnet50?projection=8", "resnet18")
    folders = {provision.cached(spec(text), tmp_path) for text in texts}
    assert len(folders) == len(texts)
    assert provision.cached(spec("resnet50"), tmp_path) in folders
    assert provision.cached(spec("resnet50"), tmp_path, "bf16") not in folders


def test_other_weights_at_the_same_path_are_another_bundle(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    found = spec(f"m=file:{file}?architecture=resnet18")
    before = provision.cached(found, tmp_path)
    assert provision.cached(found, tmp_path) == before
    file.write_bytes(b"other")
    assert provision.cached(found, tmp_path) != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet51", "did you mean resnet50"),
        ("densenet121?wieghts=none", "known settings: source"),
        ("densenet121?pool=middle", "pool"),
        ("densenet121?profile=caffe", "did you mean keras-caffe"),
        ("densenet121?input=0", "input"),
        ("MINE?pool=max", "no model is called"),
        ("x=timm:resnet50?profile=scale01", "set input"),
        ("Café=timm:resnet50.tv_in1k", "name"),
        ("timm:", "no name can be made|source"),
        ("m=model.onnx", "file:model.onnx"),
        ("m=/some/folder?pool=max", "pool cannot be changed of a bundle"),
        ("?pool=max", "NAME=SOURCE"),
    ],
)
def test_what_cannot_be_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises((ConfigError, CatalogError), match=words):
        provision.parse(text)


def test_an_unknown_key_of_a_models_table_lists_the_known(tmp_path: Path) -> None:
    file = tmp_path / "pixvec.toml"
    file.write_text("[models.a]\npoll = 1\n")
    with pytest.raises(ConfigError, match=r"models\.a\.poll.*layer, pool, projection"):
        config.load(file, environ={})


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_bundle_that_cannot_be_made_says_the_last_words(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    request: Any = provision.parse("x=timm:no_such_network?weights=none")
    with pytest.raises(BundleError, match=r"timm .* has no model 'no_such_network'"):
        provision.obtain(request, tmp_path)
