"""ONNX graphs with a pointer to a file, in every place that the format has for one; and ways to load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from pixvec_server import bundle, foreign
from pixvec_server.backends.base import BackendOptions, Kind, Placement
from pixvec_server.backends.select import factory
from pixvec_server.spec import ModelSpec
from support import tiny

SECRET = np.full(4, 1.25e30, np.float32)
GOOD = np.arange(1, 5, dtype=np.float32)

Change = Callable[[onnx.ModelProto, TensorProto], None]


def in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["spare"], value=tensor))


def _in_tensors_of_an_attribute(model: onnx.ModelProto, tensor: TensorProto) -> None:
    in_attribute(model, tensor)
    attribute = model.graph.node[-1].attribute[0]
    attribute.tensors.append(attribute.t)
    attribute.ClearField("t")
    attribute.type = AttributeProto.TENSORS


def _branch(tensor: TensorProto, *, initializer: bool) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, [4])
    nodes = [] if initializer else [helper.make_node("Constant", [], [tensor.name], value=tensor)]
    return helper.make_graph(nodes, "branch", [], [value], [tensor] if initializer else [])


def _in_subgraph(model: onnx.ModelProto, tensor: TensorProto, *, initializer: bool = True) -> None:
    branch = _branch(tensor, initializer=initializer)
    model.graph.initializer.append(helper.make_tensor("which", TensorProto.BOOL, [], [1]))
    model.graph.node.append(
        helper.make_node("If", ["which"], ["spare"], then_branch=branch, else_branch=branch)
    )


def _in_attribute_of_subgraph(model: onnx.ModelProto, tensor: TensorProto) -> None:
    _in_subgraph(model, tensor, initializer=False)


def _in_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(helper.make_tensor("where", TensorProto.INT64, [4], [0, 1, 2, 3]))
    model.graph.sparse_initializer.append(sparse)


def _function(model: onnx.ModelProto) -> onnx.FunctionProto:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(
        helper.make_function("evil", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])
    )
    model.opset_import.append(helper.make_opsetid("evil", 1))
    model.graph.node.append(helper.make_node("F", ["pixels"], ["spare"], domain="evil"))
    return model.functions[-1]


def _in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    _function(model).node.append(helper.make_node("Constant", [], ["spare"], value=tensor))


def _in_default_of_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    function = _function(model)
    function.attribute_proto.append(helper.make_attribute("value", tensor))
    node = helper.make_node("Constant", [], ["spare"])
    refers = AttributeProto(name="value", ref_attr_name="value", type=AttributeProto.TENSOR)
    node.attribute.append(refers)
    function.node.append(node)


def _in_training(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


def in_weights_of_the_output(model: onnx.ModelProto, tensor: TensorProto) -> None:
    """The one tensor that every answer is computed with."""
    tensor.name = "added"
    del model.graph.initializer[:]
    model.graph.initializer.append(tensor)


PLACES: dict[str, Change] = {
    "initializer": in_initializer,
    "attribute": in_attribute,
    "tensors of an attribute": _in_tensors_of_an_attribute,
    "subgraph": _in_subgraph,
    "attribute of a subgraph": _in_attribute_of_subgraph,
    "sparse tensor": _in_sparse,
    "function": _in_function,
    "default of a function": _in_default_of_function,
    "training": _in_training,
    "weights": in_weights_of_the_output,
}


def pointer(location: str, **more: str) -> TensorProto:
    """Return a tensor of four numbers that are kept in another file."""
    tensor = TensorProto(name="evil", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@dataclass(frozen=True)
class Trap:
    """A model folder, and beside it a folder that nothing may touch."""

    folder: Path
    outside: Path

    @property
    def secret(self) -> Path:
        """A file that a pointer could be followed to."""
        return self.outside / "secret.bin"


def graph_with(place: Change, tensor: TensorProto) -> onnx.ModelProto:
    """A graph that answers the first four numbers of its input plus `added`; in it a pointer."""
    # As a bundle's: uint8 pixels in, and an output by the bundle's own name.
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [0, -1]),
        helper.make_tensor("from", TensorProto.INT64, [1], [0]),
        helper.make_tensor("to", TensorProto.INT64, [1], [4]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
    ]
    nodes = [
        *(helper.make_node("Constant", [], [constant.name], value=constant) for constant in constants),
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("Slice", ["flat", "from", "to", "axis"], ["first"]),
        helper.make_node("Add", ["first", "added"], ["out_embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "evil",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("out_embedding", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor("added", TensorProto.FLOAT, [4], [0.0] * 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    place(model, tensor)
    return model


def as_bundle(trap: Trap, model: onnx.ModelProto, *listed: str) -> Path:
    """Make it a bundle whose manifest is honest about its graph and about the files `listed`."""
    whole = tiny.write(trap.folder.parent / "whole")
    (trap.folder / "image.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((whole / bundle.MANIFEST).read_text())
    output = {**manifest["outputs"]["embedding"], "shape": [4], "dimensions": [4], "int8_scales": [0.01]}
    manifest["outputs"] = {"embedding": output}
    manifest["files"] = {
        name: bundle.record(trap.folder / name).model_dump() for name in ("image.onnx", *listed)
    }
    (trap.folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    return trap.folder


def wrap(trap: Trap, model: onnx.ModelProto, output: str = "out_embedding") -> Path:
    """Wrap it as a graph from elsewhere; return the folder of what was written."""
    path = trap.folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    keys = "height = 8\nwidth = 8\nlayout = 'nhwc'\ndtype = 'uint8'\n"
    path.with_name("model.onnx.toml").write_text(f"{keys}[outputs]\nembedding = '{output}'\n")
    scratch = trap.folder.parent / "scratch"
    scratch.mkdir()
    foreign.wrap(ModelSpec(name="x", source=f"file:{path}"), scratch)
    return scratch


def answer(folder: Path, kind: Kind = "onnx") -> list[float]:
    """Load a bundle into an engine and return its answer to a black image: the numbers of `added`."""
    made = factory(kind)(bundle.load(folder), Placement(kind, "cpu", "fp32", ""), BackendOptions(1, 1))
    batch = made.run("image", np.zeros((1, 8, 8, 3), np.uint8), ("embedding",))["embedding"]
    found: list[float] = batch[0].tolist()
    made.close()
    return found
