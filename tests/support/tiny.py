"""A model of a few hundred weights, written with onnx's own helpers: loads in milliseconds, needs no torch.

`embedding` is a random projection of the 8 x 8 input, so that different pictures get different vectors;
`features` is the scaled input as channels x 8 x 8; `broken` is NaN wherever the picture is all black.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pixvec_server import bundle
from pixvec_server.manifest import Manifest, OutputRecord
from pixvec_server.spec import Preprocess

if TYPE_CHECKING:
    from pathlib import Path

SIDE, SIZE = 8, 32
WEIGHTS = np.random.default_rng(7).normal(size=(SIDE * SIDE * 3, SIZE)).astype(np.float32)


def write(folder: Path, name: str = "tiny", *, seed: int = 7) -> Path:
    """Write the bundle and return its folder."""
    weights = np.random.default_rng(seed).normal(size=(SIDE * SIDE * 3, SIZE)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(weights), str(folder / "image.onnx"))
    record = Preprocess(height=SIDE, width=SIDE, crop=1.0, interpolation="bicubic")
    digest = f"{seed:064x}"

    def output(kind: str, shape: tuple[int, ...], **rest: object) -> OutputRecord:
        space = bundle.space_id(digest, kind, record)
        return OutputRecord.model_validate({"space": space, "shape": shape, **rest})

    scales = (0.01, 0.015, 0.02)
    manifest = Manifest(
        name=name,
        aliases=(f"{name}-alias",),
        source="test:tiny",
        weights_sha256=digest,
        licence="CC0-1.0",
        preprocess=record,
        outputs={
            "embedding": output(
                "embedding", (SIZE,), dimensions=(32, 16, 8), normalized=True, int8_scales=scales
            ),
            "features": output("features", (3, SIDE, SIDE)),
            "broken": output("broken", (SIZE,), dimensions=(SIZE,)),
        },
        files={"image.onnx": bundle.record(folder / "image.onnx")},
    )
    bundle.save(folder, manifest)
    return folder


def _graph(weights: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(np.float32(255), "white"),
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([-1, SIDE * SIDE * 3], np.int64), "flat_shape"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["out_features"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["scaled", "flat_shape"], ["flat"]),
        helper.make_node("Sub", ["flat", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["out_embedding"]),
        helper.make_node("ReduceMax", ["flat", "axis"], ["most"], keepdims=1),
        helper.make_node("Div", ["most", "most"], ["one_or_nan"]),
        helper.make_node("Mul", ["out_embedding", "one_or_nan"], ["out_broken"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("out_embedding", TensorProto.FLOAT, ["n", SIZE]),
            helper.make_tensor_value_info("out_features", TensorProto.FLOAT, ["n", 3, SIDE, SIDE]),
            helper.make_tensor_value_info("out_broken", TensorProto.FLOAT, ["n", SIZE]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
