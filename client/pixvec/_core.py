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

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np

from pixvec.v1 import embedding_pb2 as pb

from . import _codec
from ._calls import CALL_OPTIONS, EMBED_OPTIONS, Calls, Settings, refuse_unknown
from ._channel import Endpoint, Tls
from ._chunks import vector_shape
from ._downscale import check_max_side, downscale
from ._effects import Items, Plan, Read
from ._errors import BadOptionError, InputError, PixvecError
from ._inputs import (
    URL_MAX_BYTES,
    URL_TIMEOUT_S,
    ImageLike,
    cause_of,
    is_vector,
    operands_of,
    region_messages,
    text_input,
    to_input,
    with_options,
)
from ._many import Many, Outcome, Run
from ._profile import Lap, Profile
from ._target import parse_target
from ._types import (
    Array,
    CallOptions,
    Embedded,
    Embedding,
    EmbedOptions,
    OnError,
    Priority,
    RegionLike,
    Target,
    TopK,
    Vectors,
)


@dataclass(slots=True)
class Core(Calls):
    """The plans behind each method of Client and AsyncClient."""

    # One input

    def embed(self, image: object, options: EmbedOptions) -> Plan[Vectors]:
        """Plan the vector of one image."""
        answer = yield from self.embed_full(
            image, (target_of(options),), (), options.get("prompt", ""), _call_options(options)
        )
        return answer.vector

    def embed_text(self, text: str, options: EmbedOptions) -> Plan[Vectors]:
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
        chosen, boxes = self.targets(targets), region_messages(regions)
        if boxes and self.settings.max_side is not None:
            raise BadOptionError("regions are pixels of the image as it is: use a client without max_side")
        least = yield from self._least(chosen)
        message = with_options((yield Read(image, least)), boxes, prompt)
        yield from self.check_size(message)
        request = pb.EmbedRequest(input=message, targets=_messages(chosen))
        response = yield from self.call("Embed", request, chosen[0].model, options)
        return _codec.embedded(response.embedded, response.report)

    def profile(self, image: object, calls: int, options: EmbedOptions) -> Plan[Profile]:
        """Plan calls one after the other, each read, sent and decoded anew, after one that warms up."""
        if calls < 1:
            raise BadOptionError(f"calls must be at least 1, not {calls}")
        target = self.targets((target_of(options),))[0]
        least = yield from self._least((target,))
        laps, size = [], 0
        for _ in range(calls + 1):
            started = time.perf_counter_ns()
            message = with_options((yield Read(image, least)), (), options.get("prompt", ""))
            request = pb.EmbedRequest(input=message, targets=_messages((target,)))
            sent = time.perf_counter_ns()
            response = yield from self.call("Embed", request, target.model, _call_options(options))
            answered = time.perf_counter_ns()
            answer = _codec.embedded(response.embedded, response.report)
            ended = time.perf_counter_ns()
            laps.append(Lap(sent - started, answered - sent, ended - answered, answer.timing))
            size = request.ByteSize()
        return Profile.of(laps[1:], size)

    def read(self, effect: Read) -> pb.Input:
        """Turn an image into an Input with this client's limits; the drivers' answer to Read."""
        message = to_input(
            cast("ImageLike", effect.image),
            url_timeout_s=self.settings.url_timeout_s,
            url_max_bytes=self.settings.url_max_bytes,
            max_bytes=self.settings.endpoint.max_message_bytes,
        )
        if self.settings.max_side is None:
            return message
        try:
            return downscale(message, self.settings.max_side, effect.least)
        except PixvecError:
            raise
        except Exception as error:
            raise InputError(f"cannot be made smaller: {cause_of(error)}") from error

    def _least(self, targets: Sequence[Target]) -> Plan[tuple[int, int]]:
        """Plan the pixels that the models look at, for a client that makes images smaller."""
        if self.settings.max_side is None:
            return 0, 0
        return (yield from self.catalog()).input_size(targets)

    # Many inputs

    def embed_many(self, iterator: Items, many: Many) -> Plan[None]:
        """Plan a run through many images that emits an Embedded, or an error, for each, in order."""
        return (yield from Run(self, iterator, many).plan())

    def empty_batch(self, target: Target) -> Plan[Vectors]:
        """Plan the array of no vectors: (0, D) when the server lists the output, else (0, 0)."""
        catalog = yield from self.catalog()
        shape = vector_shape(catalog, self.targets((target,))[0]) or (0,)
        return Vectors.of(np.empty((0, *shape), np.float32), None)

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
        target = self.targets((target_of(options),))[0]
        request = pb.SimilarityRequest(
            queries=(yield from self._operands("queries", queries, options)),
            candidates=(yield from self._operands("candidates", candidates, options)),
            target=_codec.target_message(target),
            metric=_codec.metric_code(metric),
            top_k=top_k,
        )
        response = yield from self.call("Similarity", request, target.model, _call_options(options))
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
            try:
                return _codec.vector_operand(operand, options.get("space", ""))
            except PixvecError:
                raise
            except Exception as error:
                raise InputError(f"a vector that cannot be sent: {cause_of(error)}") from error
        message = yield Read(operand)
        if message.WhichOneof("content") == "text":
            message = with_options(message, (), options.get("prompt", ""))
        yield from self.check_size(message)
        return pb.Operand(input=message)


class ClientBase:
    """What Client and AsyncClient are made with."""

    def __init__(
        self,
        target: str | Sequence[str] = "localhost:50051",
        *,
        model: str = "",
        tls: Tls = False,
        token: str | None = None,
        allow_insecure_token: bool = False,
        timeout: float = 30.0,
        priority: Priority | None = None,
        tenant: str | None = None,
        max_message_bytes: int = 64 << 20,
        max_side: int | None = None,
        keepalive_s: float = 30.0,
        url_timeout_s: float = URL_TIMEOUT_S,
        url_max_bytes: int = URL_MAX_BYTES,
    ) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise BadOptionError(f"timeout = {timeout!r}: give a positive number of seconds")
        check_max_side(max_side)
        _check_url_limits(url_timeout_s, url_max_bytes)
        endpoint = Endpoint(
            parse_target(target), tls, token, allow_insecure_token, max_message_bytes, keepalive_s
        )
        settings = Settings(
            endpoint, model, timeout, priority, tenant, max_side, url_timeout_s, url_max_bytes
        )
        self._begin(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.settings.endpoint.target!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, from which `pickle` and `copy` make a client with a connection of its own."""
        settings = self._core.settings
        if not isinstance(settings.endpoint.tls, bool | str | Path | bytes):
            raise TypeError(
                f"a {type(self).__name__} with tls=grpc.ChannelCredentials cannot be pickled or copied: give "
                "tls=True, or the file or the bytes of CA certificates"
            )
        own = {name: value for name, value in self.__dict__.items() if name not in _OF_A_PROCESS}
        return own | {"_settings": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = state["_settings"]
        self.__dict__.update((name, value) for name, value in state.items() if name != "_settings")
        self._begin(settings)

    def _begin(self, settings: Settings) -> None:
        """Start with no connection."""
        self._core = Core(settings)
        self._channel: Any = None
        self._methods: Any = None
        self._opening = Lock()
        self._closed = False
        self._process = os.getpid()
        self._inherited: Any = None

    def _leave_parent(self) -> None:
        """Use no connection of the process that this one was forked from: two cannot share one.

        Dropping it would close it for the parent too, so it is kept and never used.
        """
        if self._process != os.getpid():
            self._inherited = self._channel, self._methods
            self._channel = self._methods = None
            self._opening, self._process = Lock(), os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise PixvecError("the client is closed")


# What a client of another process has anew.
_OF_A_PROCESS = frozenset(
    {"_core", "_channel", "_methods", "_opening", "_closed", "_process", "_inherited", "_loop"}
)


def _check_url_limits(url_timeout_s: object, url_max_bytes: object) -> None:
    for name, value in (("url_timeout_s", url_timeout_s), ("url_max_bytes", url_max_bytes)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise BadOptionError(f"{name} = {value!r}: give a positive number")


def target_of(options: EmbedOptions) -> Target:
    """Return the target that a method's options ask for; raises TypeError for an unknown option."""
    refuse_unknown(options, EMBED_OPTIONS)
    return Target(
        model=options.get("model", ""),
        output=options.get("output", ""),
        dimensions=options.get("dimensions"),
        normalize=options.get("normalize"),
        encoding=options.get("encoding"),
        space=options.get("space", ""),
    )


def _call_options(options: EmbedOptions) -> CallOptions:
    return cast("CallOptions", {key: value for key, value in options.items() if key in CALL_OPTIONS})


def _messages(targets: Iterable[Target]) -> list[pb.Target]:
    return [_codec.target_message(target) for target in targets]


def many_of(options: EmbedOptions, on_error: OnError, **how: Any) -> Many:  # noqa: ANN401 - Many's own fields
    """Return what a method's options ask for; `how`: further fields of Many."""
    target, prompt = target_of(options), options.get("prompt", "")
    return Many((target,), prompt=prompt, on_error=on_error, options=_call_options(options), **how)


def vector_of(outcome: Outcome, index: int, on_error: OnError) -> Vectors | PixvecError:
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


def stacked(vectors: Sequence[Vectors]) -> Vectors:
    """Return vectors of one origin as one array."""
    return Vectors.of(np.stack(vectors), vectors[0].origin)
