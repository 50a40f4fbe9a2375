"""The Open Inference Protocol's tensors and parameters, by an adversary."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.answers import embedded, vector

from pixvec_server.errors import BadOptionError, RequestError, TooLargeError, UndecodableError
from pixvec_server.forms import Form
from pixvec_server.oip import inference_pb2 as pb
from pixvec_server.rpc.oip import tensors
from pixvec_server.rpc.oip.views import IMAGE, PIXELS, TEXT, View
from pixvec_server.types import Encoded, Encoding, Origin, Pixels, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 256
HUGE = (1 << 63) - 1


def _raw(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def _request(
    view: View, shape: Sequence[int], raw: bytes | None = None, **fields: Any
) -> pb.ModelInferRequest:
    tensor = {"name": view.tensor, "datatype": view.datatype, "shape": shape, **fields}
    request = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(**tensor)])
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def _read(request: pb.ModelInferRequest, view: View) -> list[Any]:
    return [item.content for item in tensors.read_inputs(request, view, MOST)]


def _refusal(request: pb.ModelInferRequest, view: View = IMAGE) -> RequestError:
    with pytest.raises(RequestError) as caught:
        tensors.read_inputs(request, view, MOST)
    return caught.value


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("items", [(b"abc", b"", b"\xff" * 300), (b"", b"", b"")])
def test_bytes_come_raw_and_spelt_out_alike(shape: list[int], items: tuple[bytes, ...]) -> None:
    expected = [Encoded(item) for item in items]
    assert _read(_request(IMAGE, shape, _raw(*items)), IMAGE) == expected
    spelt_out = pb.InferTensorContents(bytes_contents=items)
    assert _read(_request(IMAGE, shape, contents=spelt_out), IMAGE) == expected


@pytest.mark.parametrize(
    "raw",
    [
        _raw(b"abc")[:-1],
        _raw(b"abc")[:3],
        _raw(b"abc")[:4],
        b"\x00",
        struct.pack("<I", 4) + b"abc",
        struct.pack("<I", 0xFFFFFFFF) + b"abc",
        struct.pack("<I", 0x80000000) + b"abc",
        struct.pack(">I", 3) + b"abc",
        _raw(b"a", b"b") + b"\x00\x00",
        _raw(b"a") + struct.pack("<I", 0xFFFFFFFF),
    ],
)
def test_bytes_whose_lengths_lie_are_refused(raw: bytes) -> None:
    error = _refusal(_request(IMAGE, [2], raw))
    assert isinstance(error, UndecodableError)
    assert error.field == "raw_input_contents[0]"
    assert "4 little-endian bytes" in error.message


@pytest.mark.parametrize("shape", [[1], [1, 1], [3], [3, 1], [256]])
def test_as_many_items_as_the_shape_says_or_none(shape: list[int]) -> None:
    error = _refusal(_request(IMAGE, shape, _raw(b"a", b"b")))
    assert (type(error), error.field) == (BadOptionError, "inputs[0].shape")
    spelt_out = pb.InferTensorContents(bytes_contents=[b"a", b"b"])
    assert _refusal(_request(IMAGE, shape, contents=spelt_out)).field == "inputs[0].shape"


def test_data_after_the_last_item_is_refused_although_it_is_items_of_nothing() -> None:
    assert "more items" in _refusal(_request(IMAGE, [1], _raw(b"a", b""))).message


def test_a_message_of_empty_items_holds_nothing_up() -> None:
    """It took 16 s to split: no item is made beyond those that the shape names."""
    started = time.process_time()
    error = _refusal(_request(IMAGE, [MOST], bytes(64 << 20)))
    assert error.field == "inputs[0].shape"
    assert time.process_time() - started < 1


@pytest.mark.parametrize("view", [IMAGE, TEXT])
@pytest.mark.parametrize(
    "shape", [[], [0], [-1], [0, 1], [1, 0], [2, 2], [1, 2], [1, -1], [1, 1, 1], [-HUGE - 1], [-1, -1]]
)
def test_shapes_of_bytes_that_are_none(view: View, shape: list[int]) -> None:
    error = _refusal(_request(view, shape, _raw(b"a")), view)
    assert (type(error), error.field) == (BadOptionError, "inputs[0].shape")
    assert "[n, 1] or [n]" in error.message


@pytest.mark.parametrize("shape", [[MOST + 1], [HUGE], [HUGE, 1]])
def test_more_items_than_a_request_may_have(shape: list[int]) -> None:
    error = _refusal(_request(IMAGE, shape, _raw(b"a")))
    assert (type(error), error.field) == (TooLargeError, "inputs[0].shape")
    assert "inputs = 256" in error.message


@pytest.mark.parametrize(
    "shape", [[], [1], [2, 2, 3], [1, 2, 2, 3, 1], [0, 2, 2, 3], [1, 0, 2, 3], [1, -2, -2, 3], [-1, 2, 2, 3]]
)
def test_shapes_of_pixels_that_are_none(shape: list[int]) -> None:
    error = _refusal(_request(PIXELS, shape, bytes(12)), PIXELS)
    assert (type(error), error.field) == (BadOptionError, "inputs[0].shape")
    assert "[n, height, width, 3]" in error.message


@pytest.mark.parametrize("shape", [[1, HUGE, HUGE, 3], [MOST, HUGE, HUGE, HUGE], [1, 1 << 32, 1 << 32, 1]])
def test_a_shape_whose_product_passes_64_bits_is_only_wrong(shape: list[int]) -> None:
    """[1, 2**32, 2**32, 1] is 0 in 64 bits."""
    for data in (b"", bytes(12)):
        assert isinstance(_refusal(_request(PIXELS, shape, data), PIXELS), UndecodableError)


@pytest.mark.parametrize("size", [0, 23, 25])
def test_pixels_fill_their_shape(size: int) -> None:
    error = _refusal(_request(PIXELS, [2, 2, 2, 3], bytes(size)), PIXELS)
    assert isinstance(error, UndecodableError)
    assert f"{size} bytes for a shape of 24" in error.message


def test_pixels_come_raw_and_spelt_out_alike_and_in_order() -> None:
    data = bytes(range(232, 256))
    expected = [Pixels((2, 2, 3), data[:12]), Pixels((2, 2, 3), data[12:])]
    assert _read(_request(PIXELS, [2, 2, 2, 3], data), PIXELS) == expected
    spelt_out = pb.InferTensorContents(uint_contents=data)
    assert _read(_request(PIXELS, [2, 2, 2, 3], contents=spelt_out), PIXELS) == expected


@pytest.mark.parametrize("value", [256, 0x1FF, 0xFFFFFFFF])
def test_a_pixel_over_255_is_refused_and_never_wraps(value: int) -> None:
    spelt_out = pb.InferTensorContents(uint_contents=[*range(11), value])
    error = _refusal(_request(PIXELS, [1, 2, 2, 3], contents=spelt_out), PIXELS)
    assert (type(error), error.field) == (BadOptionError, "inputs[0].contents")


@pytest.mark.parametrize("field", ["int_contents", "int64_contents", "uint64_contents"])
def test_pixels_in_another_types_field_are_none(field: str) -> None:
    values: dict[str, Any] = {field: [0] * 12}
    spelt_out = pb.InferTensorContents(**values)
    assert "0 bytes" in _refusal(_request(PIXELS, [1, 2, 2, 3], contents=spelt_out), PIXELS).message


@pytest.mark.parametrize("view", [IMAGE, PIXELS])
def test_data_comes_in_one_way(view: View) -> None:
    shape = [1, 2, 2, 3] if view is PIXELS else [1]
    raw = bytes(12) if view is PIXELS else _raw(b"a")
    contents = pb.InferTensorContents(bytes_contents=[b"a"], uint_contents=bytes(12))
    both = _request(view, shape, raw, contents=contents)
    twice = _request(view, shape, raw)
    twice.raw_input_contents.append(raw)
    for request in (both, twice):
        assert _refusal(request, view).field == "raw_input_contents"
    assert isinstance(_refusal(_request(view, shape), view), RequestError)


@pytest.mark.parametrize("view", [IMAGE, PIXELS, TEXT])
def test_another_name_type_or_number_of_inputs_is_refused(view: View) -> None:
    good = _request(view, [1, 1, 1, 3] if view is PIXELS else [1], b"abc" if view is PIXELS else _raw(b"a"))
    tensors.read_inputs(good, view, MOST)
    none, two, named, typed = (pb.ModelInferRequest.FromString(good.SerializeToString()) for _ in range(4))
    del none.inputs[:]
    two.inputs.add(name="more")
    named.inputs[0].name = "INPUT0"
    typed.inputs[0].datatype = "FP32"
    for request, words in ((none, "none"), (two, f"{view.tensor}, more"), (named, "INPUT0")):
        error = _refusal(request, view)
        assert (type(error), error.field) == (BadOptionError, "inputs")
        assert f"takes one input, {view.tensor} {view.datatype}; given: {words}" in error.message
    error = _refusal(typed, view)
    assert (type(error), error.field) == (BadOptionError, "inputs[0].datatype")


def test_a_text_is_utf8_and_the_one_that_is_not_is_named() -> None:
    good = _raw("Café 東京".encode(), b"", b"a")
    assert _read(_request(TEXT, [3, 1], good), TEXT) == [Text("Café 東京"), Text(""), Text("a")]
    for bad in (b"\xff", b"\xed\xa0\x80"):
        error = _refusal(_request(TEXT, [2], _raw(b"a", bad)), TEXT)
        assert (type(error), error.field) == (UndecodableError, "inputs[0][1]")


def _targets(request: pb.ModelInferRequest, most: int = 8) -> Any:
    return tensors.read_targets(request, "tiny", most)


def _with(**parameters: pb.InferParameter) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(parameters=parameters)


def _int(value: int) -> pb.InferParameter:
    return pb.InferParameter(int64_param=value)


def _uint(value: int) -> pb.InferParameter:
    return pb.InferParameter(uint64_param=value)


def _str(value: str) -> pb.InferParameter:
    return pb.InferParameter(string_param=value)


def _bool(value: bool) -> pb.InferParameter:
    return pb.InferParameter(bool_param=value)


NOTHING = pb.InferParameter()
DOUBLE = pb.InferParameter(double_param=1.0)


@pytest.mark.parametrize("dimensions", [_int(16), _uint(16)])
def test_parameters_become_the_target(dimensions: pb.InferParameter) -> None:
    [target] = _targets(_with(space=_str("s1-x"), normalize=_bool(False), dimensions=dimensions))
    assert (target.model, target.output) == ("tiny", "")
    assert (target.space, target.normalize, target.dimensions) == ("s1-x", False, 16)
    [plain] = _targets(pb.ModelInferRequest())
    assert (plain.space, plain.normalize, plain.dimensions, plain.encoding) == ("", None, None, Encoding(1))


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": _uint(1)},
        {"priority": _int(1), "timeout": _int(7)},
        {"sequence_id": _int(0), "sequence_start": _bool(False), "sequence_end": _bool(False)},
        {"sequence_id": _str("")},
        {"triton_enable_empty_final_response": _bool(True), "triton_anything": _str("x")},
    ],
)
def test_hints_that_clients_send_unasked_change_nothing(parameters: dict[str, Any]) -> None:
    assert _targets(_with(**parameters)) == _targets(pb.ModelInferRequest())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("space", _bool(True)),
        ("space", NOTHING),
        ("normalize", _str("false")),
        ("normalize", _int(0)),
        ("normalize", NOTHING),
        ("dimensions", _int(0)),
        ("dimensions", _int(-16)),
        ("dimensions", _uint(1 << 32)),
        ("dimensions", _bool(True)),
        ("dimensions", _str("16")),
        ("dimensions", DOUBLE),
        ("dimensions", NOTHING),
        ("sequence_id", _int(1)),
        ("sequence_id", _str("a")),
        ("sequence_start", _bool(True)),
        ("sequence_end", _bool(True)),
        ("Space", _str("x")),
        ("encoding", _str("int8")),
        ("", _str("x")),
    ],
)
def test_a_parameter_that_cannot_be_obeyed_is_refused_by_name(key: str, value: pb.InferParameter) -> None:
    with pytest.raises(BadOptionError) as caught:
        _targets(pb.ModelInferRequest(parameters={key: value}))
    assert caught.value.field == f"parameters.{key}"


@pytest.mark.parametrize(
    ("value", "seconds"), [(_int(0), None), (_int(1), 1e-6), (_uint(2_500_000), 2.5), (_uint(1 << 63), 2**63)]
)
def test_the_timeout_is_in_microseconds_and_0_is_none(
    value: pb.InferParameter, seconds: float | None
) -> None:
    got = tensors.read_timeout(_with(timeout=value))
    assert got == (seconds if seconds != 2**63 else 2**63 / 1e6)
    assert tensors.read_timeout(pb.ModelInferRequest()) is None


@pytest.mark.parametrize("value", [_int(-1), _str("5"), _bool(True), DOUBLE, NOTHING])
def test_a_timeout_that_is_none_is_refused(value: pb.InferParameter) -> None:
    with pytest.raises(BadOptionError) as caught:
        tensors.read_timeout(_with(timeout=value))
    assert caught.value.field == "parameters.timeout"


@pytest.mark.parametrize(
    ("key", "value"), [("classification", _int(3)), ("shared_memory_region", _str("region"))]
)
def test_what_would_change_the_answer_is_refused(key: str, value: pb.InferParameter) -> None:
    with pytest.raises(BadOptionError) as caught:
        tensors.read_inputs(_request(IMAGE, [1], _raw(b"a"), parameters={key: value}), IMAGE, MOST)
    assert caught.value.field == f"inputs[0].parameters.{key}"
    output = pb.ModelInferRequest.InferRequestedOutputTensor
    second = pb.ModelInferRequest(outputs=[output(name="a"), output(name="b", parameters={key: value})])
    with pytest.raises(BadOptionError) as caught:
        _targets(second)
    assert caught.value.field == f"outputs[1].parameters.{key}"


def test_classification_of_0_is_none() -> None:
    output = pb.ModelInferRequest.InferRequestedOutputTensor
    request = pb.ModelInferRequest(outputs=[output(name="features", parameters={"classification": _int(0)})])
    assert [target.output for target in _targets(request)] == ["features"]


def test_outputs_are_asked_for_by_name_and_share_the_parameters() -> None:
    output = pb.ModelInferRequest.InferRequestedOutputTensor
    names = ["features", "embedding", "features"]
    request = _with(normalize=_bool(False))
    request.outputs.extend(output(name=name) for name in names)
    targets = _targets(request)
    assert [target.output for target in targets] == names
    assert {target.normalize for target in targets} == {False}


def test_outputs_are_bounded_before_they_are_looked_at() -> None:
    request = pb.ModelInferRequest()
    for _ in range(9):
        request.outputs.add()
    assert len(_targets(request, most=9)) == 9
    with pytest.raises(TooLargeError, match="9 outputs are over targets = 8") as caught:
        _targets(request)
    assert caught.value.field == "outputs"


def test_parameters_are_bounded_before_they_are_looked_at() -> None:
    hints = {f"triton_{i}": _bool(True) for i in range(65)}
    with pytest.raises(TooLargeError, match="65 parameters are over 64") as caught:
        _targets(_with(**hints))
    assert caught.value.field == "parameters"
    hints.popitem()
    assert len(_targets(_with(**hints))) == 1


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("targets[0].dimensions", "parameters.dimensions"),
        ("targets[3].space", "parameters.space"),
        ("targets[1].output", "outputs[1].name"),
        ("targets[0]", "model_name"),
    ],
)
def test_an_error_names_the_requests_own_fields(field: str, expected: str) -> None:
    error = tensors.located(BadOptionError("words", field=field, retry_after=2.0))
    assert (type(error), error.message, error.field) == (BadOptionError, "words", expected)
    assert error.retry_after == 2.0


def test_the_final_flag_is_for_those_who_ask() -> None:
    key = "triton_enable_empty_final_response"
    assert tensors.wants_final_flag(_with(**{key: _bool(True)}))
    asked = pb.ModelInferRequest()
    for request in (asked, _with(**{key: _bool(False)}), _with(**{key: _int(1)})):
        assert not tensors.wants_final_flag(request)
    assert not asked.parameters


def _form(output: str, size: int) -> Form:
    origin = Origin("tiny", f"space-{output}", f"build-{output}", normalized=output == "embedding")
    return Form(output, size, output == "embedding", Encoding.FLOAT32, None, (size,), origin)


def test_a_response_has_an_output_for_each_form_raw_and_in_order() -> None:
    results = [embedded(vector(1, 2), vector(3)), embedded(vector(4, 5), vector(6))]
    forms = [_form("embedding", 2), _form("other", 1)]
    response = tensors.write_response(pb.ModelInferRequest(id="me"), "tiny", "1", forms, results)
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "me")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("embedding", "FP32", [2, 2]),
        ("other", "FP32", [2, 1]),
    ]
    assert response.raw_output_contents == [struct.pack("<4f", 1, 2, 4, 5), struct.pack("<2f", 3, 6)]
    assert not any(output.HasField("contents") for output in response.outputs)
    assert response.parameters["space"].string_param == "space-embedding"
    assert response.outputs[1].parameters["build"].string_param == "build-other"
    normalized = [o.parameters["normalized"].bool_param for o in response.outputs]
    assert normalized == [True, False]


@pytest.mark.parametrize("bad", [UndecodableError("no", field="image"), embedded(UndecodableError("no"))])
def test_one_bad_item_is_the_batchs_error_and_is_named(bad: Any) -> None:
    with pytest.raises(UndecodableError) as caught:
        tensors.write_response(
            pb.ModelInferRequest(), "tiny", "1", [_form("embedding", 1)], [embedded(vector(1)), bad]
        )
    assert caught.value.field.startswith("inputs[0][1]")
