"""Between the contract's messages and the server's own values.

Reading refuses what it does not know: an unknown field or enum value raises UnknownFieldError, never a
default in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.unknown_fields import UnknownFieldSet

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import BadOptionError, RequestError, TooLargeError, UnknownFieldError
from pixvec_server.rpc.status import code_of
from pixvec_server.similarity import Operand, Question, Row
from pixvec_server.types import (
    WHOLE,
    Answer,
    Content,
    Embedded,
    Embedding,
    Encoded,
    Encoding,
    Input,
    Metric,
    Pixels,
    Region,
    Result,
    Target,
    Text,
    Vector,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

_MAX_MESSAGE = 1024
_NANO = 1_000_000_000


def read_input(message: pb.Input, max_regions: int) -> Input:
    """Read one input. Raises RequestError that names the field."""
    _refuse_unknown(message)
    if len(message.regions) > max_regions:
        raise TooLargeError(
            f"{len(message.regions)} regions are over regions = {max_regions}", field="regions"
        )
    regions = tuple(_read_region(region, i) for i, region in enumerate(message.regions))
    return Input(_read_content(message), regions or (WHOLE,), message.prompt)


def read_targets(messages: Sequence[pb.Target], max_targets: int) -> tuple[Target, ...]:
    """Read a request's targets; none is one with every default. Raises RequestError under `targets[i]`."""
    if len(messages) > max_targets:
        raise TooLargeError(f"{len(messages)} targets are over targets = {max_targets}", field="targets")
    targets = []
    for i, message in enumerate(messages):
        try:
            targets.append(read_target(message))
        except RequestError as exc:
            raise exc.under(f"targets[{i}]") from exc
    return tuple(targets) or (Target(),)


def read_target(message: pb.Target) -> Target:
    """Read one target. Raises UnknownFieldError."""
    _refuse_unknown(message)
    return Target(
        model=message.model,
        output=message.output,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
        normalize=message.normalize if message.HasField("normalize") else None,
        encoding=_read_encoding(message.encoding) if message.encoding else Encoding.FLOAT32,
        space=message.space,
    )


def read_question(message: pb.SimilarityRequest) -> Question:
    """Read a Similarity request. Raises RequestError that names the operand."""
    _refuse_unknown(message)
    try:
        target = read_target(message.target)
    except RequestError as exc:
        raise exc.under("target") from exc
    if message.metric and message.metric not in pb.Metric.values():
        raise UnknownFieldError(f"metric = {message.metric} is not known to this server", field="metric")
    return Question(
        queries=_read_operands(message.queries, "queries"),
        candidates=_read_operands(message.candidates, "candidates"),
        target=target,
        metric=Metric(message.metric) if message.metric else Metric.COSINE,
        top_k=message.top_k if message.HasField("top_k") else None,
    )


def write_result(result: Result) -> pb.Result:
    """Write the answer to one input of many."""
    if isinstance(result, RequestError):
        return pb.Result(error=write_error(result))
    return pb.Result(embedded=write_embedded(result))


def write_embedded(embedded: Embedded) -> pb.Embedded:
    """Write the answer to one input."""
    source = embedded.source
    return pb.Embedded(
        embeddings=[_write_embedding(embedding) for embedding in embedded.embeddings],
        source=pb.Source(
            width=source.width,
            height=source.height,
            format=source.format,
            frames=source.frames,
            truncated=source.truncated,
        ),
    )


def write_error(error: RequestError) -> pb.Error:
    """Write an error; `retry_after` only where trying again may help."""
    text = f"{error.field}: {error.message}" if error.field else error.message
    return pb.Error(
        code=code_of(error).value[0],
        reason=f"REASON_{error.reason.name}",
        message=text.encode()[:_MAX_MESSAGE].decode(errors="ignore"),
        retry_after=None if error.retry_after is None else duration(error.retry_after),
    )


def write_report(answer: Answer, total_s: float) -> pb.Report:
    """Write what produced an answer, and at what cost."""
    cost = answer.cost
    return pb.Report(
        origins=[
            pb.Origin(model=o.model, space=o.space, build=o.build, normalized=o.normalized)
            for o in answer.origins
        ],
        usage=pb.Usage(vectors=cost.vectors, pixels=cost.pixels, tokens=cost.tokens, cached=cost.cached),
        timing=pb.Timing(
            decode_ns=int(cost.decode_s * _NANO),
            queue_ns=int(cost.queue_s * _NANO),
            compute_ns=int(cost.compute_s * _NANO),
            total_ns=int(total_s * _NANO),
        ),
    )


def write_row(row: Row) -> pb.Row:
    """Write a query's scores."""
    return pb.Row(indices=row.indices, scores=row.scores.astype("<f4", copy=False).tobytes())


def duration(seconds: float) -> Duration:
    """Write seconds as a protobuf Duration."""
    nanos = round(seconds * _NANO)
    return Duration(seconds=nanos // _NANO, nanos=nanos % _NANO)


def _write_embedding(embedding: Embedding) -> pb.Embedding:
    outcome = embedding.outcome
    if isinstance(outcome, RequestError):
        return pb.Embedding(region=embedding.region, target=embedding.target, error=write_error(outcome))
    tensor = pb.Tensor(
        encoding=pb.Encoding.Name(outcome.encoding.value),
        shape=outcome.shape,
        data=outcome.data,
        scale=outcome.scale,
    )
    return pb.Embedding(region=embedding.region, target=embedding.target, vector=tensor)


def _read_content(message: pb.Input) -> Content:
    kind = message.WhichOneof("content")
    if kind == "image":
        return Encoded(message.image)
    if kind == "text":
        return Text(message.text)
    if kind == "pixels":
        return _read_pixels(message.pixels)
    raise BadOptionError("no content: set image, pixels or text", field="content")


def _read_pixels(tensor: pb.Tensor) -> Pixels:
    _refuse_unknown(tensor, "pixels")
    encoding = _read_encoding(tensor.encoding, "pixels.encoding") if tensor.encoding else None
    if encoding is not Encoding.UINT8:
        given = encoding.name if encoding else "unspecified"
        raise BadOptionError(
            f"encoding = {given}: pixels are UINT8 in [height, width, channels]; map floats by round(255 x)",
            field="pixels.encoding",
        )
    if tensor.HasField("scale"):
        raise BadOptionError("scale belongs to INT8 vectors: unset it", field="pixels.scale")
    return Pixels(tuple(tensor.shape), tensor.data)


def _read_region(message: pb.Region, index: int) -> Region:
    _refuse_unknown(message, f"regions[{index}]")
    box = (message.left, message.top, message.right, message.bottom)
    if message.whole and any(box):
        raise BadOptionError(f"whole with the edges {box}: give one or the other", field=f"regions[{index}]")
    return WHOLE if message.whole else Region(*box)


def _read_operands(messages: Sequence[pb.Operand], name: str) -> tuple[Operand, ...]:
    operands = []
    for i, message in enumerate(messages):
        try:
            operands.append(_read_operand(message))
        except RequestError as exc:
            raise exc.under(f"{name}[{i}]") from exc
    return tuple(operands)


def _read_operand(message: pb.Operand) -> Operand:
    _refuse_unknown(message)
    kind = message.WhichOneof("content")
    if kind == "input":
        return Operand(_read_operand_input(message.input), message.space)
    if kind == "vector":
        return Operand(_read_vector(message.vector), message.space)
    raise BadOptionError("no content: set input or vector", field="content")


def _read_operand_input(message: pb.Input) -> Input:
    try:
        return read_input(message, max_regions=len(message.regions))
    except RequestError as exc:
        raise exc.under("input") from exc


def _read_vector(tensor: pb.Tensor) -> Vector:
    _refuse_unknown(tensor, "vector")
    if not tensor.encoding:
        raise BadOptionError("encoding is unset: say FLOAT32", field="vector.encoding")
    scale = tensor.scale if tensor.HasField("scale") else None
    encoding = _read_encoding(tensor.encoding, "vector.encoding")
    if scale is not None and encoding is not Encoding.INT8:
        raise BadOptionError("scale belongs to INT8: unset it", field="vector.scale")
    return Vector(encoding, tuple(tensor.shape), tensor.data, scale)


def _read_encoding(number: int, field: str = "encoding") -> Encoding:
    try:
        return Encoding(number)
    except ValueError:
        raise UnknownFieldError(f"encoding = {number} is not known to this server", field=field) from None


def _refuse_unknown(message: Message, field: str = "") -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        numbers = sorted({unknown[i].field_number for i in range(len(unknown))})
        raise UnknownFieldError(
            f"{message.DESCRIPTOR.name} has fields {numbers}, which this server does not know", field=field
        )
