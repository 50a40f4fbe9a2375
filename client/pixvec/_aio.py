"""The client for asyncio; see AsyncClient."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Literal, Self, Unpack, cast, overload

import grpc

from ._calls import Settings
from ._channel import bind_methods
from ._core import ClientBase, many_of, stacked, target_of, vector_of
from ._effects import (
    END,
    Broken,
    Call,
    Effect,
    Emit,
    Items,
    Open,
    Plan,
    Read,
    Rpc,
    Sleep,
    Start,
    T,
    Take,
    Wait,
)
from ._errors import PixvecError, from_rpc
from ._inputs import ImageLike, OperandsLike, as_many, needs_reading
from ._many import Many, Outcome
from ._profile import Profile
from ._streams import TaskStream
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

Images = Iterable[ImageLike] | AsyncIterable[ImageLike]


class AsyncClient(ClientBase):
    """`Client` for asyncio: the same names, arguments, answers and errors, awaited.

    It belongs to the event loop in which it is first used: in another one it raises PixvecError while the
    first is open, and connects anew when the first is closed. Files and URLs are read in threads; collections
    may also be asynchronous iterables.
    """

    _loop: asyncio.AbstractEventLoop | None
    # The process in which grpc.aio was first used: its threads are not those of a child that is forked later,
    # where every client, a new one too, would hang.
    _grpc_process: ClassVar[int | None] = None

    async def embed(self, image: ImageLike, **options: Unpack[EmbedOptions]) -> Vectors:
        """Return the vector of one image; see Client.embed."""
        return await self._run(self._core.embed(image, options))

    async def embed_text(self, text: str, **options: Unpack[EmbedOptions]) -> Vectors:
        """Return the vector of one text; see Client.embed_text."""
        return await self._run(self._core.embed_text(text, options))

    async def embed_full(
        self,
        image: ImageLike,
        *,
        targets: Sequence[Target] = (),
        regions: Sequence[RegionLike] = (),
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> Embedded:
        """Return a vector for each region and target of one input; see Client.embed_full."""
        return await self._run(self._core.embed_full(image, targets, regions, prompt, options))

    @overload
    async def embed_batch(
        self,
        images: Images,
        *,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors: ...
    @overload
    async def embed_batch(
        self,
        images: Images,
        *,
        on_error: Literal["return"],
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> list[Vectors | PixvecError]: ...
    async def embed_batch(
        self,
        images: Images,
        *,
        on_error: OnError = "raise",
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Vectors | list[Vectors | PixvecError]:
        """Return the vectors of many images, (N, D); see Client.embed_batch."""
        many = many_of(options, on_error, progress=progress, collected=on_error == "return")
        outcomes = await self._all(images, many)
        vectors = [vector_of(outcome, index, on_error) for index, outcome in enumerate(outcomes)]
        if on_error == "return":
            return vectors
        if not vectors:
            return await self._run(self._core.empty_batch(target_of(options)))
        return stacked(cast("list[Vectors]", vectors))

    async def embed_batch_full(
        self,
        images: Images,
        *,
        targets: Sequence[Target] = (),
        regions: Sequence[Sequence[RegionLike]] | None = None,
        prompt: str = "",
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Embedded | PixvecError]:
        """Return for each image its whole answer, or its error in place; see Client.embed_batch_full."""
        return await self._all(
            images,
            Many(
                targets,
                regions,
                prompt,
                on_error="return",
                options=options,
                progress=progress,
                collected=True,
            ),
        )

    @overload
    def embed_iter(
        self,
        images: Images,
        *,
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Vectors]: ...
    @overload
    def embed_iter(
        self,
        images: Images,
        *,
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["return"],
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Vectors | PixvecError]: ...
    def embed_iter(
        self,
        images: Images,
        *,
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Any]:
        """Yield the vector of each image of any iterable, in its order; see Client.embed_iter."""
        many = many_of(
            options, on_error, batch_size=batch_size, in_flight=in_flight, progress=progress, patient=True
        )
        return self._vectors(images, many)

    @overload
    def embed_stream(
        self,
        images: Images,
        *,
        batch_size: int = 8,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Vectors]: ...
    @overload
    def embed_stream(
        self,
        images: Images,
        *,
        batch_size: int = 8,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: Literal["return"],
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Vectors | PixvecError]: ...
    def embed_stream(
        self,
        images: Images,
        *,
        batch_size: int = 8,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: OnError = "raise",
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Any]:
        """Yield what `embed_iter` does, over one EmbedStream; see Client.embed_stream."""
        many = many_of(
            options,
            on_error,
            batch_size=batch_size,
            in_flight=in_flight,
            progress=progress,
            patient=True,
            streamed=True,
        )
        return self._vectors(images, many)

    def embed_iter_full(
        self,
        images: Images,
        *,
        targets: Sequence[Target] = (),
        regions: Iterable[Sequence[RegionLike]] | None = None,
        prompt: str = "",
        batch_size: int = 32,
        in_flight: int | None = None,
        progress: Callable[[Progress], object] | None = None,
        on_error: OnError = "return",
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[Embedded | PixvecError]:
        """Yield the whole answer for each image, or its error; see Client.embed_iter_full."""
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
    async def similarity(
        self,
        queries: OperandsLike,
        candidates: OperandsLike,
        *,
        metric: Metric = "cosine",
        top_k: None = None,
        **options: Unpack[EmbedOptions],
    ) -> Array: ...
    @overload
    async def similarity(
        self,
        queries: OperandsLike,
        candidates: OperandsLike,
        *,
        metric: Metric = "cosine",
        top_k: int,
        **options: Unpack[EmbedOptions],
    ) -> TopK: ...
    async def similarity(
        self,
        queries: OperandsLike,
        candidates: OperandsLike,
        *,
        metric: Metric = "cosine",
        top_k: int | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Array | TopK:
        """Return the scores of every query against every candidate, (Q, C); see Client.similarity."""
        plan = self._core.similarity(queries, candidates, metric=metric, top_k=top_k, options=options)
        return await self._run(plan)

    async def profile(self, image: ImageLike, *, calls: int = 20, **options: Unpack[EmbedOptions]) -> Profile:
        """Embed an image some times and return where the time went; see Client.profile."""
        return await self._run(self._core.profile(image, calls, options))

    async def models(self, **options: Unpack[CallOptions]) -> list[ModelInfo]:
        """Return every model that the server serves, the default first; see Client.models."""
        return await self._run(self._core.models(options))

    async def model(self, name: str = "", **options: Unpack[CallOptions]) -> ModelInfo:
        """Return one model by name or alias; see Client.model."""
        return await self._run(self._core.model(name, options))

    async def limits(self) -> Limits:
        """Return the server's limits, asked once."""
        return await self._run(self._core.limits())

    async def health(self, service: str = "", **options: Unpack[CallOptions]) -> bool:
        """Tell whether the server, or one of its services, answers calls now; see Client.health."""
        return await self._run(self._core.health(service, options))

    async def health_state(self, service: str = "", **options: Unpack[CallOptions]) -> str:
        """Return the state of the server or of one of its services; see Client.health_state."""
        return await self._run(self._core.health_state(service, options))

    async def wait_ready(self, timeout: float = 60.0, service: str = "") -> None:  # noqa: ASYNC109 - it names what it waited for
        """Wait until the server answers calls; raises DeadlineError after `timeout` seconds.

        A server without a health service cannot tell: PixvecError of code UNIMPLEMENTED, at once.
        """
        await self._run(self._core.wait_ready(timeout, service))

    async def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        if self._channel is not None:
            self._enter_loop()
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _all(self, images: Images, many: Many) -> list[Outcome]:
        async with aclosing(self._each(images, many)) as outcomes:
            return [outcome async for outcome in outcomes]

    async def _vectors(self, images: Images, many: Many) -> AsyncGenerator[Any]:
        index = 0
        async with aclosing(self._each(images, many)) as outcomes:
            async for outcome in outcomes:
                yield vector_of(outcome, index, many.on_error)
                index += 1

    def _each(self, images: Images, many: Many) -> AsyncGenerator[Outcome]:
        items = as_many(images)
        iterator = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        return self._drive(self._core.embed_many(iterator, many.of(items)), [])

    async def _run(self, plan: Plan[T]) -> T:
        answer: list[T] = []
        async for _ in self._drive(plan, answer):
            raise AssertionError("a plan that emits needs a consumer")
        return answer[0]

    async def _drive(self, plan: Plan[T], answer: list[T]) -> AsyncGenerator[Any]:
        """Do what the plan asks for, yield what it emits, append what it returns to `answer`."""
        try:
            effect = next(plan)
            while True:
                try:
                    done = (yield effect.value) if isinstance(effect, Emit) else await self._perform(effect)
                except PixvecError as error:
                    effect = plan.throw(error)
                else:
                    effect = plan.send(done)
        except StopIteration as stop:
            answer.append(stop.value)
        finally:
            plan.close()

    async def _perform(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        match effect:
            case Read(image):
                if needs_reading(image) or self._core.settings.max_side is not None:
                    return await asyncio.to_thread(self._core.read, effect)
                return self._core.read(effect)
            case Take(iterator):
                return await _taken(iterator)
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
        return await self._invoke(effect)

    async def _invoke(self, effect: Effect) -> Any:  # noqa: ANN401 - each effect has its own outcome
        try:
            match effect:
                case Open(rpc):
                    return TaskStream(await self._method(rpc), rpc, self._core.settings.endpoint.target)
                case Start(rpc) if rpc.stream is not None:
                    return cast("TaskStream", rpc.stream).send(rpc)
                case Call(rpc) if rpc.stream is not None:
                    return await cast("TaskStream", rpc.stream).send(rpc)
                case Start(rpc):
                    return (await self._method(rpc))(rpc.request, **rpc.kwargs())
                case Call(rpc):
                    return await (await self._method(rpc))(rpc.request, **rpc.kwargs())
                case Wait(pending):
                    return await cast("Any", pending)
        except (grpc.RpcError, PixvecError) as error:
            # A channel that was closed under a call says so in many ways.
            self._check_open()
            if isinstance(error, grpc.RpcError):
                raise from_rpc(error, self._core.settings.endpoint.target) from error
            raise
        except asyncio.CancelledError:
            self._check_cancelled()
            raise

    def _check_cancelled(self) -> None:
        """Raise PixvecError where a closed channel, and not the caller, has cancelled this task's call."""
        task = asyncio.current_task()
        if not (task and task.cancelling()):
            self._check_open()

    async def _method(self, rpc: Rpc) -> Any:  # noqa: ANN401 - grpc ships no types
        self._check_open()
        self._enter_loop()
        endpoint = self._core.settings.endpoint
        if self._methods is None:
            address = await asyncio.to_thread(endpoint.address) if endpoint.several else endpoint.target
        self._check_open()
        if self._methods is None:
            AsyncClient._grpc_process = AsyncClient._grpc_process or os.getpid()
            self._channel = endpoint.open_aio(address)
            self._methods = bind_methods(self._channel)
        return self._methods[rpc.method]

    def _enter_loop(self) -> None:
        """Take the running event loop for this client's, once the one before it is closed."""
        self._leave_parent()
        loop = asyncio.get_running_loop()
        with self._opening:
            if self._loop is loop:
                return
            if self._loop is not None and not self._loop.is_closed():
                raise PixvecError(
                    "this AsyncClient belongs to another event loop, which is still open: make one client "
                    "for each event loop"
                )
            # The channel ended with its loop.
            self._channel = self._methods = None
            self._loop = loop

    def _begin(self, settings: Settings) -> None:
        super()._begin(settings)
        self._loop = None

    def _leave_parent(self) -> None:
        if AsyncClient._grpc_process not in {None, os.getpid()}:
            raise PixvecError(
                "an AsyncClient was used before this process was forked, and grpc.aio hangs in the child: "
                "start processes with spawn or forkserver, or use a Client"
            )
        super()._leave_parent()


async def _taken(iterator: Items) -> object:
    try:
        if isinstance(iterator, AsyncIterator):
            return await anext(iterator, END)
        return next(iterator, END)
    except Exception as error:  # noqa: BLE001 - the plan raises it, after what came before it
        return Broken(error)
