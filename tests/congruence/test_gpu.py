"""The CUDA engines against the CPU's. They have never run: no machine of ours has had a device so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pixvec_server.backends import select
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.probes import pictures

if TYPE_CHECKING:
    from pixvec_server.bundle import Bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not select._driver(), reason="no NVIDIA driver (libcuda.so.1) on this machine"),
]
OPTIONS = BackendOptions(threads=2, instances=1)


def _cosines(left: Any, right: Any) -> Any:
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (left, right))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(
    ("kind", "precision", "least"),
    [("onnx", "fp32", 0.9999), ("torch", "fp32", 0.9999), ("torch", "bf16", 0.98), ("torch", "fp16", 0.999)],
)
def test_cuda_agrees_with_the_cpu(kind: Any, precision: Any, least: float, default_bundle: Bundle) -> None:
    images = pictures(224, 224, 32)
    cpu = select.factory("torch")(default_bundle, Placement("torch", "cpu", "fp32", "test"), OPTIONS)
    expected = cpu.run("image", images, ("embedding", "logits"))
    device = select.choose(kind, "cuda", precision)
    cuda = select.factory(kind)(default_bundle, device, OPTIONS)
    got = cuda.run("image", images, ("embedding", "logits"))
    for name, values in got.items():
        assert _cosines(expected[name], values).min() >= least, name
    cuda.close()
    cpu.close()


def test_auto_takes_cuda_where_it_is() -> None:
    assert select.choose("auto", "auto", "auto").device == "cuda:0"
