"""A run through many images: what is asked together, how much is under way, and what comes of each.

Requests are formed as the caller's iterable yields, sent while there is room in the window, and their answers
handed on in order. A request that fails for a reason that passes is sent again, whole or the part of it that
is open, so that every image gets one answer.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from pixvec.v1 import embedding_pb2 as pb

from . import _codec
from ._calls import CALL_OPTIONS, Calls, again, refuse_unknown
from ._chunks import Chunk, Room, check_size
from ._effects import (
    END,
    Broken,
    Call,
    Emit,
    Items,
    Open,
    Pending,
    Plan,
    Read,
    Rpc,
    Sleep,
    Start,
    Stream,
    Take,
    Wait,
)
from ._errors import (
    BadOptionError,
    DeadlineError,
    DrainingError,
    InputError,
    InternalError,
    ModelNotReadyError,
    OverloadedError,
    PixvecError,
    QuotaExceededError,
    SpaceMismatchError,
    UnavailableError,
)
from ._inputs import raised, with_options
from ._types import CallOptions, Catalog, Embedded, Embedding, OnError, Progress, RegionLike, Target
from ._window import MOST_HELD_BYTES, Box, Memory, Window

Outcome: TypeAlias = Embedded | PixvecError
# One item's failure that another request may not meet.
_PASSING = (DrainingError, ModelNotReadyError, OverloadedError, DeadlineError, InternalError)
_SLOW_TO_FORM_S = 0.05
# Between tries; a server that was gone is asked as often as whether it is back.
_FIRST_PAUSE_S, _MOST_PAUSE_S, _MOST_PAUSE_GONE_S = 0.05, 5.0, 0.5
# A run's requests and their answers are small enough that several fit into what it may hold.
_MOST_BYTES = MOST_HELD_BYTES // 2


@dataclass(frozen=True, slots=True)
class Many:
    """What is wanted of many images.

    regions: a list for each image. in_flight: requests under way; None: as many as the server can use.
    patient: when the server goes away or refuses, wait for it, as long as one request's timeout, before
    anything fails. streamed: one EmbedStream in place of calls of EmbedBatch. total: images, where known.
    collected: the answers are returned together, so that an exception of the iterable would lose them: it
    becomes the last answer.
    """

    targets: Sequence[Target] = ()
    regions: Iterable[Sequence[RegionLike]] | None = None
    prompt: str = ""
    batch_size: int = 32
    in_flight: int | None = None
    on_error: OnError = "raise"
    options: CallOptions = field(default_factory=CallOptions)
    patient: bool = False
    streamed: bool = False
    collected: bool = False
    progress: Callable[[Progress], object] | None = None
    total: int | None = None

    def of(self, images: object) -> "Many":
        """Return the same, with the number of images where they have one."""
        return replace(self, total=len(images)) if isinstance(images, Sized) else self


@dataclass(slots=True)
class _Sent:
    """A request under way, or the errors alone of inputs that could not be read.

    size: bytes of the request and of the answer that is expected.
    """

    chunk: Chunk
    size: int = 0
    rpc: Rpc | None = None
    pending: Pending | None = None


class Run:
    """One run. `plan` emits an Embedded, or an error, for each image, in order."""

    def __init__(self, calls: Calls, iterator: Items, many: Many) -> None:
        if many.in_flight is not None and many.in_flight < 1:
            raise BadOptionError(f"in_flight must be at least 1, not {many.in_flight}")
        if many.on_error not in {"raise", "return"}:
            raise BadOptionError(f"on_error must be 'raise' or 'return', not {many.on_error!r}")
        if many.regions is not None and calls.settings.max_side is not None:
            raise BadOptionError("regions are pixels of the image as it is: use a client without max_side")
        refuse_unknown(many.options, CALL_OPTIONS)
        self._calls = calls
        self._iterator = iterator
        self._many = many
        self._targets = calls.targets(many.targets)
        self._regions: Iterator[Sequence[RegionLike]] | None = (
            None if many.regions is None else iter(many.regions)
        )
        self._messages = [_codec.target_message(target) for target in self._targets]
        self._window = Window(many.in_flight)
        self._memory = Memory()
        self._held: deque[_Sent] = deque()
        self._stream: Stream | None = None
        self._patient = many.patient
        self._ended = False
        self._broke: Exception | None = None
        # Not as many regions as images: a mistake of the call, not of its images.
        self._is_uneven = False
        self._taken = 0
        self._requests = 0
        self._spare: tuple[int, pb.Input, Box] | None = None
        self._spaces: tuple[str, ...] | None = None
        self._progress = Progress(0, 0, many.total)

    def plan(self) -> Plan[None]:
        """Plan the run. What the caller's iterable raises is raised after the answers that came before it."""
        self._catalog: Catalog = yield from self._first_catalog()
        self._least = self._catalog.input_size(self._targets)
        most = self._calls.settings.endpoint.max_message_bytes
        room = Room.of(self._catalog, self._targets, self._many.batch_size, most)
        self._room = replace(
            room,
            request_bytes=min(room.request_bytes, _MOST_BYTES),
            response_bytes=min(room.response_bytes, _MOST_BYTES),
        )
        try:
            yield from self._fill()
            while self._held:
                yield from self._deliver(self._held[0])
                self._held.popleft()
                yield from self._fill()
            if self._broke is not None:
                yield from self._end_early(self._broke)
        finally:
            for sent in self._held:
                if sent.pending is not None:
                    sent.pending.cancel()
            if self._stream is not None:
                self._stream.close()

    def _first_catalog(self) -> Plan[Catalog]:
        try:
            return (yield from self._calls.catalog())
        except UnavailableError:
            if not self._patient:
                raise
        yield from self._calls.wait_ready(self._timeout(), "")
        return (yield from self._calls.catalog())

    def _end_early(self, cause: Exception) -> Plan[None]:
        if not self._many.collected or self._is_uneven:
            raise cause
        error = InputError(f"the iterable of images raised {raised(cause)}", index=self._taken)
        error.__cause__ = cause
        self._report([(self._taken, error)])
        yield Emit(error)

    # Forming requests

    def _fill(self) -> Plan[None]:
        """Plan to send requests until the window is full.

        A caller's iterable that is slow must not hold up answers that are there: after a request that took
        long to form, the first that is answered goes first.
        """
        while not self._ended and len(self._held) < self._window.size:
            if sum(sent.size for sent in self._held) >= MOST_HELD_BYTES:
                return
            started = self._calls.clock()
            chunk = yield from self._form()
            if not chunk.items:
                return
            self._held.append((yield from self._send(chunk)))
            first = self._held[0].pending
            slow = self._calls.clock() - started > _SLOW_TO_FORM_S
            if slow and (first is None or first.done()):
                return

    def _form(self) -> Plan[Chunk]:
        chunk = Chunk(self._room)
        while not chunk.full():
            if self._spare is None:
                taken = yield from self._take(chunk)
                if taken is END:
                    self._ended = True
                    break
                self._spare = taken
            if self._spare is not None:
                if not chunk.fits(self._spare[1]):
                    break
                chunk.add(*self._spare)
                self._spare = None
        return chunk

    def _take(self, chunk: Chunk) -> Plan[Any]:
        image = yield Take(self._iterator)
        if isinstance(image, Broken):
            self._broke = image.error
            return END
        try:
            regions = self._next_regions(last=image is END)
        except Exception as error:  # noqa: BLE001 - the plan raises it, after what came before it
            self._broke = error
            return END
        if image is END:
            return END
        index, self._taken = self._taken, self._taken + 1
        try:
            message = with_options((yield Read(image, self._least)), regions, self._many.prompt)
            check_size(message, self._catalog.limits, self._calls.settings.endpoint.max_message_bytes)
        except PixvecError as error:
            chunk.errors.append((index, error.at(index)))
            return None
        box, known = self._memory.find(message)
        if known:
            chunk.copies.append((index, box))
            return None
        return index, message, box

    def _next_regions(self, *, last: bool) -> Sequence[RegionLike]:
        if self._regions is None:
            return ()
        regions = next(self._regions, END)
        self._is_uneven = (regions is END) != last
        if self._is_uneven:
            raise BadOptionError("regions must hold as many lists as there are images")
        return () if regions is END else cast("Sequence[RegionLike]", regions)

    def _send(self, chunk: Chunk) -> Plan[_Sent]:
        if not chunk.inputs:
            # Where nothing is waited for, an event loop gets its turn here.
            yield Sleep(0)
            return _Sent(chunk)
        rpc = yield from self._rpc(chunk.inputs)
        chunk.inputs = []
        return _Sent(chunk, rpc.size + chunk.answer_bytes, rpc, (yield Start(rpc)))

    def _rpc(self, inputs: Sequence[pb.Input]) -> Plan[Rpc]:
        """Plan a request for these inputs, and the stream that carries it where there is one."""
        options, number = self._many.options, self._requests
        self._requests += 1
        if request_id := options.get("request_id"):
            options = {**options, "request_id": f"{request_id}-{number}"}
        model = self._messages[0].model
        if not self._many.streamed:
            batch = pb.EmbedBatchRequest(inputs=inputs, targets=self._messages)
            return self._calls.rpc("EmbedBatch", batch, model, options)
        request = pb.EmbedStreamRequest(id=str(number), inputs=inputs, targets=self._messages)
        rpc = self._calls.rpc("EmbedStream", request, model, options)
        if self._stream is None or self._stream.broken:
            self._stream = yield Open(rpc)
        return replace(rpc, stream=self._stream)

    # Handing on answers

    def _deliver(self, sent: _Sent) -> Plan[None]:
        chunk, stops = sent.chunk, self._many.on_error == "raise"
        outcomes: list[tuple[int, Outcome]] = [*chunk.errors]
        try:
            results = yield from self._results(sent)
            self._check_spaces(results)
        except PixvecError as error:
            if stops and not chunk.errors:
                raise
            results = [error.at(index) for index in chunk.indices]
        for index, box, outcome in zip(chunk.indices, chunk.boxes, results, strict=True):
            self._memory.settle(box, outcome)
            outcomes.append((index, outcome))
        outcomes += [(index, _copy(box.outcome, index)) for index, box in chunk.copies]
        self._report(outcomes)
        for _, outcome in sorted(outcomes, key=lambda pair: pair[0]):
            if isinstance(outcome, PixvecError) and stops:
                raise outcome
            yield Emit(outcome)

    def _report(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        failed = sum(_failed(outcome) for _, outcome in outcomes)
        before = self._progress
        self._progress = replace(before, done=before.done + len(outcomes), failed=before.failed + failed)
        if self._many.progress is not None:
            self._many.progress(self._progress)

    def _check_spaces(self, results: Iterable[Outcome]) -> None:
        """Raise SpaceMismatchError when an alias moved mid-run: one matrix holds vectors of one space."""
        for result in results:
            origins = result.origins if isinstance(result, Embedded) else ()
            spaces = tuple(origin.space for origin in origins)
            if self._spaces is not None and spaces and spaces != self._spaces:
                raise SpaceMismatchError(
                    f"the answers moved from space {', '.join(self._spaces)} to {', '.join(spaces)}: pin "
                    "space=, or name the model instead of its alias"
                )
            self._spaces = self._spaces or spaces or None

    # Asking again

    def _results(self, sent: _Sent) -> Plan[list[Outcome]]:
        """Plan the answer to each input of a request; what is open after it is asked for again."""
        rpc, indices = sent.rpc, sent.chunk.indices
        if rpc is None or sent.pending is None:
            return []
        results = yield from self._finish(rpc, sent.pending, indices)
        while self._patient and (left := [i for i, r in enumerate(results) if self._may_pass(r)]):
            inputs = [rpc.request.inputs[i] for i in left]
            failed = [results[i] for i in left]
            retried = yield from self._ask_again(inputs, [indices[i] for i in left], failed)
            for i, result in zip(left, retried, strict=True):
                results[i] = result
            if all(map(self._may_pass, retried)):
                # A server that answers nothing is not waited for again until it answers something.
                self._patient = self._patient and len(left) < len(results)
                break
        return results

    def _may_pass(self, outcome: Outcome) -> bool:
        if not isinstance(outcome, _PASSING) or isinstance(outcome, QuotaExceededError):
            return False
        return (outcome.retry_after or 0.0) < self._timeout()

    def _ask_again(
        self, inputs: Sequence[pb.Input], indices: Sequence[int], failed: Sequence[Outcome]
    ) -> Plan[list[Outcome]]:
        """Plan another answer to inputs that `failed`; when asking fails, that error stands for each."""
        try:
            yield from self._pause(failed)
            rpc = yield from self._rpc(inputs)
            return (yield from self._finish(rpc, (yield Start(rpc)), indices))
        except PixvecError as error:
            self._patient = False
            return [error.at(index) for index in indices]

    def _finish(self, rpc: Rpc, pending: Pending, indices: Sequence[int]) -> Plan[list[Outcome]]:
        """Plan the response of a request, asked for again while its failure may pass."""
        until: float | None = None
        waiting: Wait | Call = Wait(pending)
        tries = faults = 0
        while True:
            try:
                response = yield waiting
            except QuotaExceededError:
                raise
            except (OverloadedError, UnavailableError) as error:
                until = self._calls.clock() + self._timeout() if until is None else until
                tries += 1
                if not self._may_try(error, until):
                    self._patient = False
                    raise
                yield from self._wait_out(error, tries, until)
            except InternalError:
                faults += 1
                if faults > 1:
                    raise
            else:
                return self._answered(response, indices)
            waiting = Call((yield from self._renewed(rpc, tries + faults)))

    def _answered(self, response: Any, indices: Sequence[int]) -> list[Outcome]:  # noqa: ANN401 - by method
        self._calls.budget.succeeded()
        results = [outcome for _, outcome in _codec.batch_results(response, indices)]
        self._window.answered(_codec.timing(response.report.timing))
        if any(isinstance(result, Embedded) for result in results):
            self._patient = self._many.patient
        return results

    def _may_try(self, error: PixvecError, until: float) -> bool:
        if isinstance(error, OverloadedError):
            self._window.refused()
        elif not self._patient:
            # gRPC itself has tried a server that was not there.
            return False
        allowed = self._calls.budget.failed()
        in_time = self._calls.clock() + (error.retry_after or 0.0) < until
        return in_time and (self._patient or allowed)

    def _wait_out(self, error: PixvecError, tries: int, until: float) -> Plan[None]:
        most = _MOST_PAUSE_S if isinstance(error, OverloadedError) else _MOST_PAUSE_GONE_S
        backoff = min(_FIRST_PAUSE_S * 2 ** min(tries, 10), most)
        yield Sleep(max(error.retry_after or 0.0, backoff * random.uniform(0.5, 1)))  # noqa: S311
        if isinstance(error, OverloadedError):
            return
        try:
            yield from self._ready(max(until - self._calls.clock(), 0.001))
        except PixvecError:
            self._patient = False
            raise error from None

    def _pause(self, failed: Sequence[Outcome]) -> Plan[None]:
        """Plan to wait until the failures of some items may have passed."""
        if any(isinstance(outcome, OverloadedError | DeadlineError) for outcome in failed):
            self._window.refused()
        if any(isinstance(outcome, DrainingError | ModelNotReadyError) for outcome in failed):
            yield from self._ready(self._timeout())
        yield Sleep(max((o.retry_after or 0.0 for o in failed if isinstance(o, PixvecError)), default=0.0))

    def _ready(self, seconds: float) -> Plan[None]:
        """Plan to wait until the server says that it is ready, where it says so at all."""
        try:
            yield from self._calls.wait_ready(seconds, "")
        except (DeadlineError, UnavailableError):
            raise
        except PixvecError:
            return

    def _renewed(self, rpc: Rpc, times: int) -> Plan[Rpc]:
        """Plan the same request anew: its own time, its own id, and a stream that is open."""
        fresh = replace(again(rpc, times), deadline=self._calls.clock() + self._timeout())
        if rpc.stream is not None and rpc.stream.broken:
            if self._stream is None or self._stream.broken:
                self._stream = yield Open(fresh)
            fresh = replace(fresh, stream=self._stream)
        return fresh

    def _timeout(self) -> float:
        return self._calls.timeout(self._many.options)


def _failed(outcome: Outcome) -> bool:
    """Tell whether an image has no vector for its first region and target."""
    return isinstance(outcome, PixvecError) or outcome.embeddings[0][0].error is not None


def _copy(outcome: Outcome | None, index: int) -> Outcome:
    """Return an answer once more, with arrays of its own: callers may write into what they get."""
    if isinstance(outcome, PixvecError):
        return outcome.at(index)
    assert outcome is not None, "an input's first answer comes before its copies"
    rows = tuple(tuple(map(_copy_embedding, row)) for row in outcome.embeddings)
    return replace(outcome, embeddings=rows)


def _copy_embedding(embedding: Embedding) -> Embedding:
    return embedding if embedding.values is None else replace(embedding, values=embedding.values.copy())
