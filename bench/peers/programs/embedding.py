"""What the peers' programs share: two ways to read a picture, two engines. Runs in their environments."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

U8: TypeAlias = NDArray[np.uint8]
F32: TypeAlias = NDArray[np.float32]

SETTINGS: dict[str, Any] = json.loads(os.environ["PEER"])
_SIDE, _SHORT = SETTINGS["side"], SETTINGS["short_side"]
_FILTER = Image.Resampling[SETTINGS["interpolation"].upper()]


def two_steps(data: bytes) -> U8:
    """Read with Pillow, resize the shorter side and crop the centre, as timm's transform does."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = _resized(*picture.size)
    picture = picture.resize((width, height), _FILTER)
    left, top = round((width - _SIDE) / 2), round((height - _SIDE) / 2)
    return np.asarray(picture.crop((left, top, left + _SIDE, top + _SIDE)))


def one_box(data: bytes) -> U8:
    """Read with libjpeg-turbo, and resample the crop's own part of the picture once."""
    import simplejpeg

    if simplejpeg.is_jpeg(data):
        picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))
    else:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = _resized(*picture.size)
    across, down = picture.width / width, picture.height / height
    left, top = round((width - _SIDE) / 2), round((height - _SIDE) / 2)
    box = (left * across, top * down, (left + _SIDE) * across, (top + _SIDE) * down)
    return np.asarray(picture.resize((_SIDE, _SIDE), _FILTER, box=box))


def _resized(width: int, height: int) -> tuple[int, int]:
    if width <= height:
        return _SHORT, int(_SHORT * height / width)
    return int(_SHORT * width / height), _SHORT


class OnnxRuntime:
    """The graph in onnxruntime with its own defaults."""

    def __init__(self) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(SETTINGS["graph"], providers=["CPUExecutionProvider"])

    def __call__(self, pixels: U8) -> F32:
        """Embed (n, side, side, 3) uint8."""
        [vectors] = self._session.run(["out_embedding"], {"pixels": pixels})
        return np.asarray(vectors)


class OpenVino:
    """The graph in OpenVINO, cut to the one output that is asked for, its precision said."""

    def __init__(self) -> None:
        # With this package in reach, importing openvino reports the fact to a web analytics service.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        core = openvino.Core()
        whole = core.read_model(SETTINGS["graph"])
        cut = whole.output("out_embedding").get_node().input_value(0)
        precision = {"fp32": "f32", "bf16": "bf16"}[SETTINGS["precision"]]
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": SETTINGS["threads"]}
        compiled = core.compile_model(openvino.Model([cut], whole.get_parameters(), "cut"), "CPU", hints)
        self._request = compiled.create_infer_request()

    def __call__(self, pixels: U8) -> F32:
        """Embed (n, side, side, 3) uint8."""
        self._request.infer([pixels], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data)


def engine() -> Callable[[U8], F32]:
    """Return the engine that was chosen."""
    return OnnxRuntime() if SETTINGS["engine"] == "onnxruntime" else OpenVino()


def reader() -> Callable[[bytes], U8]:
    """Return the way to read a picture that was chosen."""
    return two_steps if SETTINGS["reader"] == "two steps" else one_box
