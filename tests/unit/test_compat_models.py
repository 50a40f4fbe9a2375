"""What the presets behind the compatible names compute, before any server: pooling, features, heads."""

from __future__ import annotations

import numpy as np
import torch

from pixvec_server.module import build
from pixvec_server.provision import parse


def answers(name: str) -> dict[str, torch.Tensor]:
    """The outputs of a preset without its weights, for two pictures."""
    spec = parse(name).spec
    assert spec is not None
    assert spec.preprocess is not None
    shape = (2, spec.preprocess.height, spec.preprocess.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = build(spec).image
    assert image is not None
    with torch.inference_mode():
        return dict(zip(image.outputs, image(torch.from_numpy(pixels)), strict=True))


def test_pupyls_vector_is_the_maximum_over_the_map() -> None:
    found = answers("pupyl-mobilenet?weights=none")
    assert found["features"].shape == (2, 1024, 7, 7)
    assert torch.allclose(found["embedding"], found["features"].amax(dim=(2, 3)), atol=1e-5)
    assert not torch.allclose(found["embedding"].norm(dim=1), torch.ones(2), atol=1e-3)


def test_easydls_features_are_the_map_its_mean_and_the_head() -> None:
    found = answers("easydl-resnet18?weights=none&projection=128")
    shapes = {name: tuple(found[name].shape) for name in ("features", "pooled", "embedding")}
    assert shapes == {"features": (2, 512, 7, 7), "pooled": (2, 512), "embedding": (2, 128)}
    assert torch.allclose(found["features"].mean(dim=(2, 3)), found["pooled"], atol=1e-4)
