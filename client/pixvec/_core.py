"""What a client does, without doing it: plans that ask for calls, reads and waits.

A plan is a generator. It yields an effect (`Call`, `Read`, `Sleep`, … of _effects.py), is sent its outcome,
and returns the answer. It never blocks and never awaits, so that one plan serves both clients:

    Client.embed -> Core.embed (plan) -- yields Read(image) --> Client._drive reads the file
                                      <-- sent the Input ------
                                      -- yields Call(rpc) ----> Client._drive makes the call and blocks;
                                      <-- sent the response --- AsyncClient._drive makes it and awaits
                                      returns the vector

`yield from` runs one plan within another. A call that fails is thrown into the plan as a PixvecError. Only
`embed_many` yields `Emit`: the driver hands each such value to the caller, who may be slow or may stop.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, TypeAlias, cast

import numpy as np
from google.protobuf.message import Message

from pixvec.v1 import embedding_pb2 as pb

from . import _codec
from ._channel import Endpoint, Tls
from ._chunks import Chunk, Room, check_size, vector_shape
from ._effects import END, Call, Emit, Items, Pending, Plan, Read, Rpc, Sleep, Start, Take, Wait
from ._errors import (
    BadOptionError,
    DeadlineError,
    InternalError,
    ModelNotFoundError,
    PixvecError,
    SpaceMismatchError,
    UnavailableError,
)
from ._inputs import (
    URL_MAX_BYTES,
    URL_TIMEOUT_S,
    ImageLike,
    is_vector,
    operands_of,
    text_input,
    to_input,
    with_options,
)
from ._types import (
    Array,
    CallOptions,
    Catalog,
    Embedded,
    Embedding,
    EmbedOptions,
    Limits,
    ModelInfo,
    OnError,
    Priority,
    RegionLike,
    Target,
    TopK,
)

# Below gRPC's own default limit every server answers a request that is too large in its own words.
_UNQUESTIONED_BYTES = 4 << 20
_CALL_OPTIONS = frozenset(CallOptions.__annotations__)
_EMBED_OPTIONS = frozenset(EmbedOptions.__annotations__)
Outcome: TypeAlias = Embedded | PixvecError


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was made with; see Client."""

    endpoint: Endpoint
    model: str = ""
    timeout: float = 30.0
    priority: Priority | None = None
    tenant: str | None = None
    url_timeout_s: float = URL_TIMEOUT_S
    url_max_bytes: int = URL_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Many:
    """What is wanted of many images.

    regions: a list for each image. patient: when the server goes away in the middle, wait for it to come
    back, as long as one request's timeout, before anything fails.
    """

    targets: Sequence[Target] = ()
    regions: Iterable[Sequence[RegionLike]] | None = None
    prompt: str = ""
    batch_size: int = 32
    in_flight: int = 2
    on_error: OnError = "raise"
    options: CallOptions = field(default_factory=CallOptions)
    patient: bool = False


@dataclass(slots=True)
class _Job:
    """One run through many images: what to ask for, and where it stands."""

    iterator: Items
    regions: Iterator[Sequence[RegionLike]] | None
    many: Many
    targets: list[pb.Target]
    room: Room
    patient: bool
    limits: Limits
    taken: int = 0
    sent: int = 0
    spare: tuple[int, pb.Input] | None = None
    spaces: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    chunk: Chunk
    rpc: Rpc | None
    pending: Pending | None


@dataclass(slots=True)
class Core:
    """The plans behind each method of Client and AsyncClient."""

    settings: Settings
    clock: Callable[[], float] = time.monotonic
    _catalog: Catalog | None = field(default=None, init=False)

    # One input

    def embed(self, image: object, options: EmbedOptions) -> Plan[Array]:
        """Plan the vector of one image."""
        answer = yield from self.embed_full(
            image, (target_of(options),), (), options.get("prompt", ""), _call_options(options)
        )
        return answer.vector

    def embed_text(self, text: str, options: EmbedOptions) -> Plan[Array]:
        """Plan the vector of one text."""
        message = text_input(text, options.get("prompt", ""))
        return (yield from self.embed(message, options))

    def embed_full(
        self,
        image: object,
        targets: Sequence[Target],
        regions: Sequence[RegionLike],
        prompt: str,
        options: CallOptions,
    ) -> Plan[Embedded]:
        """Plan the whole answer for one input."""
        chosen = self._targets(targets)
        message = with_options((yield Read(image)), regions, prompt)
        yield from self._check_size(message)
        request = pb.EmbedRequest(input=message, targets=_messages(chosen))
        response = yield from self._call("Embed", request, chosen[0].model, options)
        return _codec.embedded(response.embedded, response.report)

    def read(self, image: object) -> pb.Input:
        """Turn an image into an Input with this client's limits; the drivers' answer to Read."""
        return to_input(
            cast("ImageLike", image),
            url_timeout_s=self.settings.url_timeout_s,
            url_max_bytes=self.settings.url_max_bytes,
            max_bytes=self.settings.endpoint.max_message_bytes,
        )

    # Many inputs

    def embed_many(self, iterator: Items, many: Many) -> Plan[None]:
        """Plan a run through many images that emits an Embedded, or an error, for each, in order.

        At most `in_flight` requests of at most `batch_size` images are held at a time.
        """
        if many.in_flight < 1:
            raise BadOptionError(f"in_flight must be at least 1, not {many.in_flight}")
        if many.on_error not in {"raise", "return"}:
            raise BadOptionError(f"on_error must be 'raise' or 'return', not {many.on_error!r}")
        _refuse_unknown(many.options, _CALL_OPTIONS)
        targets = self._targets(many.targets)
        messages = _messages(targets)
        catalog = yield from self.catalog()
        most = self.settings.endpoint.max_message_bytes
        job = _Job(
            iterator=iterator,
            regions=None if many.regions is None else iter(many.regions),
            many=many,
            targets=messages,
            room=Room.of(catalog, targets, many.batch_size, most),
            patient=many.patient,
            limits=catalog.limits,
        )
        yield from self._pipeline(job)

    def _pipeline(self, job: _Job) -> Plan[None]:
        held: deque[_Sent] = deque()
        try:
            while (chunk := (yield from self._form(job))).items:
                held.append((yield from self._send(job, chunk)))
                if len(held) == job.many.in_flight:
                    yield from self._deliver(job, held[0])
                    held.popleft()
            while held:
                yield from self._deliver(job, held[0])
                held.popleft()
        finally:
            for sent in held:
                if sent.pending is not None:
                    sent.pending.cancel()

    def _form(self, job: _Job) -> Plan[Chunk]:
        chunk = Chunk(job.room)
        while not chunk.full():
            if job.spare is None:
                taken = yield from self._take(job, chunk)
                if taken is END:
                    break
                job.spare = taken
            if job.spare is not None:
                if not chunk.fits(job.spare[1]):
                    break
                chunk.add(*job.spare)
                job.spare = None
        return chunk

    def _take(self, job: _Job, chunk: Chunk) -> Plan[Any]:
        image = yield Take(job.iterator)
        regions = _next_regions(job, last=image is END)
        if image is END:
            return END
        index, job.taken = job.taken, job.taken + 1
        try:
            message = with_options((yield Read(image)), regions, job.many.prompt)
            check_size(message, job.limits, self.settings.endpoint.max_message_bytes)
        except PixvecError as error:
            chunk.errors.append((index, error.at(index)))
            return None
        return index, message

    def _send(self, job: _Job, chunk: Chunk) -> Plan[_Sent]:
        if not chunk.inputs:
            return _Sent(chunk, None, None)
        request = pb.EmbedBatchRequest(inputs=chunk.inputs, targets=job.targets)
        chunk.inputs.clear()
        rpc = self._batch_rpc(job, request)
        return _Sent(chunk, rpc, (yield Start(rpc)))

    def _batch_rpc(self, job: _Job, request: Message | bytes) -> Rpc:
        options = job.many.options
        if request_id := options.get("request_id"):
            options = {**options, "request_id": f"{request_id}-{job.sent}"}
        job.sent += 1
        return self._rpc("EmbedBatch", request, job.targets[0].model, options)

    def _deliver(self, job: _Job, sent: _Sent) -> Plan[None]:
        outcomes: list[tuple[int, Outcome]] = [*sent.chunk.errors]
        if sent.rpc is not None and sent.pending is not None:
            try:
                response = yield from self._finish(job, sent.rpc, sent.pending)
                results = _codec.batch_results(response, sent.chunk.indices)
                _check_spaces(job, results)
                outcomes += results
            except PixvecError as error:
                if job.many.on_error == "raise" and not sent.chunk.errors:
                    raise
                outcomes += [(index, error.at(index)) for index in sent.chunk.indices]
        for _, outcome in sorted(outcomes, key=lambda pair: pair[0]):
            if isinstance(outcome, PixvecError) and job.many.on_error == "raise":
                raise outcome
            yield Emit(outcome)

    def empty_batch(self, target: Target) -> Plan[Array]:
        """Plan the array of no vectors: (0, D) when the server lists the output, else (0, 0)."""
        catalog = yield from self.catalog()
        shape = vector_shape(catalog, self._targets((target,))[0]) or (0,)
        return np.empty((0, *shape), np.float32)

    # Similarity

    def similarity(
        self,
        queries: object,
        candidates: object,
        *,
        metric: str,
        top_k: int | None,
        options: EmbedOptions,
    ) -> Plan[Array | TopK]:
        """Plan the scores of every query against every candidate."""
        if top_k is not None and top_k < 1:
            raise BadOptionError(f"top_k must be at least 1, not {top_k}")
        target = self._targets((target_of(options),))[0]
        request = pb.SimilarityRequest(
            queries=(yield from self._operands("queries", queries, options)),
            candidates=(yield from self._operands("candidates", candidates, options)),
            target=_codec.target_message(target),
            metric=_codec.metric_code(metric),
            top_k=top_k,
        )
        response = yield from self._call("Similarity", request, target.model, _call_options(options))
        return _codec.score_matrix(response) if top_k is None else _codec.top_k(response)

    def _operands(self, name: str, given: object, options: EmbedOptions) -> Plan[list[pb.Operand]]:
        operands = []
        for position, operand in enumerate(operands_of(given)):
            try:
                operands.append((yield from self._operand(operand, options)))
            except PixvecError as error:
                error.message = f"{name}[{position}]: {error.message}"
                raise
        if not operands:
            raise BadOptionError(f"{name} is empty")
        return operands

    def _operand(self, operand: object, options: EmbedOptions) -> Plan[pb.Operand]:
        if isinstance(operand, Embedded):
            operand = operand.embeddings[0][0]
        if isinstance(operand, Embedding) or is_vector(operand):
            return _codec.vector_operand(operand, options.get("space", ""))
        message = yield Read(operand)
        if message.WhichOneof("content") == "text":
            message = with_options(message, (), options.get("prompt", ""))
        yield from self._check_size(message)
        return pb.Operand(input=message)

    # The server itself

    def catalog(self, *, fresh: bool = False, options: CallOptions | None = None) -> Plan[Catalog]:
        """Plan what the server says of itself, asked once unless `fresh`."""
        if self._catalog is None or fresh:
            response = yield from self._call("ListModels", pb.ListModelsRequest(), "", options or {})
            self._catalog = _codec.catalog(response)
        return self._catalog

    def models(self, options: CallOptions) -> Plan[list[ModelInfo]]:
        """Plan the models as they are now."""
        catalog = yield from self.catalog(fresh=True, options=options)
        return list(catalog.models)

    def model(self, name: str, options: CallOptions) -> Plan[ModelInfo]:
        """Plan one model as it is now."""
        chosen = name or self.settings.model
        response = yield from self._call("GetModel", pb.GetModelRequest(model=chosen), chosen, options)
        return _codec.model_info(response.model)

    def limits(self) -> Plan[Limits]:
        """Plan the server's limits."""
        return (yield from self.catalog()).limits

    def health_state(self, service: str, options: CallOptions) -> Plan[str]:
        """Plan the state of a service."""
        rpc = self._rpc("Health", _codec.health_request(service), "", options)
        try:
            response: bytes = yield Call(rpc)
        except ModelNotFoundError:
            return "SERVICE_UNKNOWN"
        return _codec.health_state(response)

    def health(self, service: str, options: CallOptions) -> Plan[bool]:
        """Plan whether a service answers; a server that cannot be reached does not."""
        try:
            return (yield from self.health_state(service, options)) == "SERVING"
        except (UnavailableError, DeadlineError):
            return False

    def wait_ready(self, timeout: float, service: str) -> Plan[None]:
        """Plan to wait until a service answers; raises DeadlineError after `timeout` seconds."""
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

    # Calls

    def _call(self, method: str, request: Message | bytes, model: str, options: CallOptions) -> Plan[Any]:
        rpc = self._rpc(method, request, model, options)
        try:
            return (yield Call(rpc))
        except InternalError:
            return (yield Call(_again(rpc)))

    def _finish(self, job: _Job, rpc: Rpc, pending: Pending) -> Plan[Any]:
        try:
            return (yield Wait(pending))
        except InternalError:
            return (yield Call(_again(rpc)))
        except UnavailableError as error:
            if not job.patient:
                raise
            return (yield from self._outwait(job, rpc, error))

    def _outwait(self, job: _Job, rpc: Rpc, error: UnavailableError) -> Plan[Any]:
        """Plan to ask again once the server is back; after one wait in vain the rest of a run fails fast."""
        try:
            yield from self.wait_ready(self._timeout(job.many.options), "")
        except PixvecError:
            job.patient = False
            raise error from None
        return (yield Call(self._batch_rpc(job, rpc.request)))

    def _rpc(self, method: str, request: Message | bytes, model: str, options: CallOptions) -> Rpc:
        _refuse_unknown(options, _CALL_OPTIONS)
        return Rpc(method, request, self._metadata(model, options), self.clock() + self._timeout(options))

    def _timeout(self, options: CallOptions) -> float:
        timeout = options.get("timeout")
        return self.settings.timeout if timeout is None else timeout

    def _metadata(self, model: str, options: CallOptions) -> tuple[tuple[str, str], ...]:
        token = self.settings.endpoint.token
        pairs = {
            "authorization": f"Bearer {token}" if token is not None else None,
            # For routing only: a name that no header can hold goes in the message alone.
            "pixvec-model": model if _printable(model) else None,
            "pixvec-priority": self.settings.priority,
            "pixvec-tenant": self.settings.tenant,
            "x-request-id": options.get("request_id") or uuid.uuid4().hex,
            "traceparent": options.get("traceparent"),
        }
        for key, value in pairs.items():
            if value and not _printable(value):
                raise BadOptionError(f"{key} must be printable ASCII of at most 4096 characters")
        return tuple((key, value) for key, value in pairs.items() if value)

    def _targets(self, targets: Sequence[Target]) -> list[Target]:
        chosen = targets or (Target(),)
        return [replace(t, model=t.model or self.settings.model) for t in chosen]

    def _check_size(self, message: pb.Input) -> Plan[None]:
        most = self.settings.endpoint.max_message_bytes
        limits = Limits()
        if message.ByteSize() > min(_UNQUESTIONED_BYTES, most):
            limits = yield from self.limits()
        check_size(message, limits, most)


class ClientBase:
    """What Client and AsyncClient are made with."""

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        model: str = "",
        tls: Tls = False,
        token: str | None = None,
        allow_insecure_token: bool = False,
        timeout: float = 30.0,
        priority: Priority | None = None,
        tenant: str | None = None,
        max_message_bytes: int = 64 << 20,
        url_timeout_s: float = URL_TIMEOUT_S,
        url_max_bytes: int = URL_MAX_BYTES,
    ) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise BadOptionError(f"timeout = {timeout!r}: give a positive number of seconds")
        endpoint = Endpoint(target, tls, token, allow_insecure_token, max_message_bytes)
        self._core = Core(Settings(endpoint, model, timeout, priority, tenant, url_timeout_s, url_max_bytes))
        self._channel: Any = None
        self._methods: Any = None
        self._opening = Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.settings.endpoint.target!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise PixvecError("the client is closed")


def target_of(options: EmbedOptions) -> Target:
    """Return the target that a method's options ask for; raises TypeError for an unknown option."""
    _refuse_unknown(options, _EMBED_OPTIONS)
    return Target(
        model=options.get("model", ""),
        output=options.get("output", ""),
        dimensions=options.get("dimensions"),
        normalize=options.get("normalize"),
        encoding=options.get("encoding"),
        space=options.get("space", ""),
    )


def _call_options(options: EmbedOptions) -> CallOptions:
    return cast("CallOptions", {key: value for key, value in options.items() if key in _CALL_OPTIONS})


def _refuse_unknown(options: Mapping[str, object], known: frozenset[str]) -> None:
    """Raise TypeError for a misspelt option, as Python does where there is no `**options` to swallow it."""
    if unknown := options.keys() - known:
        hint = "; that goes into targets=[Target(…)]" if unknown <= _EMBED_OPTIONS - {"prompt"} else ""
        raise TypeError(f"no option {', '.join(sorted(unknown))} here, only {', '.join(sorted(known))}{hint}")


def _messages(targets: Iterable[Target]) -> list[pb.Target]:
    return [_codec.target_message(target) for target in targets]


def _again(rpc: Rpc) -> Rpc:
    """Return the same call under an id of its own: ids tell bills and logs one attempt from another."""
    metadata = tuple((k, f"{v}-again" if k == "x-request-id" else v) for k, v in rpc.metadata)
    return replace(rpc, metadata=metadata)


def _printable(value: str) -> bool:
    return len(value) <= 4096 and value.isascii() and value.isprintable()


def _check_spaces(job: _Job, results: Iterable[tuple[int, Outcome]]) -> None:
    """Raise SpaceMismatchError when an alias moved mid-run: one matrix holds vectors of one space."""
    origins = next((result.origins for _, result in results if isinstance(result, Embedded)), ())
    spaces = tuple(origin.space for origin in origins)
    if job.spaces is not None and spaces and spaces != job.spaces:
        raise SpaceMismatchError(
            f"the answers moved from space {', '.join(job.spaces)} to {', '.join(spaces)}: pin space=, or "
            "name the model instead of its alias"
        )
    job.spaces = job.spaces or spaces or None


def _next_regions(job: _Job, *, last: bool) -> Sequence[RegionLike]:
    if job.regions is None:
        return ()
    regions = next(job.regions, None)
    if (regions is None) != last:
        raise BadOptionError("regions must hold as many lists as there are images")
    return regions or ()


def many_of(options: EmbedOptions, on_error: OnError, **how: Any) -> Many:  # noqa: ANN401 - Many's own fields
    """Return what a method's options ask for; `how`: further fields of Many."""
    target, prompt = target_of(options), options.get("prompt", "")
    return Many((target,), prompt=prompt, on_error=on_error, options=_call_options(options), **how)


def vector_of(outcome: Outcome, index: int, on_error: OnError) -> Array | PixvecError:
    """Return the vector of an answer's first region and target, or the error in its place, or raise that."""
    if isinstance(outcome, PixvecError):
        return outcome
    first = outcome.embeddings[0][0]
    if not isinstance(first.error, PixvecError):
        return first.vector
    error = first.error.at(index)
    if on_error == "raise":
        raise error
    return error
