"""Repositories of transformers made to harm: with a pickle, or with code of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.hostile import Payload, build

from pixvec_server.errors import BundleError
from pixvec_server.spec import ModelSpec


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder as the hub's, of a tiny vision transformer, without weights."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "repository"
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    more = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | more))
    return folder


def test_the_repository_is_read_when_it_is_good(repository: Path) -> None:
    build(ModelSpec(name="x", source=f"hf:{repository}"))


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_repositorys_pickle_runs_nothing(
    repository: Path, command: dict[str, Payload], form: Callable[[Any], bytes], allow_pickle: bool
) -> None:
    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").write_bytes(form(command))
    with pytest.raises(BundleError):
        build(ModelSpec(name="x", source=f"hf:{repository}", allow_pickle=allow_pickle))


@pytest.mark.parametrize("place", ["config.json", "preprocessor_config.json"])
def test_a_repositorys_code_is_not_run_whatever_a_person_answers(
    repository: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    code = f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"
    code += "from transformers import ViTConfig, ViTImageProcessor, ViTModel\n"
    code += "class C(ViTConfig): pass\nclass M(ViTModel): pass\nclass P(ViTImageProcessor): pass\n"
    (repository / "evil.py").write_text(code)
    table = json.loads((repository / place).read_text())
    # Without these two the library has no class of its own to fall back to.
    kept = {key: value for key, value in table.items() if key not in ("model_type", "image_processor_type")}
    classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoImageProcessor": "evil.P"}
    (repository / place).write_text(json.dumps({**kept, "auto_map": classes}))
    monkeypatch.setattr("builtins.input", lambda *_words: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(repository / "modules"))
    monkeypatch.syspath_prepend(repository / "modules")
    with suppress(BundleError):
        build(ModelSpec(name="x", source=f"hf:{repository}"))
