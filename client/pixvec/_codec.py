"""The contract's messages to the client's values and back. No input, no output, no clock."""

import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from pixvec.v1 import embedding_pb2 as pb

from ._errors import BadOptionError, InternalError, PixvecError, from_message
from ._tensors import NAMES, decode_tensor, encode_vector, encoding_code
from ._types import (
    Array,
    Catalog,
    Embedded,
    Embedding,
    Limits,
    ModelInfo,
    Origin,
    OutputInfo,
    Source,
    Target,
    Timing,
    TopK,
    Usage,
)

_METRICS = {"cosine": pb.METRIC_COSINE, "dot": pb.METRIC_DOT, "euclidean": pb.METRIC_EUCLIDEAN}
_HEALTH_STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def target_message(target: Target) -> pb.Target:
    """Return the message for a target; raises BadOptionError for a value that no target can have."""
    encoding = encoding_code(target.encoding)
    try:
        return pb.Target(
            model=target.model,
            output=target.output,
            dimensions=target.dimensions,
            normalize=cast("bool", target.normalize),  # the stub forgets that None leaves it unset
            encoding=encoding,
            space=target.space,
        )
    except (TypeError, ValueError) as error:
        raise BadOptionError(f"{target!r}: {error}") from error


def embedded(message: pb.Embedded, report: pb.Report) -> Embedded:
    """Return the answer for one input; an Error in place of a vector stays in its place."""
    origins = tuple(_origin(origin) for origin in report.origins)
    rows: dict[int, dict[int, Embedding]] = {}
    for item in message.embeddings:
        rows.setdefault(item.region, {})[item.target] = _embedding(item, origins)
    if not rows:
        raise InternalError("the server answered an input with no embedding and no error")
    return Embedded(
        embeddings=tuple(tuple(row[t] for t in sorted(row)) for _, row in sorted(rows.items())),
        source=_source(message.source),
        origins=origins,
        usage=_usage(report.usage),
        timing=timing(report.timing),
    )


def batch_results(
    response: pb.EmbedBatchResponse | pb.EmbedStreamResponse, indices: Sequence[int]
) -> list[tuple[int, Embedded | PixvecError]]:
    """Return each input's answer with its index among all those of the caller."""
    if len(response.results) != len(indices):
        raise InternalError(f"the server answered {len(response.results)} of {len(indices)} inputs")
    return [
        (index, _result(result, response.report, index))
        for index, result in zip(indices, response.results, strict=True)
    ]


def _result(result: pb.Result, report: pb.Report, index: int) -> Embedded | PixvecError:
    if result.WhichOneof("outcome") == "embedded":
        return embedded(result.embedded, report)
    # The server counts within its request; the caller, who is told `index`, within all that it passed in.
    error = from_message(result.error, index=index)
    error.message = re.sub(r"^inputs\[\d+\]\.(image: )?", "", error.message)
    return error


def _embedding(item: pb.Embedding, origins: Sequence[Origin]) -> Embedding:
    origin = origins[item.target] if item.target < len(origins) else None
    if item.WhichOneof("outcome") != "vector":
        return Embedding(None, "float32", origin=origin, error=from_message(item.error))
    tensor = item.vector
    scale = tensor.scale if tensor.HasField("scale") else None
    return Embedding(decode_tensor(tensor), NAMES[tensor.encoding], scale, origin)


def _origin(message: pb.Origin) -> Origin:
    return Origin(message.model, message.space, message.build, message.normalized)


def _source(message: pb.Source) -> Source:
    return Source(message.width, message.height, message.format, message.frames, message.truncated)


def _usage(message: pb.Usage) -> Usage:
    return Usage(message.vectors, message.pixels, message.tokens, message.cached)


def timing(message: pb.Timing) -> Timing:
    """Return what a request took in the server."""
    return Timing(message.decode_ns, message.queue_ns, message.compute_ns, message.total_ns)


def catalog(response: pb.ListModelsResponse) -> Catalog:
    """Return what a server said of itself."""
    models = tuple(model_info(model) for model in response.models)
    return Catalog(models, limits(response.limits), response.server_version)


def limits(message: pb.Limits) -> Limits:
    """Return a server's limits; 0 where it stated none."""
    values: dict[str, Any] = {name: getattr(message, name) for name in Limits.__dataclass_fields__}
    return Limits(**(values | {"formats": tuple(message.formats)}))


def model_info(message: pb.Model) -> ModelInfo:
    """Return what a server said of one model."""
    return ModelInfo(
        name=message.name,
        aliases=tuple(message.aliases),
        state=pb.State.Name(message.state).removeprefix("STATE_").lower(),
        build=message.build,
        licence=message.licence,
        outputs=tuple(_output_info(output) for output in message.outputs),
        prompts=tuple(message.prompts),
        max_text_tokens=message.max_text_tokens,
        logit_scale=message.logit_scale if message.HasField("logit_scale") else None,
        logit_bias=message.logit_bias if message.HasField("logit_bias") else None,
        parity=message.parity if message.HasField("parity") else None,
        backend=message.backend,
        device=message.device,
        precision=message.precision,
        preprocessing=message.preprocessing,
        input_size=tuple(message.input_size),
        selection=message.selection,
    )


def _output_info(message: pb.Output) -> OutputInfo:
    return OutputInfo(
        name=message.name,
        space=message.space,
        shape=tuple(message.shape),
        dimensions=tuple(message.dimensions),
        normalized=message.normalized,
        int8_scales=tuple(message.int8_scales),
    )


def metric_code(metric: str) -> pb.Metric:
    """Return the enum value for a metric's name."""
    if metric not in _METRICS:
        raise BadOptionError(f"metric must be one of {', '.join(_METRICS)}, not {metric!r}")
    return _METRICS[metric]


def vector_operand(vector: Array | Embedding, space: str) -> pb.Operand:
    """Return the operand for a vector of a named space; an Embedding names its own.

    Raises the error of an Embedding that has no vector.
    """
    if isinstance(vector, Embedding):
        named = vector.origin.space if vector.origin else space
        return pb.Operand(vector=encode_vector(vector.dequantized()), space=named)
    if not space:
        raise BadOptionError(
            "vectors need space=: the Origin.space that they were made in, since vectors of two spaces "
            "have no similarity"
        )
    return pb.Operand(vector=encode_vector(vector), space=space)


def score_matrix(response: pb.SimilarityResponse) -> Array:
    """Return the scores of every query against every candidate, float32 (Q, C)."""
    return np.stack([_scores(row) for row in response.rows])


def top_k(response: pb.SimilarityResponse) -> TopK:
    """Return the nearest candidates of each query, nearest first."""
    indices = np.array([list(row.indices) for row in response.rows], dtype=np.int64)
    return TopK(indices, score_matrix(response))


def _scores(row: pb.Row) -> Array:
    return np.frombuffer(row.scores, "<f4").astype(np.float32)


def health_request(service: str) -> bytes:
    """Return a grpc.health.v1.HealthCheckRequest: field 1, the service, as a string.

    Written by hand: the two messages are a few bytes, and their package would be one more dependency of
    every client.
    """
    name = service.encode()
    if len(name) > 127:
        raise BadOptionError("a service name is at most 127 bytes")
    return bytes([0x0A, len(name)]) + name if name else b""


def health_state(response: bytes) -> str:
    """Return the status of a grpc.health.v1.HealthCheckResponse: field 1, an enum below 128."""
    status = response[1] if len(response) > 1 and response[0] == 0x08 else 0
    return _HEALTH_STATES[status] if status < len(_HEALTH_STATES) else "UNKNOWN"
