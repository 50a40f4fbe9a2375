"""The same question asked of two implementations: served vectors against the upstream library's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import fidelity, photos, reference
from support.processor import needs_bf16
from support.servers import serve

import pixvec
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.backends.select import factory
from pixvec_server.probes import pictures

if TYPE_CHECKING:
    from support.servers import Server

    from pixvec_server.bundle import Bundle

PICTURES = [photos.jpeg(name) for name in photos.NAMES]
PICTURES += [photos.jpeg(name, scale=3) for name in photos.NAMES if photos.image(name).width < 700]
PICTURES += [photos.data(name) for name in photos.NAMES if name.endswith("png")]


@pytest.fixture(scope="module")
def expected() -> Any:
    return reference.embed(PICTURES)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_default_mode_is_the_upstream_librarys_vector(server: Server, expected: Any) -> None:
    with pixvec.Client(server.target) as client:
        got = client.embed_batch(PICTURES)
    result = fidelity.agreement(expected, got)
    print(f"\ndefault, {len(PICTURES)} pictures: {result}")
    assert len(PICTURES) >= 20
    assert result.least >= 0.9995
    assert result.overlap_at_10 >= 0.99
    assert result.same_nearest >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "flags", [("--decode", "fast"), pytest.param(("--precision", "bf16"), marks=needs_bf16)]
)
def test_a_faster_mode_is_near_and_says_its_name(flags: tuple[str, str], expected: Any) -> None:
    with serve(*flags) as fast, pixvec.Client(fast.target) as client:
        got = client.embed_batch(PICTURES)
        build = client.model().build
    result = fidelity.agreement(expected, got)
    print(f"\n{' '.join(flags)}: {result}")
    assert flags[1] in build
    assert result.mean >= 0.998


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch"])
def test_backends_agree_and_a_vector_is_the_same_in_any_batch(kind: Any, default_bundle: Bundle) -> None:
    options = BackendOptions(threads=2, instances=1)
    images = pictures(224, 224, 32)
    torch_made = _run("torch", default_bundle, options, images)
    whole = _run(kind, default_bundle, options, images)
    for name, values in whole.items():
        assert _worst(torch_made[name], values) >= 0.9999, name
    backend = factory(kind)(default_bundle, Placement(kind, "cpu", "fp32", "test"), options)
    for size in (1, 2):
        part = backend.run("image", images[:size], ("embedding",))["embedding"]
        assert _worst(whole["embedding"][:size], part) >= 0.9999
    backend.close()


def _run(kind: Any, bundle: Bundle, options: BackendOptions, images: Any) -> dict[str, Any]:
    backend = factory(kind)(bundle, Placement(kind, "cpu", "fp32", "test"), options)
    values = dict(backend.run("image", images, ("embedding", "logits", "features")))
    backend.close()
    return values


def _worst(left: Any, right: Any) -> float:
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (left, right))
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def test_sync_and_async_clients_get_the_same(server: Server) -> None:
    import asyncio

    async def ask() -> Any:
        async with pixvec.AsyncClient(server.target) as client:
            return await client.embed_batch(PICTURES[:5])

    with pixvec.Client(server.target) as client:
        assert np.allclose(client.embed_batch(PICTURES[:5]), asyncio.run(ask()), atol=1e-5)
        assert np.allclose(list(client.embed_iter(PICTURES[:5], batch_size=2)), asyncio.run(ask()), atol=1e-5)
