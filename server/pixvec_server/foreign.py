"""An ONNX graph from elsewhere, wrapped so that it takes uint8 pixels and names its outputs as pixvec does.

Beside `model.onnx` stands `model.onnx.toml`, which says what the graph expects:

    height = 224            # and width, mean, std, crop, mode …: any key of a preprocessing profile
    width = 224
    layout = "nchw"         # or "nhwc"
    dtype = "float32"       # or "float16", "uint8" (0 to 255, mean and std unused)
    licence = "MIT"
    [outputs]
    embedding = "output"    # pixvec's name = the graph's
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
from onnx import TensorProto, helper
from pydantic import Field, ValidationError

from pixvec_server import bundle
from pixvec_server.errors import BundleError
from pixvec_server.graph_check import run_probes
from pixvec_server.graphfile import externals
from pixvec_server.manifest import Manifest, OutputRecord
from pixvec_server.models.onnx_input import pixel_steps, pixels_info
from pixvec_server.spec import EMBEDDING, Frozen, ModelSpec, Preprocess
from pixvec_server.vectors import int8_scale

if TYPE_CHECKING:
    from pixvec_server.types import F32

_DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
_PROBES = 8
_THEIRS = "theirs/"
_ONE_FILE_BYTES = 1_900_000_000


class Description(Frozen):
    """What stands in `model.onnx.toml` beside the keys of a preprocessing profile."""

    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    licence: str = "unknown"
    outputs: dict[str, str] = Field(min_length=1)


def is_graph(spec: ModelSpec) -> bool:
    """Tell whether a spec's source is an ONNX file."""
    return spec.kind == "file" and spec.location.endswith(".onnx")


def wrap(spec: ModelSpec, scratch: Path) -> Manifest:
    """Write the wrapped graph into `scratch`. Raises BundleError that names the file and its fault."""
    path = Path(spec.location)
    described, preprocess = _description(path)
    model, digest = _read(path)
    _wrap_outputs(model, described, path)
    _wrap_input(model, described, preprocess, path)
    target = scratch / "image.onnx"
    external = model.ByteSize() > _ONE_FILE_BYTES
    onnx.save(model, str(target), save_as_external_data=external, location="image.onnx.data")
    try:
        onnx.checker.check_model(str(target), full_check=not external)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise BundleError(f"{path}: {str(exc).splitlines()[0]}") from exc
    empty = {name: OutputRecord(space="unknown", shape=(1,)) for name in described.outputs}
    manifest = Manifest(
        name=spec.name,
        source=spec.source,
        weights_sha256=digest,
        licence=described.licence,
        preprocess=preprocess,
        outputs=empty,
        files={file.name: bundle.record(file) for file in sorted(scratch.iterdir())},
        made_with={"onnx": onnx.__version__},
    )
    answered = run_probes(bundle.Bundle(scratch, manifest), tuple(described.outputs), _PROBES)
    outputs = {
        name: _output(spec, manifest, name, values, described.outputs[name])
        for name, values in answered.items()
    }
    return manifest.model_copy(update={"outputs": outputs})


def _description(path: Path) -> tuple[Description, Preprocess]:
    beside = path.with_name(path.name + ".toml")
    try:
        table = tomllib.loads(beside.read_text(encoding="utf-8"))
        own = {key: table.pop(key) for key in list(table) if key in Preprocess.model_fields}
        described = Description(**table)
        preprocess = Preprocess(**own)
    except FileNotFoundError:
        raise BundleError(
            f"{beside} is missing: it says what {path.name} expects: height, width, mean, std and [outputs]"
        ) from None
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "keys"
        raise BundleError(f"{beside}: {where}: {first['msg'].removeprefix('Value error, ')}") from exc
    except (OSError, ValueError) as exc:
        raise BundleError(f"{beside}: {exc}") from exc
    if EMBEDDING not in described.outputs:
        raise BundleError(f"{beside}: outputs must name an `embedding`")
    return described, preprocess


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read the graph, and its weights from the folder that it lies in and nowhere else."""
    try:
        data = path.read_bytes()
        pointers = externals(data)
    except OSError as exc:
        raise BundleError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise BundleError(f"{path}: {exc}") from exc
    digest = hashlib.sha256(data)
    for name in sorted({pointer.location for pointer in pointers}):
        end = max(p.offset + p.length for p in pointers if p.location == name)
        beside = bundle.confined(path.parent, name, end)
        digest.update(bytes.fromhex(beside.sha256))
    # Names of its own, whatever it calls its values: ours cannot clash with them.
    return onnx.compose.add_prefix(onnx.load(str(path)), _THEIRS), digest.hexdigest()


def _wrap_outputs(model: onnx.ModelProto, described: Description, path: Path) -> None:
    graph = model.graph
    held = {output.name: output for output in graph.output}
    made = []
    for name, called in described.outputs.items():
        theirs = _THEIRS + called
        if theirs not in held:
            known = ", ".join(output.removeprefix(_THEIRS) for output in held)
            raise BundleError(f"{path}: no output is called {called!r}; it has {known}")
        graph.node.append(
            helper.make_node("Cast", [theirs], [bundle.GRAPH_PREFIX + name], to=TensorProto.FLOAT)
        )
        info = helper.make_tensor_value_info(bundle.GRAPH_PREFIX + name, TensorProto.FLOAT, None)
        info.type.tensor_type.shape.CopyFrom(held[theirs].type.tensor_type.shape)
        made.append(info)
    del graph.output[:]
    graph.output.extend(made)


def _wrap_input(model: onnx.ModelProto, described: Description, preprocess: Preprocess, path: Path) -> None:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise BundleError(f"{path}: a graph of one input is needed, this one has {len(inputs)}")
    _check_input(inputs[0], described, preprocess, path)
    name = inputs[0].name
    graph.input.remove(inputs[0])
    graph.input.append(pixels_info(preprocess))
    nodes, constants = pixel_steps(preprocess, name, layout=described.layout, dtype=_DTYPES[described.dtype])
    graph.initializer.extend(constants)
    for i, node in enumerate(nodes):
        graph.node.insert(i, node)


def _check_input(value: Any, described: Description, preprocess: Preprocess, path: Path) -> None:  # noqa: ANN401 - onnx ships no types
    tensor = value.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    height, width = preprocess.height, preprocess.width
    wanted = (3, height, width) if described.layout == "nchw" else (height, width, 3)
    if tensor.elem_type != _DTYPES[described.dtype]:
        raise BundleError(f"{path}: its input is not {described.dtype}: mend dtype in the .toml beside it")
    if len(sizes) != 4 or any(s not in (None, w) for s, w in zip(sizes[1:], wanted, strict=True)):
        raise BundleError(
            f"{path}: its input is {sizes}, the .toml says {described.layout} of {list(wanted)}"
        )
    if sizes[0] is not None:
        raise BundleError(f"{path} takes batches of {sizes[0]} only: export it with a dynamic first axis")


def _output(spec: ModelSpec, made: Manifest, name: str, values: F32, recipe: str) -> OutputRecord:
    shape = values.shape[1:]
    normalized = spec.normalize and name == EMBEDDING and len(shape) == 1
    return OutputRecord(
        space=bundle.space_id(made.weights_sha256, recipe, made.preprocess),
        shape=shape,
        dimensions=shape if len(shape) == 1 else (),
        normalized=normalized,
        int8_scales=(int8_scale(values, shape[0], normalized=normalized),) if len(shape) == 1 else (),
    )
