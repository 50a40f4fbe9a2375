"""pixvec: images in, vectors out, over gRPC.

>>> with pixvec.Client("localhost:50051") as client:        # doctest: +SKIP
...     vector = client.embed("cat.jpg")                    # (D,) float32
...     vectors = client.embed_batch(["cat.jpg", "dog.jpg"])  # (2, D)

Importing this package loads nothing but the standard library: each name below is loaded when it is first
used, so that a program that needs only the messages of `pixvec.v1` never loads the client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._aio import AsyncClient
    from ._client import Client
    from ._errors import (
        AuthenticationError,
        BadOptionError,
        ConnectionFailedError,
        DeadlineError,
        DrainingError,
        InputError,
        InternalError,
        ModelNotFoundError,
        ModelNotReadyError,
        NonFiniteError,
        OverloadedError,
        PixvecError,
        QuotaExceededError,
        SpaceMismatchError,
        TooLargeError,
        UnavailableError,
        UndecodableError,
        UnknownFieldError,
        UnsupportedFormatError,
    )
    from ._inputs import to_input
    from ._profile import Profile
    from ._types import (
        Embedded,
        Embedding,
        Limits,
        ModelInfo,
        Origin,
        OutputInfo,
        Progress,
        Region,
        Source,
        Target,
        Text,
        Timing,
        TopK,
        Usage,
        Vectors,
    )

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "BadOptionError",
    "Client",
    "ConnectionFailedError",
    "DeadlineError",
    "DrainingError",
    "Embedded",
    "Embedding",
    "InputError",
    "InternalError",
    "Limits",
    "ModelInfo",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "NonFiniteError",
    "Origin",
    "OutputInfo",
    "OverloadedError",
    "PixvecError",
    "Profile",
    "Progress",
    "QuotaExceededError",
    "Region",
    "Source",
    "SpaceMismatchError",
    "Target",
    "Text",
    "Timing",
    "TooLargeError",
    "TopK",
    "UnavailableError",
    "UndecodableError",
    "UnknownFieldError",
    "UnsupportedFormatError",
    "Usage",
    "Vectors",
    "__version__",
    "to_input",
]

_HOMES = {"AsyncClient": "_aio", "Client": "_client", "Profile": "_profile", "to_input": "_inputs"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - each name has its own type, given above
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name) or ("_errors" if name.endswith("Error") else "_types")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
