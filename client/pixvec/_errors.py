"""What can go wrong.

PixvecError
├── InputError                  the input cannot be read or sent
├── UndecodableError            UNDECODABLE: the bytes are not a whole image
├── UnsupportedFormatError      UNSUPPORTED_FORMAT: an image of a format that the server does not decode
├── TooLargeError               TOO_LARGE: over a limit, which the message names
├── BadOptionError              BAD_OPTION: an option that cannot be obeyed
├── UnknownFieldError           UNKNOWN_FIELD: the server is older than this client
├── ModelNotFoundError          MODEL_NOT_FOUND
├── SpaceMismatchError          SPACE_MISMATCH: the answer would not be comparable
├── OverloadedError             OVERLOADED: try again after `retry_after`
│   └── QuotaExceededError      QUOTA_EXCEEDED: the tenant's own limit
├── DeadlineError               DEADLINE: not done in time
├── UnavailableError            no server answered
│   ├── ConnectionFailedError   none could be reached
│   ├── ModelNotReadyError      MODEL_NOT_READY: loading, or failed to load
│   └── DrainingError           DRAINING: the server is stopping
├── InternalError               INTERNAL: a fault of the server; its log has `request_id`
│   └── NonFiniteError          NON_FINITE: the model answered NaN or infinity
└── AuthenticationError         the token is missing, wrong or not allowed to do this

The server raises them, and the client raises the same ones when it knows the answer before it asks.
"""

import re
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import grpc
from google.protobuf import message as messages

from pixvec.v1 import embedding_pb2 as pb

ERROR_KEY = "pixvec-error-bin"
REQUEST_ID_KEY = "x-request-id"


class PixvecError(Exception):
    """Base of every error of this package.

    message: for people. reason: the contract's word, such as "UNDECODABLE"; empty when there is none.
    code: the gRPC status, such as "INVALID_ARGUMENT". retry_after: seconds after which trying again may
    help; None: it will not. request_id: what to look for in the server's log. index: position of the failed
    item among those passed in; None when the whole call failed.
    """

    default_reason: ClassVar[str] = ""
    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        retry_after: float | None = None,
        request_id: str | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.code = code or self.default_code
        self.retry_after = retry_after
        self.request_id = request_id
        self.index = index

    def __str__(self) -> str:
        return self.message if self.index is None else f"images[{self.index}]: {self.message}"

    def at(self, index: int) -> Self:
        """Return the same error said of one item: a request that fails fails for each of its items."""
        same = type(self)(
            self.message,
            reason=self.reason,
            code=self.code,
            retry_after=self.retry_after,
            request_id=self.request_id,
            index=index,
        )
        same.__cause__ = self.__cause__
        return same


class InputError(PixvecError):
    """The input cannot be read or sent; the message names it and how to fix it. Nothing was sent."""

    default_code = "INVALID_ARGUMENT"


class UndecodableError(PixvecError):
    """The bytes are not a whole image, or the pixels do not fit their shape."""

    default_reason = "UNDECODABLE"
    default_code = "INVALID_ARGUMENT"


class UnsupportedFormatError(PixvecError):
    """An image of a format that the server does not decode; see Limits.formats."""

    default_reason = "UNSUPPORTED_FORMAT"
    default_code = "INVALID_ARGUMENT"


class TooLargeError(PixvecError):
    """Over one of the server's limits or of the client's own; the message names limit and size."""

    default_reason = "TOO_LARGE"
    default_code = "INVALID_ARGUMENT"


class BadOptionError(PixvecError):
    """An option that the server, the model or the client cannot obey."""

    default_reason = "BAD_OPTION"
    default_code = "INVALID_ARGUMENT"


class UnknownFieldError(PixvecError):
    """The server does not know a field or value that was sent: it is older than this client."""

    default_reason = "UNKNOWN_FIELD"
    default_code = "INVALID_ARGUMENT"


class ModelNotFoundError(PixvecError):
    """No model has that name."""

    default_reason = "MODEL_NOT_FOUND"
    default_code = "NOT_FOUND"


class SpaceMismatchError(PixvecError):
    """The answer would be in another space than the one pinned, or than that of the vectors before it."""

    default_reason = "SPACE_MISMATCH"
    default_code = "FAILED_PRECONDITION"


class OverloadedError(PixvecError):
    """The server's queue is full or the deadline cannot be met; try again after `retry_after` seconds."""

    default_reason = "OVERLOADED"
    default_code = "RESOURCE_EXHAUSTED"


class QuotaExceededError(OverloadedError):
    """The tenant's own limit: no other server helps before `retry_after` seconds."""

    default_reason = "QUOTA_EXCEEDED"


class DeadlineError(PixvecError):
    """Not done within the timeout."""

    default_reason = "DEADLINE"
    default_code = "DEADLINE_EXCEEDED"


class UnavailableError(PixvecError):
    """No server answered, after the retries that the client makes by itself."""

    default_code = "UNAVAILABLE"


class ConnectionFailedError(UnavailableError):
    """No server could be reached at the target."""


class ModelNotReadyError(UnavailableError):
    """The model is loading or has failed to load."""

    default_reason = "MODEL_NOT_READY"


class DrainingError(UnavailableError):
    """The server is stopping; another one may answer."""

    default_reason = "DRAINING"


class InternalError(PixvecError):
    """A fault of the server; its log has `request_id`."""

    default_reason = "INTERNAL"
    default_code = "INTERNAL"

    def __str__(self) -> str:
        said = super().__str__()
        return f"{said} (request {self.request_id})" if self.request_id else said


class NonFiniteError(InternalError):
    """The model answered NaN or infinity."""

    default_reason = "NON_FINITE"


class AuthenticationError(PixvecError):
    """The token is missing, wrong or not allowed to do this."""

    default_code = "UNAUTHENTICATED"


BY_REASON: dict[int, type[PixvecError]] = {
    pb.REASON_UNDECODABLE: UndecodableError,
    pb.REASON_UNSUPPORTED_FORMAT: UnsupportedFormatError,
    pb.REASON_TOO_LARGE: TooLargeError,
    pb.REASON_BAD_OPTION: BadOptionError,
    pb.REASON_UNKNOWN_FIELD: UnknownFieldError,
    pb.REASON_MODEL_NOT_FOUND: ModelNotFoundError,
    pb.REASON_MODEL_NOT_READY: ModelNotReadyError,
    pb.REASON_SPACE_MISMATCH: SpaceMismatchError,
    pb.REASON_OVERLOADED: OverloadedError,
    pb.REASON_QUOTA_EXCEEDED: QuotaExceededError,
    pb.REASON_DEADLINE: DeadlineError,
    pb.REASON_DRAINING: DrainingError,
    pb.REASON_NON_FINITE: NonFiniteError,
    pb.REASON_INTERNAL: InternalError,
}

# For a failure that names no Reason known here: a proxy's, the transport's, a newer server's.
BY_CODE: dict[str, type[PixvecError]] = {
    "INVALID_ARGUMENT": BadOptionError,
    "NOT_FOUND": ModelNotFoundError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "UNAVAILABLE": UnavailableError,
    "CANCELLED": UnavailableError,
    "INTERNAL": InternalError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": AuthenticationError,
}

# What gRPC says where it watches the health of servers, and none is SERVING.
_UNHEALTHY = "backend unhealthy"
_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def from_message(error: pb.Error, *, request_id: str | None = None, index: int | None = None) -> PixvecError:
    """Return the exception for an Error of the contract."""
    code = _CODE_NAMES.get(error.code, "UNKNOWN")
    kind = BY_REASON.get(error.reason) or BY_CODE.get(code, PixvecError)
    return kind(
        error.message or "the server gave no message",
        reason=_reason_name(error.reason),
        code=code,
        retry_after=_seconds(error),
        request_id=request_id,
        index=index,
    )


def from_rpc(error: grpc.RpcError, target: str) -> PixvecError:
    """Return the exception for a failed call to `target`: what the server said of it, else what gRPC did.

    For calls that nobody on this side has cancelled. CANCELLED then comes from the server, whose gRPC core
    answers it to calls that wait there when the server stops, and becomes UNAVAILABLE.
    """
    trailers = dict(_pairs(error.trailing_metadata()))
    request_id = trailers.get(REQUEST_ID_KEY)
    if said := _said(trailers.get(ERROR_KEY)):
        return from_message(said, request_id=request_id)
    code, details = error.code().name, error.details() or "no details"
    if code == "CANCELLED":
        code, details = "UNAVAILABLE", f"the server at {target} cancelled the call: {details}"
    kind, message = _bare(code, details, target)
    return kind(message, code=code, request_id=request_id)


def is_not_serving(error: PixvecError) -> bool:
    """Tell whether a call was not sent, since no server of several says SERVING."""
    cause = error.__cause__
    return isinstance(cause, grpc.RpcError) and _UNHEALTHY in (cause.details() or "")


def _said(trailer: bytes | None) -> pb.Error | None:
    try:
        return None if trailer is None else pb.Error.FromString(trailer)
    except messages.DecodeError:
        return None


def _bare(code: str, details: str, target: str) -> tuple[type[PixvecError], str]:
    if code == "UNAVAILABLE" and _UNHEALTHY in details:
        return UnavailableError, f"no server of {target} is SERVING: they are loading or stopping"
    if code == "UNAVAILABLE" and re.search("connect|resol|handshake", details, re.IGNORECASE):
        cause = re.sub(r"^.*last error: (UNKNOWN: |UNAVAILABLE: )?", "", details, flags=re.DOTALL)
        what = "no TLS connection to" if "handshake" in cause else "no server at"
        return ConnectionFailedError, f"{what} {target}: {cause}"
    if details == "Deadline Exceeded":
        return DeadlineError, f"{target} did not answer within the timeout"
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return TooLargeError, details
    if code == "UNIMPLEMENTED":
        return PixvecError, f"the server at {target} does not offer this call: {details}"
    return BY_CODE.get(code, PixvecError), details


def _pairs(metadata: Iterable[Any] | None) -> Iterable[tuple[str, Any]]:
    return ((key, value) for key, value in metadata or ())


def _reason_name(reason: int) -> str:
    if reason in pb.Reason.values():
        return pb.Reason.Name(pb.Reason.ValueType(reason)).removeprefix("REASON_").replace("UNSPECIFIED", "")
    return str(reason)


def _seconds(error: pb.Error) -> float | None:
    if not error.HasField("retry_after"):
        return None
    return error.retry_after.seconds + error.retry_after.nanos / 1e9
