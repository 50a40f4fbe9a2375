"""ONNX graphs that point elsewhere, in bundles and from elsewhere: nothing that they point at is opened."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper
from support.hostile import untouched
from support.hostile_graphs import (
    GOOD,
    PLACES,
    SECRET,
    Trap,
    answer,
    as_bundle,
    graph_with,
    in_attribute,
    in_initializer,
    in_weights_of_the_output,
    pointer,
    wrap,
)

from pixvec_server import bundle, foreign
from pixvec_server.backends.base import Kind
from pixvec_server.errors import BundleError
from pixvec_server.graphfile import externals
from pixvec_server.spec import ModelSpec


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_weights_beside_the_graph_are_used_when_the_manifest_lists_them(trap: Trap, kind: Kind) -> None:
    model = graph_with(in_weights_of_the_output, pointer("weights.bin", offset="0", length="16"))
    with untouched(trap.outside):
        assert answer(as_bundle(trap, model, "weights.bin"), kind) == GOOD.tolist()


def test_weights_beside_a_graph_from_elsewhere_are_taken_into_the_bundle(trap: Trap) -> None:
    scratch = wrap(trap, graph_with(in_weights_of_the_output, pointer("weights.bin")))
    assert [path.name for path in scratch.iterdir()] == ["image.onnx"]
    assert externals((scratch / "image.onnx").read_bytes()) == []
    assert GOOD.tobytes() in (scratch / "image.onnx").read_bytes()


@pytest.mark.parametrize("place", PLACES)
def test_a_pointer_is_found_wherever_a_graph_can_hold_it(trap: Trap, place: str) -> None:
    model = graph_with(PLACES[place], pointer("../outside/secret.bin"))
    assert "../outside/secret.bin" in {found.location for found in externals(model.SerializeToString())}
    with untouched(trap.outside), pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(as_bundle(trap, model)).graph()


@pytest.mark.parametrize("place", PLACES)
def test_a_pointer_of_a_graph_from_elsewhere_is_found_wherever_it_is(trap: Trap, place: str) -> None:
    with untouched(trap.outside), pytest.raises(BundleError, match="not a plain file beside it"):
        wrap(trap, graph_with(PLACES[place], pointer("../outside/secret.bin")))


def _reached() -> dict[str, list[tuple[str, str]]]:
    """Of the installed onnx's own schema: each message that can hold a tensor, and by which fields."""
    links: dict[str, list[tuple[str, str]]] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        found = waiting.pop()
        if found.name not in links:
            inner = [field for field in found.fields if field.message_type is not None]
            links[found.name] = [(field.name, field.message_type.name) for field in inner]
            waiting += [field.message_type for field in inner]
    holds = {"TensorProto"}
    while more := {name for name in links.keys() - holds if any(kind in holds for _, kind in links[name])}:
        holds |= more
    return {name: [(field, kind) for field, kind in links[name] if kind in holds] for name in holds}


def _ways() -> list[tuple[str, ...]]:
    """Every field that leads nearer to a tensor, as the path from the model to the tensor through it."""
    reached = _reached()

    def on(name: str, seen: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name == "TensorProto":
            yield ()
            return
        for field, kind in reached[name]:
            if kind not in seen:
                yield from ((field, *rest) for rest in on(kind, (*seen, kind)))

    return sorted(set(on("ModelProto", ("ModelProto",))))


@pytest.mark.parametrize("way", _ways(), ids=".".join)
def test_no_way_from_a_model_to_a_tensor_is_overlooked(way: tuple[str, ...]) -> None:
    """The ways are those of the installed onnx: a new field of a new version fails this test."""
    model = onnx.ModelProto()
    at: Any = model
    for field in way:
        at = getattr(at, field)
        at = at.add() if hasattr(at, "add") else at
    at.CopyFrom(pointer("weights.bin", offset="4", length="8"))
    assert [(p.location, p.offset, p.length) for p in externals(model.SerializeToString())] == [
        ("weights.bin", 4, 8)
    ]


LOCATIONS: dict[str, Callable[[Trap], str]] = {
    "parent": lambda _: "../outside/secret.bin",
    "absolute": lambda trap: str(trap.secret),
    "url": lambda trap: trap.secret.as_uri(),
    "dots inside": lambda _: "folder/../../outside/secret.bin",
    "own name by a detour": lambda trap: f"../{trap.folder.name}/weights.bin",
    "own name with a dot": lambda _: "./weights.bin",
    "own name with a slash": lambda _: "weights.bin/",
    "symbolic link": lambda _: "link.bin",
    "dangling link": lambda _: "dangling.bin",
    "folder behind a link": lambda _: "folder/secret.bin",
    "hard link": lambda _: "hard.bin",
    "pipe": lambda _: "pipe.bin",
    "folder": lambda _: "sub",
    "nothing": lambda _: "",
    "this folder": lambda _: ".",
    "the folder above": lambda _: "..",
    "root": lambda _: "/",
    "NUL": lambda _: "weights.bin\0",
    "NUL behind a good name": lambda _: "weights.bin\0/../../outside/secret.bin",
    "percent": lambda _: "..%2Foutside%2Fsecret.bin",
    "backslash": lambda _: "..\\outside\\secret.bin",
    "home": lambda _: "~/secret.bin",
    "variable": lambda _: "$PWD/secret.bin",
    "too long": lambda _: "w" * 5000,
    "memory, as onnxruntime writes it": lambda _: "*/_ORT_MEM_ADDR_/*",
    "missing": lambda _: "other.bin",
}  # fmt: skip


def _lay(trap: Trap) -> None:
    (trap.folder / "link.bin").symlink_to(trap.secret)
    (trap.folder / "dangling.bin").symlink_to(trap.outside / "made")
    (trap.folder / "folder").symlink_to(trap.outside)
    (trap.folder / "hard.bin").hardlink_to(trap.secret)
    (trap.folder / "sub").mkdir()
    os.mkfifo(trap.folder / "pipe.bin")


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_bundles_pointer_that_leads_elsewhere_is_refused(trap: Trap, location: str) -> None:
    _lay(trap)
    model = graph_with(in_weights_of_the_output, pointer(LOCATIONS[location](trap)))
    folder = as_bundle(trap, model)
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder).graph()


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_pointer_of_a_graph_from_elsewhere_that_leads_elsewhere_is_refused(
    trap: Trap, location: str
) -> None:
    _lay(trap)
    model = graph_with(in_weights_of_the_output, pointer(LOCATIONS[location](trap)))
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        wrap(trap, model)
    assert all(
        SECRET.tobytes() not in path.read_bytes() for path in (trap.folder.parent / "scratch").iterdir()
    )


@pytest.mark.parametrize(
    "listed", ["link.bin", "folder/secret.bin", "../outside/secret.bin", "pipe.bin", "sub"]
)
def test_a_manifest_that_lists_what_is_no_plain_file_is_refused_unread(trap: Trap, listed: str) -> None:
    _lay(trap)
    folder = as_bundle(trap, graph_with(in_initializer, pointer(listed)))
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["files"][listed] = {"sha256": bundle.record(trap.secret).sha256, "bytes": SECRET.nbytes}
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder)


def test_a_hard_link_that_the_manifest_lists_is_no_weight(trap: Trap) -> None:
    _lay(trap)
    folder = as_bundle(trap, graph_with(in_initializer, pointer("hard.bin")), "hard.bin")
    with pytest.raises(BundleError, match="hard link"):
        bundle.load(folder).graph()


def test_weights_that_the_manifest_does_not_list_are_refused(trap: Trap) -> None:
    folder = as_bundle(trap, graph_with(in_initializer, pointer("weights.bin")))
    with pytest.raises(BundleError, match=r"keeps weights in weights\.bin, which is not the file that"):
        bundle.load(folder).graph()


def test_weights_that_are_not_those_of_the_manifest_are_refused(trap: Trap) -> None:
    folder = as_bundle(trap, graph_with(in_initializer, pointer("weights.bin")), "weights.bin")
    (folder / "weights.bin").write_bytes(SECRET.tobytes())
    with pytest.raises(BundleError, match=r"weights\.bin is not the file"):
        bundle.load(folder)


BOUNDS = {
    "offset past the end": {"offset": "17"},
    "offset far past the end": {"offset": str(2**63)},
    "length past the end": {"length": "17"},
    "both past the end": {"offset": "8", "length": "9"},
    "sum that wraps": {"offset": str(2**64 - 8), "length": "16"},
    "negative offset": {"offset": "-16"},
    "negative length": {"length": "-1"},
    "words": {"offset": "zero"},
    "hexadecimal": {"offset": "0x10"},
    "fraction": {"length": "1.5"},
    "exponent": {"length": "1e1"},
    "other digits": {"offset": "٤"},
    "superscript": {"length": "¹"},
    "blank": {"offset": " 4"},
    "underscore": {"offset": "1_6"},
    "empty": {"length": ""},
    "five thousand digits": {"offset": "1" * 5000},
}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_pointer_past_the_end_or_by_no_number_is_refused(trap: Trap, bounds: str) -> None:
    tensor = pointer("weights.bin", **BOUNDS[bounds])
    folder = as_bundle(trap, graph_with(in_weights_of_the_output, tensor), "weights.bin")
    with pytest.raises(BundleError, match=r"past its end|is no number|digits"):
        bundle.load(folder).graph()
    with pytest.raises(BundleError, match=r"past its end|is no number|digits"):
        wrap(trap, graph_with(in_weights_of_the_output, tensor))


@pytest.mark.parametrize("order", list(itertools.permutations(["weights.bin", "../outside/secret.bin"])))
def test_a_pointer_of_two_locations_is_refused_in_either_order(trap: Trap, order: tuple[str, str]) -> None:
    """Which of two counts is each reader's own choice: no reader gets to make it."""
    tensor = pointer(order[0])
    tensor.external_data.add(key="location", value=order[1])
    folder = as_bundle(trap, graph_with(in_weights_of_the_output, tensor), "weights.bin")
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder).graph()


@pytest.mark.parametrize("key", ["basepath", "Location", "__class__"])
def test_a_pointer_that_says_more_than_the_format_does_is_refused(trap: Trap, key: str) -> None:
    folder = as_bundle(
        trap,
        graph_with(in_weights_of_the_output, pointer("weights.bin", **{key: "../outside"})),
        "weights.bin",
    )
    with untouched(trap.outside, trap.secret), pytest.raises(BundleError):
        bundle.load(folder).graph()


def test_a_place_without_the_flag_counts_as_a_pointer(trap: Trap) -> None:
    tensor = pointer("../outside/secret.bin")
    tensor.ClearField("data_location")
    with pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(as_bundle(trap, graph_with(in_weights_of_the_output, tensor))).graph()


def test_a_pointer_in_two_halves_is_put_together(trap: Trap) -> None:
    """Two halves of one field are merged by every reader of the format."""
    flag = pointer("unused")
    flag.ClearField("external_data")
    place = TensorProto()
    place.external_data.add(key="location", value="../outside/secret.bin")
    whole = graph_with(in_attribute, TensorProto(name="added"))
    node = whole.graph.node[-1]
    first, second = AttributeProto(name="value", type=AttributeProto.TENSOR), AttributeProto()
    first.t.CopyFrom(flag)
    second.t.CopyFrom(place)
    merged = first.SerializeToString() + second.SerializeToString()
    read = AttributeProto.FromString(merged)
    assert read.t.external_data[0].value == "../outside/secret.bin"
    assert read.t.data_location == TensorProto.EXTERNAL
    node.attribute[0].ParseFromString(merged)
    with pytest.raises(BundleError, match="not a plain file beside it"):
        bundle.load(as_bundle(trap, whole)).graph()
    raw = onnx.NodeProto(op_type="Constant", output=["spare"]).SerializeToString()
    raw += b"\x2a" + _varint(len(merged)) + merged
    graph = b"\x0a" + _varint(len(raw)) + raw
    model = b"\x3a" + _varint(len(graph)) + graph
    assert onnx.ModelProto.FromString(model).graph.node[0].attribute[0].t.external_data
    assert "../outside/secret.bin" in {found.location for found in externals(model)}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("tensor", [{"offset": "8"}, {"length": "8"}, {"dims": "4096"}])
def test_a_pointer_to_less_than_its_tensor_needs_ends_in_an_error(
    trap: Trap, kind: Kind, tensor: dict[str, str]
) -> None:
    more = {key: value for key, value in tensor.items() if key != "dims"}
    made = pointer("weights.bin", **more)
    if "dims" in tensor:
        made.dims[0] = int(tensor["dims"])
    folder = as_bundle(trap, graph_with(in_weights_of_the_output, made), "weights.bin")
    with pytest.raises(Exception, match=r"."):  # each engine's own kind; what matters is that it is one
        answer(folder, kind)


def test_a_graph_of_operators_that_nobody_has_is_refused(trap: Trap) -> None:
    model = graph_with(in_initializer, helper.make_tensor("spare", TensorProto.FLOAT, [1], [0.0]))
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    node = helper.make_node(
        "Run", ["out_embedding"], ["spare_too"], domain="com.evil", library="/tmp/evil.so"
    )
    model.graph.node.append(node)
    model.graph.output[0].name = "spare_too"
    with pytest.raises(BundleError, match=r"model\.onnx"):
        wrap(trap, model, "spare_too")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff" * 64, b"not a graph", b"\x3a\xff\xff\xff\x7f", pickle.dumps({}), b"\x08\x09" * 50],
)
def test_a_graph_that_is_none_is_refused(trap: Trap, data: bytes) -> None:
    path = trap.folder / "model.onnx"
    path.write_bytes(data)
    path.with_name("model.onnx.toml").write_text("height = 8\nwidth = 8\n[outputs]\nembedding = 'y'\n")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        foreign.wrap(ModelSpec(name="x", source=f"file:{path}"), trap.folder.parent)
