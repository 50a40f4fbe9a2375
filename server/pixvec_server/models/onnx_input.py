"""The first nodes of an image graph: from uint8 pixels to the numbers that its network expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    import onnx

    from pixvec_server.spec import Preprocess

PIXELS = "pixels"


def pixel_steps(
    preprocess: Preprocess,
    target: str,
    *,
    layout: Literal["nchw", "nhwc"] = "nchw",
    dtype: int = TensorProto.FLOAT,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes from `pixels`, uint8 (n, height, width, 3), to `target`, and their constants.

    The mean and standard deviation apply unless `dtype` (a TensorProto type) is UINT8.
    """
    nodes: list[onnx.NodeProto] = []
    constants = [
        numpy_helper.from_array(np.array(preprocess.mean, np.float32) * 255, "pixvec_mean"),
        numpy_helper.from_array(np.array(preprocess.std, np.float32) * 255, "pixvec_std"),
        numpy_helper.from_array(np.array([2, 1, 0], np.int64), "pixvec_bgr"),
    ]
    last = PIXELS

    def step(kind: str, *more: str, **options: object) -> None:
        nonlocal last
        made = f"pixvec_{len(nodes)}"
        nodes.append(helper.make_node(kind, [last, *more], [made], **options))
        last = made

    if preprocess.channels == "bgr":
        step("Gather", "pixvec_bgr", axis=3)
    if dtype != TensorProto.UINT8:
        step("Cast", to=TensorProto.FLOAT)
        step("Sub", "pixvec_mean")
        step("Div", "pixvec_std")
    if layout == "nchw":
        step("Transpose", perm=[0, 3, 1, 2])
    nodes.append(helper.make_node("Cast", [last], [target], to=dtype))
    used = {word for node in nodes for word in node.input}
    return nodes, [constant for constant in constants if constant.name in used]


def pixels_info(preprocess: Preprocess) -> onnx.ValueInfoProto:
    """Return the description of the input `pixels`; the batch's size is free."""
    shape = ["batch", preprocess.height, preprocess.width, 3]
    return helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, shape)
