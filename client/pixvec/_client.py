"""The client that blocks; see Client."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal, Self, Unpack, cast, overload

import grpc
import numpy as np

from ._channel import bind_methods
from ._core import ClientBase, Many, Outcome, many_of, target_of, vector_of
from ._effects import END, Call, Effect, Emit, Plan, Read, Rpc, Sleep, Start, T, Take, Wait
from ._errors import PixvecError, from_rpc
from ._inputs import ImageLike, OperandsLike, as_many
from ._types import (
    Array,
    CallOptions,
    Embedded,
    EmbedOptions,
    Limits,
    Metric,
    ModelInfo,
    OnError,
    RegionLike,
    Target,
    TopK,
)


class Client(ClientBase):
    """A client of one pixvec service; safe to share among threads. It connects when first used.

    target: HOST:PORT or any gRPC target (`dns:///pixvec-headless:50051` balances over all replicas).
    model: the model of calls that name none. tls: False; True for the system's roots; a file or the bytes of
    CA certificates; or grpc.ChannelCredentials. token: sent as a bearer; over plaintext only to this machine
    unless `allow_insecure_token`. timeout: seconds for each request. priority: "interactive" or "bulk".
    max_message_bytes: the largest message either way. url_timeout_s, url_max_bytes: for images given as URLs.

    Every method takes the options of `CallOptions`, those that embed also `EmbedOptions`. An image is
    anything that `pixvec.to_input` takes. Errors are those of `pixvec.PixvecError`; failures that another
    try can mend have been tried again already.
    """

    def embed(self, image: ImageLike, **options: Unpack[EmbedOptions]) -> Array:
        """Return the vector of one image: (D,) float32 unless output or encoding ask otherwise.

        encoding "float16" gives float16, "int8" int8 (its scale: `embed_full`), "binary" uint8 of 8 bits.
        """
        return self._run(self._core.embed(image, options))

    def embed_text(self, text: str, **options: Unpack[EmbedOptions]) -> Array:
        """Return the vector of one text, (D,) float32; for models with a text tower."""
        return self._run(self._core.embed_text(text, options))

    def embed_full(
        self,
        image: ImageLike,
        *,
        targets: Sequence[Target] = (),
        regions: Sequence[RegionLike] = (),
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> Embedded:
        """Return a vector for each region and target of one input, decoded once, with origin and timing.

        A region or target that failed holds its error in its place.
        """
        return self._run(self._core.embed_full(image, targets, regions, prompt, options))

    @overload
    def embed_batch(
        self,
        images: Iterable[ImageLike],
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Array: ...
    @overload
    def embed_batch(
        self, images: Iterable[ImageLike], *, on_error: Literal["return"], **options: Unpack[EmbedOptions]
    ) -> list[Array | PixvecError]: ...
    def embed_batch(
        self, images: Iterable[ImageLike], *, on_error: OnError = "raise", **options: Unpack[EmbedOptions]
    ) -> Array | list[Array | PixvecError]:
        """Return the vectors of many images, (N, D), in requests that keep to the server's limits.

        on_error: "raise" the first image's error, which has its `index` (None: a whole request failed); or
        "return" a list with an array or an error for each image. All vectors are of one space, else
        SpaceMismatchError.
        """
        outcomes = self._each(images, many_of(options, on_error))
        vectors = [vector_of(outcome, index, on_error) for index, outcome in enumerate(outcomes)]
        if on_error == "return":
            return vectors
        if not vectors:
            return self._run(self._core.empty_batch(target_of(options)))
        return np.stack(cast("list[Array]", vectors))

    def embed_batch_full(
        self,
        images: Iterable[ImageLike],
        *,
        targets: Sequence[Target] = (),
        regions: Sequence[Sequence[RegionLike]] | None = None,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> list[Embedded | PixvecError]:
        """Return for each image its whole answer, or its error in place; `regions`: a list for each image."""
        many = Many(targets, regions, prompt, on_error="return", options=options)
        return list(self._each(images, many))

    @overload
    def embed_iter(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        in_flight: int = 4,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Array, None, None]: ...
    @overload
    def embed_iter(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        in_flight: int = 4,
        on_error: Literal["return"],
        **options: Unpack[EmbedOptions],
    ) -> Generator[Array | PixvecError, None, None]: ...
    def embed_iter(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        in_flight: int = 4,
        on_error: OnError = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Any, None, None]:
        """Yield the vector of each image of any iterable, however long, in its order.

        At most `in_flight` requests of `batch_size` images are under way; the iterable is read no further.
        When the server goes away in the middle, it is waited for, as long as one request's timeout.
        """
        many = many_of(options, on_error, batch_size=batch_size, in_flight=in_flight, patient=True)
        return _vectors(self._each(images, many), on_error)

    def embed_iter_full(
        self,
        images: Iterable[ImageLike],
        *,
        targets: Sequence[Target] = (),
        prompt: str = "",
        batch_size: int = 32,
        in_flight: int = 4,
        on_error: OnError = "return",
        **options: Unpack[CallOptions],
    ) -> Generator[Embedded | PixvecError, None, None]:
        """Yield the whole answer for each image, or its error; else as `embed_iter`."""
        many = Many(targets, None, prompt, batch_size, in_flight, on_error, options, patient=True)
        return self._each(images, many)

    @overload
    def similarity(
        self,
        queries: OperandsLike,
        candidates: OperandsLike,
        *,
        metric: Metric = "cosine",
        top_k: None = None,
        **options: Unpack[EmbedOptions],
    ) -> Array: ...
    @overload
    def similarity(
        self,
        queries: OperandsLike,
        candidates: OperandsLike,
        *,
        metric: Metric = "cosine",
        top_k: int,
        **options: Unpack[EmbedOptions],
    ) -> TopK: ...
    def similarity(
        self,
        queries: OperandsLike,
        candidates: OperandsLike,
        *,
        metric: Metric = "cosine",
        top_k: int | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Array | TopK:
        """Return the scores of every query against every candidate, (Q, C) float32; one is a list of one.

        With `top_k`, the nearest candidates of each query as TopK. An operand is an image; an Embedding, or
        an Embedded for its first one; or a float vector (D,), a float array (N, D) being N of them: those
        need `space`, the Origin.space that they were made in. "euclidean" is a distance: small is near.
        """
        plan = self._core.similarity(queries, candidates, metric=metric, top_k=top_k, options=options)
        return self._run(plan)

    def models(self, **options: Unpack[CallOptions]) -> list[ModelInfo]:
        """Return every model that the server serves, the default first, as they are now."""
        return self._run(self._core.models(options))

    def model(self, name: str = "", **options: Unpack[CallOptions]) -> ModelInfo:
        """Return one model by name or alias, the default when empty, as it is now."""
        return self._run(self._core.model(name, options))

    def limits(self) -> Limits:
        """Return the server's limits, asked once."""
        return self._run(self._core.limits())

    def health(self, service: str = "", **options: Unpack[CallOptions]) -> bool:
        """Tell whether the server, or one of its services, answers now; False when it is not reached."""
        return self._run(self._core.health(service, options))

    def health_state(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """Return "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN", as grpc.health.v1 has it."""
        return self._run(self._core.health_state(service, options))

    def wait_ready(self, timeout: float = 60.0, service: str = "") -> None:
        """Wait until the server answers calls; raises DeadlineError after `timeout` seconds."""
        self._run(self._core.wait_ready(timeout, service))

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, images: Iterable[ImageLike], many: Many) -> Generator[Outcome, None, None]:
        return self._drive(self._core.embed_many(iter(as_many(images)), many))

    def _run(self, plan: Plan[T]) -> T:
        driver = self._drive(plan)
        try:
            next(driver)
        except StopIteration as stop:
            return cast("T", stop.value)
        raise AssertionError("a plan that emits needs a consumer")

    def _drive(self, plan: Plan[T]) -> Generator[Any, None, T]:
        """Do what the plan asks for, yield what it emits, return what it returns."""
        try:
            effect = next(plan)
            while True:
                try:
                    answer = (yield effect.value) if isinstance(effect, Emit) else self._perform(effect)
                except PixvecError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(answer)
        except StopIteration as stop:
            return cast("T", stop.value)
        finally:
            plan.close()

    def _perform(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        match effect:
            case Read(image):
                return self._core.read(image)
            case Take(iterator):
                return next(cast("Iterator[object]", iterator), END)
            case Sleep(seconds):
                return time.sleep(seconds)
        return self._invoke(effect)

    def _invoke(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        try:
            match effect:
                case Call(rpc):
                    return self._method(rpc)(rpc.request, **rpc.kwargs())
                case Start(rpc):
                    return self._method(rpc).future(rpc.request, **rpc.kwargs())
                case Wait(pending):
                    return cast("Any", pending).result()
        except grpc.RpcError as error:
            raise from_rpc(error, self._core.settings.endpoint.target) from error

    def _method(self, rpc: Rpc) -> Any:  # noqa: ANN401 - grpc ships no types
        self._check_open()
        with self._opening:
            if self._methods is None:
                self._channel = self._core.settings.endpoint.open()
                self._methods = bind_methods(self._channel)
        return self._methods[rpc.method]


def _vectors(
    outcomes: Generator[Outcome, None, None], on_error: OnError
) -> Generator[Array | PixvecError, None, None]:
    with closing(outcomes):
        for index, outcome in enumerate(outcomes):
            yield vector_of(outcome, index, on_error)
