"""Names of other libraries, kept for programs that move to pixvec: each module says whose they are.

Every vector comes from a server: that of `client`, else of the variable PIXVEC_TARGET, else of
localhost:50051, with the token of the variable PIXVEC_TOKEN if there is one. It must serve the model that is
asked for; an error says which command serves it.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import IO, TypeVar
from uuid import uuid4

from pixvec._client import Client
from pixvec._errors import ConnectionFailedError, ModelNotFoundError, PixvecError
from pixvec._types import EmbedOptions, ModelInfo

__all__ = ("Served", "reworded", "shared_client", "whole_file")

_Error = TypeVar("_Error", bound=PixvecError)
_LOCAL = "localhost:50051"


class Served:
    """A model by the name that a server serves it under.

    client: None: one of the server that the environment names, shared by all that ask for it. flag: what
    follows `pixvec-server serve --model` where that is more than the name.
    """

    def __init__(self, name: str, client: Client | None = None, flag: str = "") -> None:
        self.name = name
        self.command = f"pixvec-server serve --model {shlex.quote(flag or name)}"
        self._client = client or shared_client()

    @cached_property
    def info(self) -> ModelInfo:
        """What the server says of the model, asked once.

        Raises ModelNotFoundError and ConnectionFailedError with the command that serves it.
        """
        try:
            return self._client.model(self.name)
        except (ConnectionFailedError, ModelNotFoundError) as error:
            raise reworded(error, f"{error.message}; serve it with: {self.command}") from error

    @property
    def client(self) -> Client:
        """The client, once its server is known to serve the model; raises as `info` does."""
        assert self.info
        return self._client

    def wanted(self, *, normalize: bool) -> EmbedOptions:
        """Return the options of a call for the model's vectors, in the space that they had from the start.

        A server that is started anew with another network then answers SpaceMismatchError, and no vector.
        """
        return {"model": self.name, "normalize": normalize, "space": self.space()}

    def space(self, output: str = "") -> str:
        """Return the space of an output ("embedding" when empty); empty where the model has none such."""
        found = self.info.output(output)
        return found.space if found else ""

    @property
    def size(self) -> int:
        """Length of the vector."""
        output = self.info.output()
        return output.shape[0] if output else 0

    @property
    def trained(self) -> bool:
        """Whether every number of the vector was learnt: spaces of random weights say so."""
        return not self.space().startswith("s1-untrained-")


def shared_client() -> Client:
    """Return the client of the server that the environment names: one for all, never closed."""
    return _shared(os.environ.get("PIXVEC_TARGET") or _LOCAL, os.environ.get("PIXVEC_TOKEN") or None)


@cache
def _shared(target: str, token: str | None) -> Client:
    return Client(target, token=token)


def reworded(error: _Error, message: str) -> _Error:
    """Return the same error with another message, said of the whole call."""
    return type(error)(
        message,
        reason=error.reason,
        code=error.code,
        retry_after=error.retry_after,
        request_id=error.request_id,
    )


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes its name when it is whole: nobody ever finds half of it under `path`.

    Raises OSError, which names `path`, where it cannot be written.
    """
    draft = path.with_name(f".{uuid4().hex}.tmp")
    try:
        with _named_after(path), draft.open("xb") as file:
            yield file
        with _named_after(path):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _named_after(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
