"""Everything that can go wrong, as one tree.

    PixvecError
    ├── RequestError              the caller's to answer for; carries a Reason
    │   ├── UndecodableError · UnsupportedFormatError · TooLargeError · BadOptionError · UnknownFieldError
    │   ├── ModelNotFoundError · SpaceMismatchError
    │   ├── ModelNotReadyError · DrainingError
    │   ├── OverloadedError · QuotaExceededError
    │   ├── DeadlineError
    │   └── NonFiniteError · InternalError
    └── SetupError                the operator's to answer for; ends the command with exit code 1
        ├── ConfigError · BundleError · CatalogError · ExportError
        └── BackendError

`rpc/status.py` maps the first branch to gRPC codes. Nothing here knows gRPC.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Reason(enum.Enum):
    """The words of `pixvec.v1.Reason`, without the prefix."""

    UNDECODABLE = 1
    UNSUPPORTED_FORMAT = 2
    TOO_LARGE = 3
    BAD_OPTION = 4
    UNKNOWN_FIELD = 5
    MODEL_NOT_FOUND = 6
    MODEL_NOT_READY = 7
    SPACE_MISMATCH = 8
    OVERLOADED = 9
    QUOTA_EXCEEDED = 10
    DEADLINE = 11
    DRAINING = 12
    NON_FINITE = 13
    INTERNAL = 14


_MAX_MESSAGE, _MAX_FIELD = 512, 128


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 4 :]}"


class PixvecError(Exception):
    """Root of the tree."""


class RequestError(PixvecError):
    """A request, or one item of it, that is not answered with a vector.

    `message` is for people and safe to send: it names the field, the value and the mend, never a path or
    a stack. `field` is the path of the field at fault (`targets[0].dimensions`). `retry_after` is in
    seconds; None says that trying again will not help.
    """

    reason: ClassVar[Reason]

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        # Both may echo the caller's own words; they travel in trailers, which have room for 8 KiB.
        self.message = _shortened(message, _MAX_MESSAGE)
        self.field = _shortened(field, _MAX_FIELD)
        super().__init__(self.message)
        self.retry_after = retry_after

    def under(self, field: str) -> RequestError:
        """Return the same error with `field` in front of its own field path."""
        path = f"{field}.{self.field}" if self.field else field
        return type(self)(self.message, field=path, retry_after=self.retry_after)


class UndecodableError(RequestError):
    """The bytes are not a whole image, or the pixels do not fit their shape."""

    reason = Reason.UNDECODABLE


class UnsupportedFormatError(RequestError):
    """An image, of a format that is not on the allow-list."""

    reason = Reason.UNSUPPORTED_FORMAT


class TooLargeError(RequestError):
    """Over one of the limits; the message names it."""

    reason = Reason.TOO_LARGE


class BadOptionError(RequestError):
    """An option that this server or model cannot obey."""

    reason = Reason.BAD_OPTION


class UnknownFieldError(RequestError):
    """A field or enum value that this server does not know."""

    reason = Reason.UNKNOWN_FIELD


class ModelNotFoundError(RequestError):
    """No model has that name."""

    reason = Reason.MODEL_NOT_FOUND


class ModelNotReadyError(RequestError):
    """The model is loading, or has failed to load."""

    reason = Reason.MODEL_NOT_READY


class SpaceMismatchError(RequestError):
    """The answer would be in another space than the one pinned."""

    reason = Reason.SPACE_MISMATCH


class OverloadedError(RequestError):
    """The queue is full, or the deadline cannot be met."""

    reason = Reason.OVERLOADED


class QuotaExceededError(RequestError):
    """The tenant's own limit is reached."""

    reason = Reason.QUOTA_EXCEEDED


class DeadlineError(RequestError):
    """Not done before the deadline."""

    reason = Reason.DEADLINE


class DrainingError(RequestError):
    """The server is stopping."""

    reason = Reason.DRAINING


class NonFiniteError(RequestError):
    """The model answered NaN or infinity."""

    reason = Reason.NON_FINITE


class InternalError(RequestError):
    """A fault of the server."""

    reason = Reason.INTERNAL


class SetupError(PixvecError):
    """The server or a command cannot do what its configuration asks."""


class ConfigError(SetupError):
    """A setting is unknown, malformed or contradicts another."""


class CatalogError(SetupError):
    """No model has that name, and no bundle lies at that path."""


class BundleError(SetupError):
    """A bundle is missing, incomplete, altered or of another format."""


class ExportError(SetupError):
    """A bundle could not be made, or did not agree with its source."""


class BackendError(SetupError):
    """The backend, device or precision asked for is not to be had here."""
