"""Weights that lie on this machine, projections behind them, and weights that nobody learnt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pixvec_server import bundle
from pixvec_server.catalog import checked
from pixvec_server.errors import BundleError, CatalogError
from pixvec_server.models.outputs import recipe
from pixvec_server.module import build
from pixvec_server.module.weights import read_checkpoint, read_wheel, tensors_sha256
from pixvec_server.provision import parse
from pixvec_server.spec import ModelSpec, Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pixvec_server.module import Built

NETWORK, WIDTH = "test_resnet", 96
SMALL = Preprocess(height=32, width=32)
PIXELS = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), np.uint8))
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing by more, and wait for them where others work too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(seed: int = 1, classes: int = 1000) -> Tensors:
    """Weights as if somebody had trained them: those of another seed than ours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(NETWORK, num_classes=classes)
        tensors: Tensors = network.state_dict()
        # As training would have left them: untrained, the last norm of each block is zero.
        norms = [name for name, value in tensors.items() if value.ndim == 1 and not name.startswith("fc.")]
        return tensors | {name: torch.rand(tensors[name].shape) + 0.5 for name in norms}


def safe(path: Path, tensors: Tensors) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def pickled(path: Path, held: Any) -> Path:
    torch.save(held, path)
    return path


def spec(**more: Any) -> ModelSpec:
    base = {"name": "x", "source": f"timm:{NETWORK}.r160_in1k", "weights": "none", "preprocess": SMALL}
    return ModelSpec.model_validate(base | more)


def local(path: Path, **more: Any) -> ModelSpec:
    return spec(source=f"file:{path}", architecture=NETWORK, weights="pretrained", **more)


def answer(built: Built, output: str = "embedding") -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = built.image(PIXELS)[built.image.outputs.index(output)]
    return found


def reference(tensors: Tensors) -> torch.Tensor:
    """The pooled vector by timm alone."""
    network = timm.create_model(NETWORK, num_classes=0)
    network.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("fc.")})
    with torch.inference_mode():
        found: torch.Tensor = network.eval()(PIXELS.permute(0, 3, 1, 2).float() / 255)
    return found


def test_a_checkpoint_is_the_network_that_it_was_saved_from(tmp_path: Path) -> None:
    tensors = trained()
    built = build(local(safe(tmp_path / "x.safetensors", tensors)))
    assert torch.allclose(answer(built), reference(tensors), atol=1e-5)
    assert not torch.allclose(answer(built), reference(trained(2)), atol=1e-2)
    assert built.spec.trained
    assert built.weights_sha256 == tensors_sha256(tensors)


def _prefixed(tensors: Tensors) -> Tensors:
    return {f"module.{name}": value for name, value in tensors.items()}


WRAPPINGS: dict[str, Callable[[Tensors], Any]] = {
    "bare": lambda tensors: tensors,
    "module.": _prefixed,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3, "loss": 0.5},
    "model": lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1, "steps": [1, 2]}},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors},
    "network": lambda tensors: {"network": tensors},
    "module. in state_dict": lambda tensors: {"state_dict": _prefixed(tensors)},
    "the average of training": lambda tensors: {"state_dict": trained(9), "state_dict_ema": tensors},
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_every_suffix_of_a_pickle_is_read_when_it_is_allowed(tmp_path: Path, suffix: str) -> None:
    path = pickled(tmp_path / f"x{suffix}", {"a": torch.ones(2)})
    assert torch.equal(read_checkpoint(path, allow_pickle=True)["a"], torch.ones(2))
    with pytest.raises(BundleError, match="is a pickle, which may carry code"):
        read_checkpoint(path, allow_pickle=False)


@pytest.mark.parametrize("way", WRAPPINGS)
def test_a_checkpoint_is_found_inside_of_what_training_saves(tmp_path: Path, way: str) -> None:
    tensors = trained()
    path = pickled(tmp_path / "x.pt", WRAPPINGS[way](tensors))
    built = build(local(path, allow_pickle=True))
    assert built.weights_sha256 == tensors_sha256(tensors)
    assert torch.allclose(answer(built), reference(tensors), atol=1e-5)


def test_the_prefix_of_several_devices_is_taken_off_safetensors_too(tmp_path: Path) -> None:
    built = build(local(safe(tmp_path / "x.safetensors", _prefixed(trained()))))
    assert built.weights_sha256 == tensors_sha256(trained())


def test_the_same_tensors_are_the_same_weights_in_every_file(tmp_path: Path) -> None:
    tensors = trained()
    one = build(local(safe(tmp_path / "x.safetensors", tensors)))
    two = build(local(pickled(tmp_path / "x.pt", tensors), allow_pickle=True))
    three = build(spec(weights=str(safe(tmp_path / "y.safetensors", tensors))))
    assert one.weights_sha256 == two.weights_sha256 == three.weights_sha256
    assert torch.equal(answer(one), answer(two))
    assert torch.equal(answer(one), answer(three))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    tensors = {n: v.half() if v.is_floating_point() else v for n, v in trained().items()}
    built = build(local(safe(tmp_path / "x.safetensors", tensors)))
    assert {value.dtype for value in built.image.parameters()} == {torch.float32}
    assert torch.allclose(answer(built), reference({n: v.float() for n, v in tensors.items()}), atol=1e-5)


@pytest.mark.parametrize("classes", [3, 1000, 4000])
def test_a_head_of_other_classes_is_taken_as_it_is(tmp_path: Path, classes: int) -> None:
    tensors = trained(classes=classes)
    built = build(local(safe(tmp_path / "x.safetensors", tensors)))
    assert answer(built, "logits").shape == (3, classes)
    expected = reference(tensors) @ tensors["fc.weight"].T + tensors["fc.bias"]
    assert torch.allclose(answer(built, "logits"), expected, atol=1e-4)


def test_a_checkpoint_without_a_head_has_no_logits(tmp_path: Path) -> None:
    tensors = {name: value for name, value in trained().items() if not name.startswith("fc.")}
    built = build(local(safe(tmp_path / "x.safetensors", tensors)))
    assert "logits" not in built.image.outputs
    assert torch.allclose(answer(built), reference(tensors), atol=1e-5)


def _without(tensors: Tensors, *names: str) -> Tensors:
    return {name: value for name, value in tensors.items() if name not in names}


FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (lambda t: _without(t, "layer1.0.conv1.weight"), r"layer1\.0\.conv1\.weight is missing"),
    "two missing": (
        lambda t: _without(t, "conv1.0.weight", "fc.bias"),
        r"conv1\.0\.weight is missing; fc\.bias is missing$",
    ),
    "extra": (lambda t: {**t, "adapter.weight": torch.zeros(1)}, r"adapter\.weight is unknown$"),
    "another shape": (
        lambda t: {**t, "conv1.0.weight": torch.zeros(16, 3, 5, 5)},
        r"conv1\.0\.weight has shape \[16, 3, 5, 5\], expected \[16, 3, 3, 3\]$",
    ),
    "turned": (
        lambda t: {**t, "fc.bias": torch.zeros(1, 1000)},
        r"fc\.bias has shape \[1, 1000\], expected \[1000\]",
    ),
    "head without rows": (lambda t: {**t, "fc.weight": torch.tensor(1.0)}, r"fc\.weight is unknown"),
    "all others": (lambda t: {f"trunk.{n}": v for n, v in t.items()}, r"is missing.* and \d+ more$"),
    "nothing": (lambda _: {"x": torch.zeros(1)}, r"is missing.* and \d+ more$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_names_of_its_tensors(
    tmp_path: Path, fault: str
) -> None:
    change, words = FAULTS[fault]
    path = safe(tmp_path / "x.safetensors", change(trained()))
    with pytest.raises(BundleError, match=words) as caught:
        build(local(path))
    assert f"file:{path} does not fit the network: " in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.safetensors", "no such file of weights"),
        ("folder.safetensors", "no such file of weights"),
        ("x.h5", r"weights come as \.safetensors, \.pt"),
        ("x", r"weights come as \.safetensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for other in ("x.h5", "x"):
        (tmp_path / other).write_bytes(b"weights")
    with pytest.raises(BundleError, match=words) as caught:
        build(local(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


ODD: dict[str, Callable[[], Any]] = {
    "a list": lambda: [torch.zeros(1)],
    "one tensor": lambda: torch.zeros(1),
    "numbers": lambda: {"a": 1.0},
    "a table in a table in a table": lambda: {"model": {"state_dict": {"a": torch.zeros(1)}}},
    "a network": lambda: torch.nn.Linear(2, 2),
    "arguments of a program": lambda: {"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)},
    "no numbers": lambda: {"a": torch.zeros(2, device="meta")},
    "mostly zeros": lambda: {
        "a": torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (4,), check_invariants=True)
    },
    "complex": lambda: {"a": torch.zeros(2, dtype=torch.complex64)},
    "more than the file holds": lambda: {"a": torch.zeros(1).expand(1000)},
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_pickle_of_anything_but_plain_tensors_is_refused(tmp_path: Path, kind: str) -> None:
    path = pickled(tmp_path / "x.pt", ODD[kind]())
    with pytest.raises(BundleError, match=r"is no table of tensors|holds more than tensors"):
        read_checkpoint(path, allow_pickle=True)


def test_complex_numbers_are_no_weights(tmp_path: Path) -> None:
    path = safe(tmp_path / "x.safetensors", {"a": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(BundleError, match="is no table of tensors"):
        read_checkpoint(path, allow_pickle=False)


# Names of networks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"source": "file:x.safetensors"}, r"file:x\.safetensors is weights alone.*architecture"),
        ({"source": "timm:test_resnt.r160_in1k"}, r"has no model 'test_resnt\.r160_in1k'"),
        ({"source": "timm:test_resnet.nope"}, r"nope.*test_resnet\.r160_in1k"),
        ({"architecture": "nope"}, "has no model 'nope'"),
        ({"layer": "fc2"}, r"layer = fc2: .* has features, pooled, logits"),
        ({"layer": "projected", "source": "open_clip:nope/openai"}, "has no architecture 'nope'"),
    ],
)
def test_a_network_that_nobody_has_is_refused_with_what_there_is(more: dict[str, Any], words: str) -> None:
    if more.get("source", "").startswith("open_clip"):
        pytest.importorskip("open_clip")
    with pytest.raises(CatalogError, match=words):
        build(spec(**more))


@pytest.mark.parametrize("package", ["no-such-package", "../x", ".x", "os", "pixvec_server"])
def test_a_package_without_weights_is_refused(package: str) -> None:
    with pytest.raises(BundleError, match=r"is not installed|carries no weights"):
        read_wheel(package)


def test_a_path_may_hold_any_sign(tmp_path: Path) -> None:
    folder = tmp_path / "a@b=c d"
    folder.mkdir()
    path = safe(folder / "x.safetensors", trained())
    request = parse(f"mine=file:{path}?architecture={NETWORK}&profile=clip&input=32")
    assert request.spec is not None
    assert build(request.spec).weights_sha256 == tensors_sha256(trained())


# Projections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "proj.", "module.head."])
def test_a_projection_is_read_from_a_checkpoint(tmp_path: Path, prefix: str, bias: bool) -> None:
    rng = torch.Generator().manual_seed(3)
    weight, offset = torch.randn(8, WIDTH, generator=rng), torch.randn(8, generator=rng)
    tensors = {f"{prefix}weight": weight, **({f"{prefix}bias": offset} if bias else {})}
    path = safe(tmp_path / "p.safetensors", tensors)
    built = build(spec(weights=str(safe(tmp_path / "x.safetensors", trained())), projection=str(path)))
    expected = answer(built, "pooled") @ weight.T + (offset if bias else 0)
    assert torch.allclose(answer(built), expected, atol=1e-5)
    assert built.spec.trained


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": torch.zeros(8, 95)}, "95.* has 96"),
        ({"weight": torch.zeros(96, 8)}, "8.* has 96"),
        ({"weight": torch.zeros(0, 96)}, " 0 .* has 96"),
        ({"weight": torch.zeros(8)}, "a projection is a `weight`"),
        ({"kernel": torch.zeros(8, 96)}, "a projection is a `weight`"),
        ({"weight": torch.zeros(8, 96), "bias": torch.zeros(7)}, r"bias has shape \[7\], expected \[8\]"),
        ({"weight": torch.zeros(8, 96), "scale": torch.zeros(1)}, "scale is unknown"),
    ],
)
def test_a_projection_that_does_not_fit_is_refused(tmp_path: Path, tensors: Tensors, words: str) -> None:
    path = safe(tmp_path / "p.safetensors", tensors)
    with pytest.raises(BundleError, match=words) as caught:
        build(spec(projection=str(path)))
    assert str(path) in str(caught.value)


def test_another_projection_is_another_space(tmp_path: Path) -> None:
    hashes = {build(spec()).weights_sha256}
    for i in range(2):
        path = safe(tmp_path / f"{i}.safetensors", {"weight": torch.full((8, WIDTH), float(i))})
        hashes.add(build(spec(projection=str(path))).weights_sha256)
    assert len(hashes) == 3


@pytest.mark.parametrize("size", [1, 7, 512])
def test_a_seeded_projection_is_the_same_every_time_and_called_untrained(tmp_path: Path, size: int) -> None:
    path = str(safe(tmp_path / "x.safetensors", trained()))
    one = build(spec(weights=path, projection=str(size)))
    torch.manual_seed(99)
    two = build(spec(weights=path, projection=str(size)))
    assert answer(one).shape == (3, size)
    assert torch.equal(answer(one), answer(two))
    assert one.weights_sha256 == two.weights_sha256
    assert not one.spec.trained
    assert build(spec(weights=path)).spec.trained


@pytest.mark.parametrize("size", ["0", "00", "65537", "9" * 12, "²", "٤٤٤٤٤٤"])
def test_a_projection_of_no_size_is_refused_before_anything_is_loaded(size: str) -> None:
    with pytest.raises(CatalogError, match="projection = "):
        checked(spec().model_dump() | {"projection": size}, "here")


# Weights that nobody learnt ----------------------------------------------------------------------


def test_random_weights_are_the_same_every_time_and_leave_torchs_own_numbers_alone() -> None:
    torch.manual_seed(41)
    expected = torch.rand(4)
    torch.manual_seed(41)
    one = build(spec())
    two = build(spec(projection="16"))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(answer(one, "pooled"), answer(two, "pooled"))
    assert torch.equal(answer(one), answer(build(spec())))
    assert one.weights_sha256 == build(spec()).weights_sha256
    assert not one.spec.trained


def test_random_weights_are_those_of_no_other_network() -> None:
    hashes = {
        build(spec(source=f"timm:{name}")).weights_sha256
        for name in ("test_resnet", "test_vit", "test_byobnet")
    }
    assert len(hashes) == 3


def test_what_one_model_draws_changes_no_other() -> None:
    alone = answer(build(spec()))
    build(spec(source="timm:test_vit"))
    assert torch.equal(answer(build(spec())), alone)


@pytest.mark.parametrize(
    ("more", "untrained"),
    [
        ({"weights": "none"}, {"embedding", "pooled"}),
        ({"weights": "none", "projection": "8"}, {"embedding", "pooled"}),
        ({"weights": "pretrained", "projection": "8"}, {"embedding"}),
        ({"weights": "pretrained", "projection": "p.safetensors"}, set()),
        ({"weights": "x.safetensors"}, set()),
    ],
)
def test_the_space_of_numbers_that_nobody_learnt_says_so(more: dict[str, str], untrained: set[str]) -> None:
    given = spec(**more)
    spaces = {}
    for output in ("embedding", "pooled"):
        learnt = given.trained if output == "embedding" else given.weights != "none"
        spaces[output] = bundle.space_id("a" * 64, recipe(given, output), SMALL, trained=learnt)
    assert {name for name, space in spaces.items() if space.startswith("s1-untrained-")} == untrained


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_bundle_with_a_seeded_projection_says_which_outputs_were_learnt(tmp_path: Path) -> None:
    from pixvec_server.export import export

    said: list[str] = []
    path = safe(tmp_path / "x.safetensors", trained())
    made = export(local(path, projection="8"), tmp_path / "out", said.append)
    manifest = made.manifest
    assert not manifest.trained
    untrained = {name for name, record in manifest.outputs.items() if "untrained" in record.space}
    assert untrained == {"embedding"}
    assert any("RANDOM" in words for words in said)
    assert manifest.outputs["embedding"].shape == (8,)
    assert manifest.outputs["pooled"].shape == (WIDTH,)
