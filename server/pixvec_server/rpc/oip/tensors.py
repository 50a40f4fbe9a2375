"""Between the protocol's tensors and parameters and the server's own values.

A parameter of a request that is not understood is refused, never half-obeyed; hints that change nothing here
(`priority`, Triton's own `triton_…`, what clients say of a tensor unasked) are let pass.
"""

from __future__ import annotations

import math
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server.errors import BadOptionError, RequestError, TooLargeError, UndecodableError
from pixvec_server.oip import inference_pb2 as pb
from pixvec_server.rpc.oip.views import IMAGE, TEXT
from pixvec_server.types import Embedded, Encoded, Input, Pixels, Target, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pixvec_server.forms import Form
    from pixvec_server.rpc.oip.views import View
    from pixvec_server.types import Content, Result, Vector

_LENGTH = struct.Struct("<I")
# What no model here has; with any value but 0, "" or false it is refused.
_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")
_HINTS = ("priority", "timeout", *_SEQUENCES)
_CHANGES_THE_ANSWER = ("classification", "shared_memory_region")
_FINAL = "triton_enable_empty_final_response"
# Of a request's inputs, when there are too many.
_NAMED = 8
_MOST_PARAMETERS = 64  # a message has room for millions, each of which is looked at


def read_inputs(request: pb.ModelInferRequest, view: View, max_items: int) -> list[Input]:
    """Read a request's items. Raises RequestError that names the field, the value and the mend."""
    if len(request.inputs) != 1 or request.inputs[0].name != view.tensor:
        given = ", ".join(tensor.name for tensor in request.inputs[:_NAMED]) or "none"
        raise BadOptionError(
            f"this model takes one input, {view.tensor} {view.datatype}; given: {given}", field="inputs"
        )
    tensor = request.inputs[0]
    _refuse_what_changes_the_answer(tensor.parameters, "inputs[0].parameters")
    if tensor.datatype != view.datatype:
        raise BadOptionError(
            f"{tensor.datatype!r}: {view.tensor} is {view.datatype}", field="inputs[0].datatype"
        )
    count = _count(tensor.shape, view, max_items)
    if view in {IMAGE, TEXT}:
        items = _items(request, count)
        return [Input(_text(item, i) if view is TEXT else Encoded(item)) for i, item in enumerate(items)]
    return [Input(pixels) for pixels in _pictures(request, count)]


def read_targets(request: pb.ModelInferRequest, model: str, max_targets: int) -> tuple[Target, ...]:
    """Return a target for each requested output, the embedding when none is. Raises RequestError."""
    if len(request.outputs) > max_targets:
        raise TooLargeError(
            f"{len(request.outputs)} outputs are over targets = {max_targets}", field="outputs"
        )
    options = _options(request.parameters)
    for i, output in enumerate(request.outputs):
        _refuse_what_changes_the_answer(output.parameters, f"outputs[{i}].parameters")
    names = [output.name for output in request.outputs] or [""]
    return tuple(Target(model=model, output=name, **options) for name in names)


def read_timeout(request: pb.ModelInferRequest) -> float | None:
    """Return the seconds that a request may take by its parameter `timeout`, in microseconds; None: any."""
    if "timeout" not in request.parameters:
        return None
    micros = _value(request.parameters["timeout"])
    if not isinstance(micros, int) or isinstance(micros, bool) or micros < 0:
        raise BadOptionError(f"{micros!r}: whole microseconds", field="parameters.timeout")
    return micros / 1e6 if micros else None


def located(error: RequestError) -> RequestError:
    """Return a target's error under the names that the request has for its fields."""
    target, _, name = error.field.partition(".")
    output = target.replace("targets", "outputs") + ".name"
    field = {"": "model_name", "output": output}.get(name, f"parameters.{name}")
    return type(error)(error.message, field=field, retry_after=error.retry_after)


def wants_final_flag(request: pb.ModelInferRequest) -> bool:
    """Tell whether a stream's caller waits for each answer to be marked as the last of its request."""
    return _FINAL in request.parameters and request.parameters[_FINAL].bool_param


def write_response(
    request: pb.ModelInferRequest, name: str, version: str, forms: Sequence[Form], results: Sequence[Result]
) -> pb.ModelInferResponse:
    """Write a batch's vectors, an output for each form. Raises the first item's error: they fail together."""
    vectors = [list(_vectors(result, i, len(forms))) for i, result in enumerate(results)]
    response = pb.ModelInferResponse(model_name=name, model_version=version, id=request.id)
    _write_origin(response.parameters, forms[0])
    for t, form in enumerate(forms):
        output = response.outputs.add(name=form.output, datatype="FP32", shape=(len(results), *form.shape))
        _write_origin(output.parameters, form)
        response.raw_output_contents.append(b"".join(row[t].data for row in vectors))
    return response


def _count(shape: Sequence[int], view: View, max_items: int) -> int:
    axes = (4,) if view not in {IMAGE, TEXT} else (1, 2)
    wrong_tail = len(shape) == 2 and shape[1] != 1
    if len(shape) not in axes or wrong_tail or any(size < 1 for size in shape):
        wanted = "[n, height, width, 3]" if axes == (4,) else "[n, 1] or [n]"
        raise BadOptionError(f"{list(shape)}: {view.tensor} is {wanted}", field="inputs[0].shape")
    if shape[0] > max_items:
        raise TooLargeError(
            f"{shape[0]} items are over inputs = {max_items}: send several requests", field="inputs[0].shape"
        )
    return shape[0]


def _items(request: pb.ModelInferRequest, count: int) -> Sequence[bytes]:
    items: Sequence[bytes] = (
        list(islice(_split(request.raw_input_contents[0]), count + 1))
        if _is_raw(request)
        else request.inputs[0].contents.bytes_contents
    )
    if len(items) != count:
        had = f"{len(items)} items" if len(items) < count else "more items"
        raise BadOptionError(f"{had} of data for a shape of {count}", field="inputs[0].shape")
    return items


def _split(raw: bytes) -> Iterator[bytes]:
    """Yield the items of a BYTES tensor: each after its length as four little-endian bytes."""
    at = 0
    while at < len(raw):
        head, at = at, at + _LENGTH.size
        size = _LENGTH.unpack_from(raw, head)[0] if at <= len(raw) else -1
        if size < 0 or at + size > len(raw):
            raise UndecodableError(
                "the data ends within an item: each is its length, as 4 little-endian bytes, and its bytes",
                field="raw_input_contents[0]",
            )
        yield raw[at : at + size]
        at += size


def _pictures(request: pb.ModelInferRequest, count: int) -> Iterator[Pixels]:
    shape = tuple(request.inputs[0].shape[1:])
    size = math.prod(shape)
    spelt_out = request.inputs[0].contents.uint_contents
    given = request.raw_input_contents[0] if _is_raw(request) else spelt_out
    if len(given) != count * size:
        raise UndecodableError(f"{len(given)} bytes for a shape of {count * size}", field="inputs[0].shape")
    raw = given if isinstance(given, bytes) else _as_bytes(given)
    for i in range(count):
        yield Pixels(shape, raw[i * size : (i + 1) * size])


def _as_bytes(values: Sequence[int]) -> bytes:
    # In one step, where bytes(values) would hold the event loop for a second for every 20 million.
    array = np.asarray(values, np.uint32)
    if array.max() > 255:
        raise BadOptionError("UINT8 values lie within 0..255", field="inputs[0].contents")
    return array.astype(np.uint8).tobytes()


def _is_raw(request: pb.ModelInferRequest) -> bool:
    if len(request.raw_input_contents) > 1 or (
        request.raw_input_contents and request.inputs[0].HasField("contents")
    ):
        raise BadOptionError(
            "raw_input_contents has one entry for each input, and then no contents",
            field="raw_input_contents",
        )
    return bool(request.raw_input_contents)


def _text(data: bytes, item: int) -> Content:
    try:
        return Text(data.decode())
    except UnicodeDecodeError:
        raise UndecodableError("a text is UTF-8", field=f"inputs[0][{item}]") from None


def _options(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    if len(parameters) > _MOST_PARAMETERS:
        raise TooLargeError(
            f"{len(parameters)} parameters are over {_MOST_PARAMETERS}, the most", field="parameters"
        )
    options: dict[str, Any] = {}
    for key, parameter in parameters.items():
        value = _value(parameter)
        if key in _OPTIONS:
            kind, check = _OPTIONS[key]
            if not check(value):
                raise BadOptionError(f"{value!r} is not {kind}", field=f"parameters.{key}")
            options[key] = value
        elif key in _SEQUENCES and value:
            raise BadOptionError(f"{value!r}: no model here keeps sequences", field=f"parameters.{key}")
        elif key not in _HINTS and not key.startswith("triton_"):
            known = ", ".join((*_OPTIONS, *_HINTS))
            raise BadOptionError(f"unknown; known are {known}", field=f"parameters.{key}")
    return options


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32


_OPTIONS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "space": ("a space's name", lambda value: isinstance(value, str)),
    "normalize": ("a bool_param", lambda value: isinstance(value, bool)),
    "dimensions": ("one of the output's sizes", _is_size),
}


def _refuse_what_changes_the_answer(parameters: Mapping[str, pb.InferParameter], field: str) -> None:
    for key in _CHANGES_THE_ANSWER:
        if key in parameters and _value(parameters[key]):
            raise BadOptionError("not served here: leave it out", field=f"{field}.{key}")


def _value(parameter: pb.InferParameter) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _vectors(result: Result, item: int, targets: int) -> Iterator[Vector]:
    outcomes = (
        [embedding.outcome for embedding in result.embeddings] if isinstance(result, Embedded) else [result]
    )
    for outcome in outcomes[:targets]:
        if isinstance(outcome, RequestError):
            raise outcome.under(f"inputs[0][{item}]")
        yield outcome


def _write_origin(parameters: Mapping[str, pb.InferParameter], form: Form) -> None:
    parameters["space"].string_param = form.origin.space
    parameters["build"].string_param = form.origin.build
    parameters["normalized"].bool_param = form.origin.normalized
