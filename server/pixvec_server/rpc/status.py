"""One table from errors to gRPC: status code, trailing metadata, details."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from pixvec_server import errors
from pixvec_server.errors import QuotaExceededError, Reason, RequestError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from pixvec.v1 import embedding_pb2 as pb

_CODES: dict[type[RequestError], grpc.StatusCode] = {
    errors.UndecodableError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedFormatError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLargeError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadOptionError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownFieldError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.SpaceMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelNotReadyError: grpc.StatusCode.UNAVAILABLE,
    errors.DrainingError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NonFiniteError: grpc.StatusCode.INTERNAL,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}
# Where the Open Inference Protocol's clients expect another: a full queue is UNAVAILABLE with Triton.
_OIP_CODES = _CODES | {
    errors.OverloadedError: grpc.StatusCode.UNAVAILABLE,
    errors.QuotaExceededError: grpc.StatusCode.UNAVAILABLE,
}
_OIP = "/inference."
# Stops the native retries of every gRPC library.
_NEVER = "-1"
DOMAIN = "pixvec"


class UnauthenticatedError(errors.PixvecError):
    """The call brings no token, or one that the server does not know."""


def code_of(error: RequestError, method: str = "") -> grpc.StatusCode:
    """Return an error's status code in a method's protocol, looked up along its classes."""
    table = _OIP_CODES if method.startswith(_OIP) else _CODES
    return next(table[kind] for kind in type(error).__mro__ if kind in table)


def trailers(error: RequestError, message: pb.Error) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata of a failed call: for thin clients, for googleapis' clients, for native retries."""
    pairs: list[tuple[str, str | bytes]] = [
        ("pixvec-error-bin", message.SerializeToString()),
        ("grpc-status-details-bin", _details(error, message).SerializeToString()),
    ]
    if isinstance(error, QuotaExceededError):
        pairs.append(("grpc-retry-pushback-ms", _NEVER))
    elif error.reason is Reason.OVERLOADED and error.retry_after is not None:
        pairs.append(("grpc-retry-pushback-ms", str(max(1, round(error.retry_after * 1000)))))
    return tuple(pairs)


def _details(error: RequestError, message: pb.Error) -> status_pb2.Status:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN)]
    if message.HasField("retry_after"):
        details.append(error_details_pb2.RetryInfo(retry_delay=message.retry_after))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, QuotaExceededError):
        violation = error_details_pb2.QuotaFailure.Violation(subject=error.field, description=error.message)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=message.code, message=message.message, details=packed)
