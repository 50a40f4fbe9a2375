"""The client that blocks; see Client."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal, Self, Unpack, cast, overload

import grpc

from ._channel import bind_methods
from ._core import ClientBase, many_of, stacked, target_of, vector_of
from ._effects import END, Broken, Call, Effect, Emit, Open, Plan, Read, Rpc, Sleep, Start, T, Take, Wait
from ._errors import PixvecError, from_rpc
from ._inputs import ImageLike, OperandsLike, as_many
from ._many import Many, Outcome
from ._profile import Profile
from ._streams import ThreadStream
from ._types import (
    Array,
    CallOptions,
    Embedded,
    EmbedOptions,
    Limits,
    Metric,
    ModelInfo,
    OnError,
    Progress,
    RegionLike,
    Target,
    TopK,
    Vectors,
)


class Client(ClientBase):
    """A client of one pixvec service; safe to share among threads. It connects when first used.

    Pickled or copied, it is a client of the same settings with a connection of its own; so it is in a process
    that was forked. A pickle holds the token.

    target: HOST:PORT, several of them, or any gRPC target; calls go round over all addresses that it has
        (`dns:///pixvec-headless:50051`: all replicas).
    model: the model of calls that name none.
    tls: False; True for the system's roots; a file or the bytes of CA certificates; or
        grpc.ChannelCredentials.
    token: sent as a bearer; over plaintext only to this machine unless `allow_insecure_token`.
    timeout: seconds for each request. priority: "interactive" or "bulk". tenant: for gateways that the
        server believes.
    max_message_bytes: the largest message either way.
    max_side: pixels; make larger images smaller before they are sent, at the price that docs/sdk.md states,
        but never below twice the model's input; None: send them as they are. Needs Pillow.
    keepalive_s: seconds of silence after which a connection is tested, so that a vanished peer is noticed.
    url_timeout_s, url_max_bytes: for images given as URLs.

    Every method takes the options of `CallOptions`, those that embed also `EmbedOptions`. An image is
    anything that `pixvec.to_input` takes. Errors are those of `pixvec.PixvecError`; failures that may
    pass have been retried already.
    """

    def embed(self, image: ImageLike, **options: Unpack[EmbedOptions]) -> Vectors:
        """Return the vector of one image: (D,) float32 unless output or encoding ask otherwise.

        encoding "float16" gives float16, "int8" int8 (its scale: `embed_full`), "binary" uint8 of 8 bits.
        """
        return self._run(self._core.embed(image, options))

    def embed_text(self, text: str, **options: Unpack[EmbedOptions]) -> Vectors:
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
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors: ...
    @overload
    def embed_batch(
        self,
        images: Iterable[ImageLike],
        *,
        on_error: Literal["return"],
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> list[Vectors | PixvecError]: ...
    def embed_batch(
        self,
        images: Iterable[ImageLike],
        *,
        on_error: OnError = "raise",
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors | list[Vectors | PixvecError]:
        """Return the vectors of many images, (N, D), in requests that keep to the server's limits.

        on_error: "raise" the first image's error, which has its `index` (None: a whole request failed); or
        "return" a list with an array or an error for each image. All vectors are of one space, else
        SpaceMismatchError; `origin` of the array says which. The same image given twice is sent once.
        progress: called with a Progress after each request.
        """
        collected = on_error == "return"
        outcomes = self._each(images, many_of(options, on_error, progress=progress, collected=collected))
        vectors = list(_vectors(outcomes, on_error))
        if on_error == "return":
            return vectors
        if not vectors:
            return self._run(self._core.empty_batch(target_of(options)))
        return stacked(cast("list[Vectors]", vectors))

    def embed_batch_full(
        self,
        images: Iterable[ImageLike],
        *,
        targets: Sequence[Target] = (),
        regions: Sequence[Sequence[RegionLike]] | None = None,
        prompt: str = "",
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Embedded | PixvecError]:
        """Return for each image its whole answer, or its error in place; `regions`: a list for each image."""
        many = Many(
            targets, regions, prompt, on_error="return", options=options, progress=progress, collected=True
        )
        return list(self._each(images, many))

    @overload
    def embed_iter(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Vectors, None, None]: ...
    @overload
    def embed_iter(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["return"],
        **options: Unpack[EmbedOptions],
    ) -> Generator[Vectors | PixvecError, None, None]: ...
    def embed_iter(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Any, None, None]:
        """Yield the vector of each image of any iterable, however long, in its order.

        Requests of at most `batch_size` images are under way, `in_flight` of them, or as many as the server
        can use; they hold 32 MiB at most, or one request, and the iterable is read no further. A server that
        refuses is asked again when it says, one that goes away is waited for, both for as long as one
        request's timeout without an answer. progress: called with a Progress after each request.
        """
        many = many_of(
            options, on_error, batch_size=batch_size, in_flight=in_flight, progress=progress, patient=True
        )
        return _vectors(self._each(images, many), on_error)

    @overload
    def embed_stream(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 8,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Vectors, None, None]: ...
    @overload
    def embed_stream(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 8,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["return"],
        **options: Unpack[EmbedOptions],
    ) -> Generator[Vectors | PixvecError, None, None]: ...
    def embed_stream(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 8,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Any, None, None]:
        """Yield what `embed_iter` does, over one EmbedStream in place of many calls.

        The server takes a message when it has room and refuses none, which suits small images and many
        clients; all of the stream goes to one replica. A stream that breaks is opened anew, and what was not
        answered is sent again.
        """
        many = many_of(
            options,
            on_error,
            batch_size=batch_size,
            in_flight=in_flight,
            progress=progress,
            patient=True,
            streamed=True,
        )
        return _vectors(self._each(images, many), on_error)

    def embed_iter_full(
        self,
        images: Iterable[ImageLike],
        *,
        targets: Sequence[Target] = (),
        regions: Iterable[Sequence[RegionLike]] | None = None,
        prompt: str = "",
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: OnError = "return",
        **options: Unpack[CallOptions],
    ) -> Generator[Embedded | PixvecError, None, None]:
        """Yield the whole answer for each image, or its error; else as `embed_iter`.

        regions: a list for each image, taken as the images are.
        """
        many = Many(
            targets,
            regions,
            prompt,
            batch_size=batch_size,
            in_flight=in_flight,
            on_error=on_error,
            options=options,
            patient=True,
            progress=progress,
        )
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

    def profile(self, image: ImageLike, *, calls: int = 20, **options: Unpack[EmbedOptions]) -> Profile:
        """Embed an image some times, one call after the other, and return where the time went; print it."""
        return self._run(self._core.profile(image, calls, options))

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
        """Return "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN", as grpc.health.v1 has it.

        Of several servers, "NOT_SERVING" when none of those that answer is SERVING. Raises UnavailableError
        when none is reached, PixvecError of code UNIMPLEMENTED from a server without a health service.
        """
        return self._run(self._core.health_state(service, options))

    def wait_ready(self, timeout: float = 60.0, service: str = "") -> None:
        """Wait until the server answers calls; raises DeadlineError after `timeout` seconds.

        A server without a health service cannot tell: PixvecError of code UNIMPLEMENTED, at once.
        """
        self._run(self._core.wait_ready(timeout, service))

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._closed = True
        self._leave_parent()
        if self._channel is not None:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, images: Iterable[ImageLike], many: Many) -> Generator[Outcome, None, None]:
        items = as_many(images)
        return self._drive(self._core.embed_many(iter(items), many.of(items)))

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
            case Read():
                return self._core.read(effect)
            case Take(iterator):
                try:
                    return next(cast("Iterator[object]", iterator), END)
                except Exception as error:  # noqa: BLE001 - the plan raises it, after what came before it
                    return Broken(error)
            case Sleep(seconds):
                return time.sleep(seconds)
        return self._invoke(effect)

    def _invoke(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        try:
            match effect:
                case Open(rpc):
                    return ThreadStream(self._method(rpc), rpc, self._core.settings.endpoint.target)
                case Call(rpc) if rpc.stream is not None:
                    return cast("ThreadStream", rpc.stream).send(rpc).result()
                case Call(rpc):
                    return self._method(rpc)(rpc.request, **rpc.kwargs())
                case Start(rpc) if rpc.stream is not None:
                    return cast("ThreadStream", rpc.stream).send(rpc)
                case Start(rpc):
                    return self._method(rpc).future(rpc.request, **rpc.kwargs())
                case Wait(pending):
                    return cast("Any", pending).result()
        except (grpc.RpcError, PixvecError, ValueError) as error:
            # A channel that was closed under a call says so in many ways.
            self._check_open()
            if isinstance(error, grpc.RpcError):
                raise from_rpc(error, self._core.settings.endpoint.target) from error
            raise

    def _method(self, rpc: Rpc) -> Any:  # noqa: ANN401 - grpc ships no types
        self._check_open()
        self._leave_parent()
        with self._opening:
            if self._methods is None:
                self._channel = self._core.settings.endpoint.open()
                self._methods = bind_methods(self._channel)
        return self._methods[rpc.method]


def _vectors(
    outcomes: Generator[Outcome, None, None], on_error: OnError
) -> Generator[Vectors | PixvecError, None, None]:
    with closing(outcomes):
        for index, outcome in enumerate(outcomes):
            yield vector_of(outcome, index, on_error)
