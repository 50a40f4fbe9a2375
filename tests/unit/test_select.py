"""What `auto` weighs, and what a wish that cannot be met is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import get_args

import pytest
from support.processor import needs_bf16, needs_no_bf16

from pixvec_server.backends import select
from pixvec_server.backends.base import Kind, Placement
from pixvec_server.config import TEST_CPU
from pixvec_server.cpu import Processor
from pixvec_server.errors import BackendError
from pixvec_server.manifest import Precision


def _only(*kinds: Kind) -> Callable[[Kind], bool]:
    return lambda kind: kind in kinds


def _choose(backend: str, device: str, precision: str, *present: Kind) -> Placement:
    return select.choose(backend, device, precision, present=_only(*present))


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (("onnx", "openvino", "torch"), "openvino"),
        (("onnx", "torch"), "onnx"),
        (("torch",), "torch"),
    ],
)
def test_auto_takes_the_fastest_installed_and_says_why(present: tuple[Kind, ...], expected: str) -> None:
    placement = _choose("auto", "cpu", "auto", *present)
    assert (placement.kind, placement.device, placement.precision) == (expected, "cpu", "fp32")
    assert "openvino > onnx > torch" in placement.why
    assert "device cpu asked for" in placement.why


def test_auto_says_what_it_passed_over() -> None:
    assert "openvino: not installed" in _choose("auto", "cpu", "auto", "onnx").why


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what this machine's processor has beyond AVX2."""
    monkeypatch.setenv(TEST_CPU, "baseline")


@needs_bf16
def test_bf16_by_name_goes_where_it_runs() -> None:
    assert _choose("auto", "cpu", "bf16", "onnx", "torch").kind == "torch"
    assert not _choose("torch", "cpu", "bf16", "torch").emulated


@pytest.mark.usefixtures("baseline")
@pytest.mark.parametrize("backend", ["auto", "onnx", "openvino"])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_bf16_on_a_processor_without_it_is_an_error_that_names_the_alternatives(
    backend: str, device: str
) -> None:
    if device == "auto" and select._driver():
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(BackendError) as caught:
        _choose(backend, device, "bf16", "onnx", "openvino", "torch")
    for words in ("has no bf16 arithmetic", "use precision fp32", "device cuda", "backend torch emulates"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("baseline")
def test_emulation_is_offered_only_where_torch_is() -> None:
    with pytest.raises(BackendError, match=r"use precision fp32, a processor with bf16, or device cuda$"):
        _choose("auto", "cpu", "bf16", "onnx", "openvino")


@pytest.mark.usefixtures("baseline")
def test_torch_asked_for_by_name_emulates_bf16() -> None:
    placement = _choose("torch", "cpu", "bf16", "torch")
    assert (placement.kind, placement.precision, placement.emulated) == ("torch", "bf16", True)
    assert not _choose("torch", "cpu", "auto", "torch").emulated


@pytest.mark.usefixtures("baseline")
@pytest.mark.parametrize("backend", ["auto", "onnx", "openvino", "torch"])
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_bundle_stored_in_bf16_needs_a_processor_with_it(backend: str, precision: str) -> None:
    with pytest.raises(BackendError, match=r"stored in bf16 cannot run here.*export it in fp32"):
        select.choose(backend, "cpu", precision, stored="bf16", present=_only("onnx", "openvino", "torch"))


@pytest.mark.usefixtures("baseline")
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_fp32_needs_no_feature(precision: str) -> None:
    assert _choose("auto", "cpu", precision, "onnx", "openvino").kind == "openvino"


@pytest.mark.parametrize(
    ("features", "words"),
    [(frozenset({"avx512f"}), "Test CPU, has no bf16"), (None, "Test CPU, is not known to have bf16")],
)
def test_an_error_tells_no_feature_from_an_unknown_one(
    features: frozenset[str] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "processor", lambda: Processor("Test CPU", features))
    with pytest.raises(BackendError, match=words):
        _choose("auto", "cpu", "bf16", "onnx", "torch")


@pytest.mark.parametrize(("stored", "kind"), [("fp32", "torch"), ("bf16", "")])
def test_arm_with_bf16_runs_it_in_torch_where_openvino_does_not(
    stored: Precision, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "processor", lambda: Processor("Arm", frozenset({"asimd", "bf16"})))
    monkeypatch.setattr(select, "_openvino_has_bf16", lambda: False)
    present = _only("onnx", "openvino", "torch")
    if kind:
        placement = select.choose("auto", "cpu", "bf16", stored=stored, present=present)
        assert (placement.kind, placement.emulated) == (kind, False)
    else:
        with pytest.raises(BackendError, match="export it in fp32"):
            select.choose("auto", "cpu", "bf16", stored=stored, present=present)


def test_nothing_installed_is_an_error() -> None:
    with pytest.raises(BackendError, match="no backend runs fp32 on cpu"):
        _choose("auto", "cpu", "auto")


@pytest.mark.parametrize(
    ("backend", "precision", "words"),
    [
        pytest.param("onnx", "bf16", "export it in bf16, or take openvino", marks=needs_bf16),
        ("onnx", "fp16", "export it in fp16$"),
        ("openvino", "fp16", "a bundle exported in fp16"),
        pytest.param("torch", "fp16", "take bf16", marks=needs_bf16),
        pytest.param("torch", "fp16", "take fp32", marks=needs_no_bf16),
    ],
)
def test_a_precision_that_a_backend_lacks_names_the_mend(backend: str, precision: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        _choose(backend, "cpu", precision, "onnx", "openvino", "torch")


def test_a_backend_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(BackendError, match=r"needs openvino.*pip install 'pixvec\[cpu\]'"):
        _choose("openvino", "cpu", "auto", "onnx")


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("onnx", "is a CPU build.*pixvec.gpu|libcuda"),
        ("openvino", "runs on the CPU"),
        ("torch", "CUDA"),
        ("auto", "no backend runs fp32 on cuda:0"),
    ],
)
def test_cuda_asked_for_and_absent_is_an_error_that_names_the_missing_piece(backend: str, words: str) -> None:
    if select._driver():
        pytest.skip("this machine has an NVIDIA driver")
    if backend == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    here = [kind for kind in get_args(Kind) if select.installed(kind)]
    with pytest.raises(BackendError, match=words):
        _choose(backend, "cuda", "auto", *here)


def test_auto_device_without_a_driver_is_the_cpu() -> None:
    if select._driver():
        pytest.skip("this machine has an NVIDIA driver")
    assert _choose("auto", "auto", "auto", "onnx", "torch").device == "cpu"


def test_a_cuda_index_is_read() -> None:
    assert Placement("onnx", "cuda:3", "fp32", "").cuda_index == 3


@pytest.mark.parametrize(
    ("kind", "device", "wanted", "words"),
    [
        ("onnx", "cpu", "cuda_graph", "model.cuda_graph = true, and the model runs on onnx, cpu"),
        ("openvino", "cpu", "cuda_graph", "onnx and torch with device cuda"),
        ("onnx", "cpu", "tensorrt", "model.tensorrt = true, and the model runs on onnx, cpu"),
        ("torch", "cuda:0", "tensorrt", "TensorRT is for onnx"),
        ("onnx", "cuda:0", "tensorrt", "model.tensorrt = true: .*(libnvinfer|pixvec.gpu)"),
    ],
)
def test_what_is_added_to_cuda_needs_its_place(kind: str, device: str, wanted: str, words: str) -> None:
    settings = {"cuda_graph": False, "tensorrt": False, wanted: True}
    with pytest.raises(BackendError, match=words):
        select.accelerated(Placement(kind, device, "fp32", ""), **settings)


def test_tensorrt_is_named_where_the_vectors_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Placement("onnx", "cuda:0", "fp16", "asked for")
    assert select.accelerated(plain, cuda_graph=True, tensorrt=False) == plain
    monkeypatch.setattr("pixvec_server.backends.onnx.missing_tensorrt", lambda: "")
    place = select.accelerated(plain, cuda_graph=False, tensorrt=True)
    assert (plain.engine, place.engine) == ("onnx", "onnx-tensorrt")
    assert "TensorRT" in place.why


def test_a_backend_of_ones_own_is_named_by_its_module_and_class() -> None:
    placement = _choose("json:JSONDecoder", "auto", "auto")
    assert (placement.kind, placement.device, placement.precision) == ("json:JSONDecoder", "cpu", "fp32")
    assert select.factory(placement.kind) is json.JSONDecoder  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("kind", ["no.such.module:Engine", "json:NoSuchEngine"])
def test_a_backend_of_ones_own_that_is_not_there_is_named(kind: str) -> None:
    with pytest.raises(BackendError, match=rf"model.backend = '{kind}'.*MODULE:CLASS on PYTHONPATH"):
        select.factory(kind)
