"""Every Reason of the contract has its exception, and an exception tells all that the server said."""

import copy
import pickle
from typing import Any

import grpc
import pytest

import pixvec
from pixvec import _errors
from pixvec.v1 import embedding_pb2 as pb

# The contract's table.
CODES = {
    "UNDECODABLE": "INVALID_ARGUMENT",
    "UNSUPPORTED_FORMAT": "INVALID_ARGUMENT",
    "TOO_LARGE": "INVALID_ARGUMENT",
    "BAD_OPTION": "INVALID_ARGUMENT",
    "UNKNOWN_FIELD": "INVALID_ARGUMENT",
    "MODEL_NOT_FOUND": "NOT_FOUND",
    "MODEL_NOT_READY": "UNAVAILABLE",
    "SPACE_MISMATCH": "FAILED_PRECONDITION",
    "OVERLOADED": "RESOURCE_EXHAUSTED",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "DEADLINE": "DEADLINE_EXCEEDED",
    "DRAINING": "UNAVAILABLE",
    "NON_FINITE": "INTERNAL",
    "INTERNAL": "INTERNAL",
}


class Failure(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode, details: str | None, trailers: Any = ()) -> None:
        super().__init__()
        self._said = code, details, trailers

    def code(self) -> Any:
        return self._said[0]

    def details(self) -> str | None:
        return self._said[1]

    def trailing_metadata(self) -> Any:
        return self._said[2]


def test_every_reason_has_its_exception_and_code() -> None:
    reasons = {name.removeprefix("REASON_"): value for name, value in pb.Reason.items() if value}
    assert set(reasons) == set(CODES)
    assert set(_errors.BY_REASON) == set(reasons.values())
    assert len(set(_errors.BY_REASON.values())) == len(CODES)
    for name, value in reasons.items():
        kind = _errors.BY_REASON[value]
        assert (kind.default_reason, kind.default_code) == (name, CODES[name])
        assert getattr(pixvec, kind.__name__) is kind


def test_the_docstring_draws_every_exception() -> None:
    kinds = [k for k in vars(_errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > len(CODES)
    for kind in kinds:
        assert kind.__name__ in (_errors.__doc__ or "")
        assert kind.__name__ in pixvec.__all__


def test_a_message_becomes_an_exception() -> None:
    message = pb.Error(code=8, reason=pb.REASON_QUOTA_EXCEEDED, message="10 of 10")
    message.retry_after.FromMilliseconds(2500)
    error = _errors.from_message(message, request_id="r", index=3)
    assert type(error) is pixvec.QuotaExceededError
    assert isinstance(error, pixvec.OverloadedError)
    assert (error.reason, error.code, error.retry_after) == ("QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED", 2.5)
    assert (error.request_id, error.index, str(error)) == ("r", 3, "images[3]: 10 of 10")


def test_a_reason_of_a_newer_server_falls_back_to_the_code() -> None:
    newer = pb.Error.FromString(pb.Error(code=14, message="new").SerializeToString() + b"\x10\x63")
    error = _errors.from_message(newer)
    assert type(error) is pixvec.UnavailableError
    assert error.reason == "99"
    assert type(_errors.from_message(pb.Error(code=99))) is pixvec.PixvecError


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", pixvec.ConnectionFailedError),
        ("UNAVAILABLE", "DNS resolution failed for x", pixvec.ConnectionFailedError),
        ("UNAVAILABLE", "Socket closed", pixvec.UnavailableError),
        ("UNAVAILABLE", "failed to connect; last error: UNKNOWN: backend unhealthy", pixvec.UnavailableError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", pixvec.TooLargeError),
        ("RESOURCE_EXHAUSTED", "too many streams", pixvec.OverloadedError),
        ("UNAUTHENTICATED", "no token", pixvec.AuthenticationError),
        ("PERMISSION_DENIED", "not yours", pixvec.AuthenticationError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", pixvec.DeadlineError),
        ("INTERNAL", None, pixvec.InternalError),
        ("UNIMPLEMENTED", "Method not found!", pixvec.PixvecError),
        ("FAILED_PRECONDITION", "said by a proxy", pixvec.PixvecError),
    ],
)
def test_a_bare_status_becomes_an_exception(code: str, details: str | None, kind: type) -> None:
    error = _errors.from_rpc(Failure(grpc.StatusCode[code], details, None), "host:1")
    assert type(error) is kind
    assert error.code == code
    assert error.request_id is None


def test_what_the_server_said_wins_over_the_status() -> None:
    said = pb.Error(code=3, reason=pb.REASON_TOO_LARGE, message="image_bytes").SerializeToString()
    trailers = (("pixvec-error-bin", said), ("x-request-id", "r7"))
    error = _errors.from_rpc(Failure(grpc.StatusCode.UNKNOWN, "proxy", trailers), "host:1")
    assert type(error) is pixvec.TooLargeError
    assert (error.code, error.message, error.request_id) == ("INVALID_ARGUMENT", "image_bytes", "r7")


@pytest.mark.parametrize("kind", list(_errors.BY_REASON.values()))
def test_exceptions_cross_processes(kind: type[pixvec.PixvecError]) -> None:
    error = kind("said", retry_after=1.5, request_id="r", index=2)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), error.at(2)):
        assert type(twin) is kind
        assert vars(twin) == vars(error)
        assert str(twin) == str(error)
