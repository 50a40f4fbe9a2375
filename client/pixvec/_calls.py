"""One call, planned: its metadata and deadline, what a server says of itself, and when to ask again."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from google.protobuf.message import Message

from pixvec.v1 import embedding_pb2 as pb

from . import _codec
from ._channel import Endpoint
from ._chunks import check_size
from ._effects import Call, Plan, Rpc, Sleep
from ._errors import (
    BadOptionError,
    DeadlineError,
    InternalError,
    ModelNotFoundError,
    UnavailableError,
    is_not_serving,
)
from ._inputs import URL_MAX_BYTES, URL_TIMEOUT_S
from ._types import CallOptions, Catalog, EmbedOptions, Limits, ModelInfo, Priority, Target

# Below gRPC's own default limit every server answers a request that is too large in its own words.
_UNQUESTIONED_BYTES = 4 << 20
CALL_OPTIONS = frozenset(CallOptions.__annotations__)
EMBED_OPTIONS = frozenset(EmbedOptions.__annotations__)
_TRACE = ("traceparent", "tracestate", "baggage")
_MOST_TOKENS, _TOKENS_A_SUCCESS = 10.0, 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was made with; see Client."""

    endpoint: Endpoint
    model: str = ""
    timeout: float = 30.0
    priority: Priority | None = None
    tenant: str | None = None
    max_side: int | None = None
    url_timeout_s: float = URL_TIMEOUT_S
    url_max_bytes: int = URL_MAX_BYTES


class Budget:
    """How much asking again a server must bear: gRPC's own throttling, for what is asked again above it.

    Every failure takes a token, every success gives a tenth of one; below half of them nothing is tried
    again. However long a server refuses, it sees few more calls than were made.
    """

    def __init__(self) -> None:
        self._tokens = _MOST_TOKENS
        self._lock = Lock()

    def failed(self) -> bool:
        """Count a failure; tell whether another try is allowed."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > _MOST_TOKENS / 2

    def succeeded(self) -> None:
        """Count a success."""
        with self._lock:
            self._tokens = min(_MOST_TOKENS, self._tokens + _TOKENS_A_SUCCESS)


@dataclass(slots=True)
class Calls:
    """Plans of single calls to one service."""

    settings: Settings
    clock: Callable[[], float] = time.monotonic
    budget: Budget = field(default_factory=Budget)
    _catalog: Catalog | None = field(default=None, init=False)

    def call(self, method: str, request: Message | bytes, model: str, options: CallOptions) -> Plan[Any]:
        """Plan a call; a fault of the server's own is tried once more."""
        rpc = self.rpc(method, request, model, options)
        try:
            return (yield Call(rpc))
        except InternalError:
            return (yield Call(again(rpc)))

    def rpc(self, method: str, request: Message | bytes, model: str, options: CallOptions) -> Rpc:
        """Return a call with its metadata, due within the timeout from now."""
        refuse_unknown(options, CALL_OPTIONS)
        return Rpc(method, request, self._metadata(model, options), self.clock() + self.timeout(options))

    def timeout(self, options: CallOptions) -> float:
        """Return the seconds that one request may take."""
        timeout = options.get("timeout")
        return self.settings.timeout if timeout is None else timeout

    def targets(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets with the client's model where they name none; one of defaults for none."""
        chosen = targets or (Target(),)
        return [replace(t, model=t.model or self.settings.model) for t in chosen]

    def check_size(self, message: pb.Input) -> Plan[None]:
        """Plan to raise TooLargeError for an input that no request can hold."""
        most = self.settings.endpoint.max_message_bytes
        limits = Limits()
        if message.ByteSize() > min(_UNQUESTIONED_BYTES, most):
            limits = yield from self.limits()
        check_size(message, limits, most)

    # The server itself

    def catalog(self, *, fresh: bool = False, options: CallOptions | None = None) -> Plan[Catalog]:
        """Plan what the server says of itself, asked once unless `fresh`."""
        if self._catalog is None or fresh:
            response = yield from self.call("ListModels", pb.ListModelsRequest(), "", options or {})
            self._catalog = _codec.catalog(response)
        return self._catalog

    def models(self, options: CallOptions) -> Plan[list[ModelInfo]]:
        """Plan the models as they are now."""
        catalog = yield from self.catalog(fresh=True, options=options)
        return list(catalog.models)

    def model(self, name: str, options: CallOptions) -> Plan[ModelInfo]:
        """Plan one model as it is now."""
        chosen = name or self.settings.model
        response = yield from self.call("GetModel", pb.GetModelRequest(model=chosen), chosen, options)
        return _codec.model_info(response.model)

    def limits(self) -> Plan[Limits]:
        """Plan the server's limits."""
        return (yield from self.catalog()).limits

    def health_state(self, service: str, options: CallOptions) -> Plan[str]:
        """Plan the state of a service; of several servers, that of one that serves, where there is one."""
        rpc = self.rpc("Health", _codec.health_request(service), "", options)
        try:
            response: bytes = yield Call(rpc)
        except ModelNotFoundError:
            return "SERVICE_UNKNOWN"
        except UnavailableError as error:
            if is_not_serving(error):
                return "NOT_SERVING"
            raise
        return _codec.health_state(response)

    def health(self, service: str, options: CallOptions) -> Plan[bool]:
        """Plan whether a service answers; a server that cannot be reached does not."""
        try:
            return (yield from self.health_state(service, options)) == "SERVING"
        except (UnavailableError, DeadlineError):
            return False

    def wait_ready(self, timeout: float, service: str) -> Plan[None]:
        """Plan to wait until a service answers; raises DeadlineError after `timeout` seconds.

        Raises PixvecError of code UNIMPLEMENTED at once where the server has no health service.
        """
        deadline, pause, last = self.clock() + timeout, 0.05, "it was not asked"
        while (left := deadline - self.clock()) > 0:
            try:
                last = yield from self.health_state(service, {"timeout": min(left, 5.0)})
            except (UnavailableError, DeadlineError) as error:
                last = str(error)
            if last == "SERVING":
                return
            yield Sleep(min(pause, max(deadline - self.clock(), 0.0)))
            pause = min(pause * 2, 0.5)
        raise DeadlineError(f"{self.settings.endpoint.target} was not ready within {timeout:g} s: {last}")

    def _metadata(self, model: str, options: CallOptions) -> tuple[tuple[str, str], ...]:
        token = self.settings.endpoint.token
        pairs: dict[str, Any] = {
            "authorization": f"Bearer {token}" if token is not None else None,
            # For routing only: a name that no header can hold goes in the message alone.
            "pixvec-model": model if _printable(model) else None,
            "pixvec-priority": self.settings.priority,
            "pixvec-tenant": self.settings.tenant,
            "x-request-id": options.get("request_id") or uuid.uuid4().hex,
            **{key: options.get(key) for key in _TRACE},
        }
        for key, value in pairs.items():
            if value and not _printable(value):
                raise BadOptionError(f"{key} must be printable ASCII of at most 4096 characters")
        return tuple((key, value) for key, value in pairs.items() if value)


def again(rpc: Rpc, times: int = 1) -> Rpc:
    """Return the same call under an id of its own: ids tell bills and logs one attempt from another."""
    mark = "-again" if times == 1 else f"-again-{times}"
    metadata = tuple((k, v + mark if k == "x-request-id" else v) for k, v in rpc.metadata)
    return replace(rpc, metadata=metadata)


def refuse_unknown(options: Mapping[str, object], known: frozenset[str]) -> None:
    """Raise TypeError for a misspelt option, as Python does where there is no `**options` to swallow it."""
    if unknown := options.keys() - known:
        hint = "; that goes into targets=[Target(…)]" if unknown <= EMBED_OPTIONS - {"prompt"} else ""
        raise TypeError(f"no option {', '.join(sorted(unknown))} here, only {', '.join(sorted(known))}{hint}")


def _printable(value: str) -> bool:
    return len(value) <= 4096 and value.isascii() and value.isprintable()
