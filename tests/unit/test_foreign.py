"""ONNX graphs from elsewhere: wrapped, they answer what they answer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pixvec_server import bundle, foreign
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.backends.select import factory
from pixvec_server.errors import BundleError
from pixvec_server.export import export
from pixvec_server.graphfile import externals
from pixvec_server.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

HEIGHT, WIDTH, SIZE = 6, 8, 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(size=(3 * HEIGHT * WIDTH, SIZE)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (7, HEIGHT, WIDTH, 3), np.uint8)
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
SQUASH = f"height = {HEIGHT}\nwidth = {WIDTH}\nmode = 'squash'\n"
NORMAL = f"mean = {list(MEAN)}\nstd = {list(STD)}\n"


def shape_of(layout: str) -> list[int]:
    return [3, HEIGHT, WIDTH] if layout == "nchw" else [HEIGHT, WIDTH, 3]


def graph(
    layout: str = "nchw",
    dtype: str = "float32",
    *,
    batch: int | str = "n",
    shape: list[Any] | None = None,
    given: str = "x",
    answer: str = "y",
    external: str = "",
) -> onnx.ModelProto:
    """A projection `answer` (n, 5) of the input, its `map` and, in float16, its `half`."""
    weights = numpy_helper.from_array(WEIGHTS, "weights")
    if external:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=external)
    nodes = [
        helper.make_node("Cast", [given], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], [answer]),
        helper.make_node("Relu", ["float"], ["map"]),
        helper.make_node("Cast", [answer], ["half"], to=TensorProto.FLOAT16),
    ]
    whole = shape if shape is not None else shape_of(layout)
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(given, TYPES[dtype], [batch, *whole])],
        [
            helper.make_tensor_value_info(answer, TensorProto.FLOAT, [batch, SIZE]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, *whole]),
            helper.make_tensor_value_info("half", TensorProto.FLOAT16, [batch, SIZE]),
        ],
        [weights],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write(folder: Path, model: onnx.ModelProto, words: str, outputs: str = "embedding = 'y'") -> ModelSpec:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / "model.onnx.toml").write_text(f"{words}\n[outputs]\n{outputs}\n", encoding="utf-8")
    return ModelSpec(name="local", source=f"file:{path}")


def expected(layout: str, dtype: str, channels: str = "rgb") -> NDArray[Any]:
    """The input that a graph wants, made with numpy alone."""
    ordered = PIXELS[..., ::-1] if channels == "bgr" else PIXELS
    if dtype != "uint8":
        ordered = ((ordered / 255.0 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    moved = ordered.transpose(0, 3, 1, 2) if layout == "nchw" else ordered
    return np.ascontiguousarray(moved.astype(dtype))


def ask(model: onnx.ModelProto, given: NDArray[Any], output: str) -> NDArray[Any]:
    """What the graph itself answers, by onnxruntime without anything of ours."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answered: NDArray[Any] = session.run([output], {session.get_inputs()[0].name: given})[0]
    return answered


def run(made: bundle.Bundle, *outputs: str, kind: str = "onnx") -> list[NDArray[Any]]:
    place = Placement(kind, "cpu", "fp32", "test")
    engine = factory(place.kind)(made, place, BackendOptions(threads=1, instances=1))
    answered = engine.run("image", PIXELS, outputs)
    engine.close()
    return [answered[name] for name in outputs]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_wrapped_graph_answers_what_the_graph_answers(
    tmp_path: Path, layout: str, dtype: str, channels: str, kind: str
) -> None:
    model = graph(layout, dtype)
    words = f"{SQUASH}{NORMAL}layout = '{layout}'\ndtype = '{dtype}'\nchannels = '{channels}'"
    made = export(write(tmp_path / "local", model, words), tmp_path / "out")
    (ours,) = run(made, "embedding", kind=kind)
    theirs = ask(model, expected(layout, dtype, channels), "y")
    scale = np.abs(theirs).max()
    # One rounding to float16 may go either way where the two sums in front of it differ in their last bit.
    assert np.abs(ours - theirs).max() <= (2e-3 if dtype == "float16" else 2e-6) * scale
    wrong = ask(model, expected(layout, dtype, {"rgb": "bgr", "bgr": "rgb"}[channels]), "y")
    assert np.abs(ours - wrong).max() > 0.05 * scale


def test_the_bundle_says_what_the_description_says(tmp_path: Path) -> None:
    words = f"{SQUASH}{NORMAL}licence = 'MIT'\nframes = 'mean'\ninterpolation = 'bilinear'"
    made = export(write(tmp_path / "local", graph(), words), tmp_path / "out").manifest
    assert (made.name, made.licence, made.precision, made.towers) == ("local", "MIT", "fp32", ("image",))
    assert (made.preprocess.mean, made.preprocess.std) == (MEAN, STD)
    assert (made.preprocess.frames, made.preprocess.interpolation) == ("mean", "bilinear")
    record = made.outputs["embedding"]
    assert (record.shape, record.dimensions, record.normalized) == ((SIZE,), (SIZE,), True)
    assert len(record.int8_scales) == 1


def test_each_output_that_is_named_is_there(tmp_path: Path) -> None:
    model = graph()
    outputs = "embedding = 'y'\nfeatures = 'map'\nsmall = 'half'"
    made = export(write(tmp_path / "local", model, SQUASH + NORMAL, outputs), tmp_path / "out")
    given = expected("nchw", "float32")
    embedding, features, small = run(made, "embedding", "features", "small")
    assert np.allclose(embedding, ask(model, given, "y"), atol=1e-4)
    assert np.allclose(features, ask(model, given, "map"), atol=1e-5)
    assert small.dtype == np.float32
    assert np.allclose(small, embedding, rtol=1e-3, atol=1e-2)
    records = made.manifest.outputs
    assert {name: record.shape for name, record in records.items()} == {
        "embedding": (SIZE,),
        "features": (3, HEIGHT, WIDTH),
        "small": (SIZE,),
    }
    assert records["features"].dimensions == ()
    assert not records["small"].normalized
    assert len({record.space for record in records.values()}) == 3


def test_one_output_may_have_two_names(tmp_path: Path) -> None:
    spec = write(tmp_path / "local", graph(), SQUASH, "embedding = 'y'\npooled = 'y'")
    one, two = run(export(spec, tmp_path / "out"), "embedding", "pooled")
    assert np.array_equal(one, two)


def test_another_output_or_another_graph_is_another_space(tmp_path: Path) -> None:
    other = graph()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHTS * 2, "weights"))
    specs = {
        "y": write(tmp_path / "y", graph(), SQUASH),
        "half": write(tmp_path / "half", graph(), SQUASH, "embedding = 'half'"),
        "weights": write(tmp_path / "weights", other, SQUASH),
        "mean": write(tmp_path / "mean", graph(), SQUASH + NORMAL),
    }
    spaces = {
        name: export(spec, tmp_path / f"out-{name}").manifest.outputs["embedding"].space
        for name, spec in specs.items()
    }
    assert len(set(spaces.values())) == 4
    again = export(specs["y"], tmp_path / "again").manifest.outputs["embedding"].space
    assert again == spaces["y"]


def test_a_spec_that_asks_for_plain_vectors_gets_them(tmp_path: Path) -> None:
    spec = write(tmp_path / "local", graph(), SQUASH).model_copy(update={"normalize": False})
    assert not export(spec, tmp_path / "out").manifest.outputs["embedding"].normalized


def test_weights_beside_the_graph_are_read_and_count_for_its_space(tmp_path: Path) -> None:
    spaces = []
    for i, weights in enumerate((WEIGHTS, WEIGHTS * 2)):
        folder = tmp_path / str(i)
        spec = write(folder, graph(external="weights.bin"), SQUASH + NORMAL)
        (folder / "weights.bin").write_bytes(weights.tobytes())
        made = export(spec, tmp_path / f"out-{i}")
        whole = graph()
        whole.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
        (ours,) = run(made, "embedding")
        assert np.allclose(ours, ask(whole, expected("nchw", "float32"), "y"), atol=2e-4)
        assert externals((made.folder / "image.onnx").read_bytes()) == []
        assert set(made.manifest.files) == {"image.onnx"}
        spaces.append(made.manifest.outputs["embedding"].space)
    assert spaces[0] != spaces[1]


@pytest.mark.parametrize(
    ("given", "answer"),
    [("pixels", "y"), ("x", "out_embedding"), ("pixvec_0", "pixvec_mean"), ("pixels", "out_y")],
)
def test_a_graph_may_use_our_names_for_its_own_values(tmp_path: Path, given: str, answer: str) -> None:
    model = graph(given=given, answer=answer)
    spec = write(tmp_path / "local", model, SQUASH + NORMAL, f"embedding = '{answer}'")
    (ours,) = run(export(spec, tmp_path / "out"), "embedding")
    assert np.allclose(ours, ask(model, expected("nchw", "float32"), answer), atol=2e-4)


def test_a_graph_that_we_wrapped_can_be_wrapped_again(tmp_path: Path) -> None:
    once = export(write(tmp_path / "local", graph(), SQUASH + NORMAL), tmp_path / "once")
    model = onnx.load(str(once.folder / "image.onnx"))
    words = SQUASH + "layout = 'nhwc'\ndtype = 'uint8'"
    twice = export(write(tmp_path / "again", model, words, "embedding = 'out_embedding'"), tmp_path / "twice")
    assert np.array_equal(run(once, "embedding")[0], run(twice, "embedding")[0])


def test_weights_that_are_listed_as_inputs_are_no_second_input(tmp_path: Path) -> None:
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, list(WEIGHTS.shape)))
    spec = write(tmp_path / "local", model, SQUASH + NORMAL)
    (ours,) = run(export(spec, tmp_path / "out"), "embedding")
    assert np.allclose(ours, ask(graph(), expected("nchw", "float32"), "y"), atol=2e-4)


# What is refused ----------------------------------------------------------------------------------


def refused(spec: ModelSpec, tmp_path: Path, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        export(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_graph_without_a_description_is_refused_with_what_it_must_say(tmp_path: Path) -> None:
    spec = write(tmp_path / "local", graph(), SQUASH)
    (tmp_path / "local" / "model.onnx.toml").unlink()
    refused(spec, tmp_path, r"model\.onnx\.toml is missing: it says what model\.onnx expects: height")


def test_a_graph_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec = write(tmp_path / "local", graph(), SQUASH)
    (tmp_path / "local" / "model.onnx").unlink()
    refused(spec, tmp_path, r"model\.onnx: No such file")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("height = ", "Invalid value"),
        ("width = 8", "height: Field required"),
        (f"{SQUASH}surprise = 1", "surprise: Extra inputs"),
        (f"{SQUASH}layout = 'chw'", "layout: Input should be 'nchw' or 'nhwc'"),
        (f"{SQUASH}dtype = 'int8'", "dtype: Input should be 'float32', 'float16' or 'uint8'"),
        (f"{SQUASH}std = [0.0, 1.0, 1.0]", "keys: std = .* every value must be over 0"),
        (f"{SQUASH}mean = [0.0]", "mean"),
        ("height = 6\nwidth = 8", "keys: short_side_crop needs height = width"),
    ],
)
def test_a_description_that_is_wrong_is_refused_by_its_key(tmp_path: Path, words: str, found: str) -> None:
    refused(write(tmp_path / "local", graph(), words), tmp_path, rf"model\.onnx\.toml: {found}")


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ("pooled = 'y'", r"outputs must name an `embedding`"),
        ("", r"outputs: Dictionary should have at least 1 item"),
        ("embedding = 'z'", r"no output is called 'z'; it has y, map, half"),
        ("embedding = 'flat'", r"no output is called 'flat'"),
    ],
)
def test_outputs_that_are_not_the_graphs_are_refused(tmp_path: Path, outputs: str, found: str) -> None:
    refused(write(tmp_path / "local", graph(), SQUASH, outputs), tmp_path, found)


def test_a_description_in_no_known_alphabet_is_refused(tmp_path: Path) -> None:
    spec = write(tmp_path / "local", graph(), SQUASH)
    (tmp_path / "local" / "model.onnx.toml").write_bytes(b"licence = '\xff\xfe'\n")
    refused(spec, tmp_path, r"model\.onnx\.toml: ")


def _two_inputs() -> onnx.ModelProto:
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    return model


def _no_input() -> onnx.ModelProto:
    model = graph()
    value = model.graph.input.pop()
    model.graph.initializer.append(
        helper.make_tensor(value.name, TensorProto.FLOAT, [0, 3, HEIGHT, WIDTH], [])
    )
    return model


@pytest.mark.parametrize(
    ("model", "words", "found"),
    [
        (lambda: graph(batch=1), "", r"takes batches of 1 only: export it with a dynamic first axis"),
        (lambda: graph(batch=4), "", r"takes batches of 4 only"),
        (lambda: graph(dtype="float16"), "", r"its input is not float32: mend dtype in the \.toml beside it"),
        (graph, "dtype = 'uint8'", r"its input is not uint8"),
        (lambda: graph("nhwc"), "", r"its input is \[None, 6, 8, 3\], the \.toml says nchw of \[3, 6, 8\]"),
        (
            graph,
            "layout = 'nhwc'",
            r"its input is \[None, 3, 6, 8\], the \.toml says nhwc of \[6, 8, 3\]",
        ),
        (lambda: graph(shape=[3, 8, 6]), "", r"the \.toml says nchw of \[3, 6, 8\]"),
        (lambda: graph(shape=[1, HEIGHT, WIDTH]), "", r"the \.toml says nchw of \[3, 6, 8\]"),
        (lambda: graph(shape=[3 * HEIGHT * WIDTH]), "", r"its input is \[None, 144\]"),
        (_two_inputs, "", r"a graph of one input is needed, this one has 2"),
        (_no_input, "", r"a graph of one input is needed, this one has 0"),
    ],
)
def test_a_graph_that_takes_something_else_is_refused_in_words(
    tmp_path: Path, model: Callable[[], onnx.ModelProto], words: str, found: str
) -> None:
    refused(write(tmp_path / "local", model(), SQUASH + words), tmp_path, found)


def test_sizes_that_the_graph_leaves_open_are_the_descriptions(tmp_path: Path) -> None:
    model = graph(shape=["channels", "height", "width"])
    del model.graph.output[1:]
    made = export(write(tmp_path / "local", model, SQUASH + NORMAL), tmp_path / "out")
    (ours,) = run(made, "embedding")
    assert np.allclose(ours, ask(model, expected("nchw", "float32"), "y"), atol=2e-4)


def _answering(nodes: list[onnx.NodeProto], shape: list[Any]) -> onnx.ModelProto:
    """A graph whose one answer `odd` is made by `nodes` of `flat` (n, 144)."""
    model = graph()
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("odd", TensorProto.FLOAT, shape))
    return model


NODE = helper.make_node


@pytest.mark.parametrize(
    ("nodes", "shape", "found"),
    [
        pytest.param(
            [NODE("ReduceMean", ["flat"], ["odd"], keepdims=0)], [], "no row for each", id="a number"
        ),
        pytest.param(
            [NODE("Transpose", ["flat"], ["odd"], perm=[1, 0])], ["m", "n"], "no row for each", id="turned"
        ),
        pytest.param(
            [NODE("ReduceMean", ["flat"], ["odd"], keepdims=1)], [1, 1], "no row for each", id="one for all"
        ),
        pytest.param(
            [NODE("Sub", ["flat", "flat"], ["nil"]), NODE("Div", ["nil", "nil"], ["odd"])],
            ["n", 144],
            "holds NaN or infinity",
            id="NaN",
        ),
    ],
)
def test_answers_that_are_no_vectors_are_refused(
    tmp_path: Path, nodes: list[onnx.NodeProto], shape: list[Any], found: str
) -> None:
    spec = write(tmp_path / "local", _answering(nodes, shape), SQUASH, "embedding = 'odd'")
    refused(spec, tmp_path, found)


def test_an_answer_of_zeros_is_a_vector(tmp_path: Path) -> None:
    model = _answering([NODE("Sub", ["flat", "flat"], ["odd"])], ["n", 144])
    made = export(write(tmp_path / "local", model, SQUASH, "embedding = 'odd'"), tmp_path / "out")
    assert made.manifest.outputs["embedding"].int8_scales[0] > 0


def test_a_graph_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    model = graph()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = SIZE + 1
    refused(write(tmp_path / "local", model, SQUASH), tmp_path, r"model\.onnx: ")


def test_a_graph_that_no_engine_can_run_is_refused_with_the_engines_words(tmp_path: Path) -> None:
    model = graph()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.append(NODE("Unheard", ["y"], ["odd"], domain="com.example"))
    model.graph.output.append(helper.make_tensor_value_info("odd", TensorProto.FLOAT, ["n", SIZE]))
    refused(
        write(tmp_path / "local", model, SQUASH, "embedding = 'odd'"),
        tmp_path,
        "onnx cannot run it: .*Unheard",
    )


def test_only_a_file_that_ends_in_onnx_is_a_graph() -> None:
    assert foreign.is_graph(ModelSpec(name="x", source="file:/a/b.onnx"))
    assert not foreign.is_graph(ModelSpec(name="x", source="file:/a/b.safetensors"))
    assert not foreign.is_graph(ModelSpec(name="x", source="timm:a.onnx"))
