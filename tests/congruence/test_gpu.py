"""The CUDA path on a device, against the CPU: `make test-gpu`.

They have never run: no machine of ours has had a device so far (docs/gpu.md).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import photos

from pixvec_server.backends import select
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.probes import pictures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pixvec_server.backends.base import Backend
    from pixvec_server.bundle import Bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not select._driver(), reason="no NVIDIA driver (libcuda.so.1) on this machine"),
]
OPTIONS = BackendOptions(threads=2, instances=2)
GRAPHS = BackendOptions(threads=2, instances=2, max_batch=32, cuda_graph=True)
OUTPUTS = ("embedding", "logits")
MIB = 1 << 20


def _cosines(left: Any, right: Any) -> Any:
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (left, right))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _open(kind: str, bundle: Bundle, options: BackendOptions = OPTIONS, precision: Any = "fp32") -> Backend:
    if not select.installed(kind):  # type: ignore[arg-type] # one of ours
        pytest.skip(f"{kind} is not installed")
    if missing := select._no_cuda(kind):  # type: ignore[arg-type] # as above
        pytest.skip(missing)
    return select.factory(kind)(bundle, select.choose(kind, "cuda", precision), options)


@pytest.fixture(scope="module")
def expected(default_bundle: Bundle) -> Iterator[Any]:
    """What the CPU's onnxruntime, which the GPU build has too, makes of 32 pictures."""
    cpu = select.factory("onnx")(default_bundle, Placement("onnx", "cpu", "fp32", "test"), OPTIONS)
    yield cpu.run("image", pictures(224, 224, 32), OUTPUTS)
    cpu.close()


@pytest.mark.parametrize(
    ("kind", "precision", "least"),
    [("onnx", "fp32", 0.9999), ("torch", "fp32", 0.9999), ("torch", "bf16", 0.98), ("torch", "fp16", 0.999)],
)
def test_cuda_agrees_with_the_cpu(
    kind: str, precision: str, least: float, default_bundle: Bundle, expected: Any
) -> None:
    cuda = _open(kind, default_bundle, precision=precision)
    got = cuda.run("image", pictures(224, 224, 32), OUTPUTS)
    for name, values in got.items():
        assert _cosines(expected[name], values).min() >= least, name
    cuda.close()


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("options", [OPTIONS, GRAPHS], ids=["plain", "graphs"])
def test_every_batch_size_from_1_to_32(
    kind: str, options: BackendOptions, default_bundle: Bundle, expected: Any
) -> None:
    cuda = _open(kind, default_bundle, options)
    images = pictures(224, 224, 32)
    for count in (*range(1, 33), 1, 32, 7):
        got = cuda.run("image", images[:count], ("embedding",))["embedding"]
        assert got.shape == (count, 1280)
        assert _cosines(expected["embedding"][:count], got).min() >= 0.9999, count
    cuda.close()


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_graph_computes_what_a_run_does(kind: str, default_bundle: Bundle) -> None:
    images = pictures(224, 224, 32)
    plain, graphs = (_open(kind, default_bundle, options) for options in (OPTIONS, GRAPHS))
    for count in (1, 2, 8, 32):
        left, right = (engine.run("image", images[:count], ("embedding",)) for engine in (plain, graphs))
        scale = float(np.abs(left["embedding"]).max())
        np.testing.assert_allclose(right["embedding"], left["embedding"], rtol=0, atol=1e-3 * scale)
    plain.close()
    graphs.close()


def test_tensorrt_runs_and_keeps_its_engine(default_bundle: Bundle, expected: Any, tmp_path: Path) -> None:
    if not select.installed("onnx") or select._no_cuda("onnx"):
        pytest.skip("onnxruntime-gpu is not installed")
    if missing := select._module("onnx").missing_tensorrt():
        pytest.skip(missing)
    place = select.accelerated(select.choose("onnx", "cuda", "fp32"), cuda_graph=False, tensorrt=True)
    options = BackendOptions(threads=2, instances=1, max_batch=32, engines=tmp_path)
    for _ in range(2):
        engine = select.factory("onnx")(default_bundle, place, options)
        for count in (32, 1, 5):
            got = engine.run("image", pictures(224, 224, 32)[:count], ("embedding",))["embedding"]
            assert _cosines(expected["embedding"][:count], got).min() >= 0.999
        engine.close()
    assert len(list(tmp_path.glob("**/*.engine"))) == 1


def _used_bytes() -> int:
    library = ctypes.CDLL("libcuda.so.1")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    context = ctypes.c_void_p()
    assert library.cuInit(0) == 0
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert library.cuCtxPushCurrent_v2(context) == 0
    assert library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    return total.value - free.value


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("options", [OPTIONS, GRAPHS], ids=["plain", "graphs"])
def test_memory_is_given_back_when_a_model_goes(
    kind: str, options: BackendOptions, default_bundle: Bundle
) -> None:
    images = pictures(224, 224, 32)
    used = []
    for _ in range(4):
        engine = _open(kind, default_bundle, options)
        engine.run("image", images, ("embedding",))
        engine.close()
        del engine
        used.append(_used_bytes())
    # The first round brings what libraries keep for good; after it nothing may grow.
    assert used[-1] - used[0] <= 16 * MIB, [value // MIB for value in used]


def test_pictures_decoded_on_the_device_are_those_of_the_cpu() -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec ([gpu-decode]) is not installed")
    from pixvec_server.preprocess import nvjpeg, turbo

    refused: list[int] = []

    def otherwise(data: bytes, height: int, width: int) -> Any:
        refused.append(len(data))
        return turbo(data, height, width)

    codec = nvjpeg.on_device("cuda:0", otherwise)
    for name in photos.NAMES:
        picture = photos.image(name)
        size = (picture.height, picture.width)
        ours, theirs = (decode(photos.jpeg(name), *size)[:, :, :3] for decode in (turbo, codec))
        difference = np.abs(ours.astype(int) - theirs.astype(int))
        assert difference.mean() <= 1.0, name
        assert _cosines(ours.reshape(1, -1), theirs.reshape(1, -1)).min() >= 0.9999, name
    assert refused == []


def test_auto_takes_cuda_where_it_is() -> None:
    assert select.choose("auto", "auto", "auto").device == "cuda:0"
