"""A request's way: admission, one decode for all its regions and models, batches, join.

One admission bounds what all models have in hand; one pool of threads decodes for all. Whatever goes wrong
with an input is that input's own Result.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pixvec_server import log
from pixvec_server.engine import Inference, smooth
from pixvec_server.errors import (
    BadOptionError,
    DeadlineError,
    DrainingError,
    InternalError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    TooLargeError,
)
from pixvec_server.forms import Form, finish
from pixvec_server.reading import Reader
from pixvec_server.statistics import CONTRACT, Door
from pixvec_server.types import Answer, Cost, Embedded, Embedding

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from pixvec_server.batching import Admission
    from pixvec_server.engine import Engine, Work
    from pixvec_server.metrics import Metrics
    from pixvec_server.preprocess import Decoder
    from pixvec_server.reading import Read
    from pixvec_server.types import Input, Result, Target, Vector

_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
# Of an embedding beside its numbers, and of a result beside its embeddings, on the wire.
_FRAME_BYTES, _RESULT_BYTES, _REPORT_BYTES = 48, 64, 1024
# The share of the time left that a margin for sending may take.
_MOST_MARGIN = 0.5
T = TypeVar("T")
_log = log.get("pipeline")


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """What one request may hold, beyond what its messages' own checks bound."""

    vectors: int
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The targets of a request, resolved: an engine and a form for each."""

    engines: tuple[Engine, ...]
    forms: tuple[Form, ...]

    @property
    def distinct(self) -> tuple[Engine, ...]:
        """Each engine once, in the order of the targets."""
        return tuple(dict.fromkeys(self.engines))

    def outputs(self, engine: Engine) -> tuple[str, ...]:
        """Return the outputs that the request needs of an engine."""
        return tuple({f.graph_output for e, f in zip(self.engines, self.forms, strict=True) if e is engine})


@dataclass(slots=True)
class _Job:
    """One request on its way: what it asks for, by when, and what it has cost, in all and by model."""

    plan: Plan
    deadline: float
    door: Door
    costs: dict[str, Cost]
    cost: Cost = field(default_factory=Cost)
    answer: Answer | None = None


class Pipeline:
    """The served models and the way to them. Runs on one event loop."""

    def __init__(
        self,
        engines: Sequence[Engine],
        decoder: Decoder,
        admission: Admission,
        limits: PipelineLimits,
        metrics: Metrics,
        *,
        decode_threads: int,
    ) -> None:
        self.engines = {engine.name: engine for engine in engines}
        self.default = next(iter(self.engines))
        self._reader = Reader(decoder)
        self._admission = admission
        self._limits = limits
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._decode_threads = decode_threads
        self._decode_s = 0.0  # smoothed seconds that one input keeps a thread
        self._reading = 0  # inputs that wait for a decode thread or are on one

    def close(self) -> None:
        """Let the decode threads end when they are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def find(self, name: str) -> Engine:
        """Return a model by name or alias; "" is the default. Raises ModelNotFoundError."""
        if not name:
            return self.engines[self.default]
        if name in self.engines:
            return self.engines[name]
        for engine in self.engines.values():
            if name in self.aliases(engine):
                return engine
        raise ModelNotFoundError(
            f"no model is called {name!r}; served: {', '.join(self.engines)}", field="model"
        )

    def same(self, one: str, other: str) -> bool:
        """Tell whether two names, or one unknown name twice, mean one model."""
        try:
            return self.find(one) is self.find(other)
        except ModelNotFoundError:
            return one == other

    def aliases(self, engine: Engine) -> tuple[str, ...]:
        """Return the other names that lead to a model; a served model's own name is never one."""
        if not engine.prepared:
            return ()
        return tuple(alias for alias in engine.manifest.aliases if alias not in self.engines)

    def plan(self, targets: Sequence[Target]) -> Plan:
        """Resolve a request's targets. Raises RequestError under `targets[i]`."""
        engines, forms = [], []
        for i, target in enumerate(targets):
            try:
                engine = self.find(target.model)
                engines.append(engine)
                forms.append(engine.resolve(target))
            except RequestError as exc:
                raise exc.under(f"targets[{i}]") from exc
        return Plan(tuple(engines), tuple(forms))

    def plan_one(self, target: Target) -> Plan:
        """Resolve a request's only target. Raises RequestError under `target`."""
        try:
            engine = self.find(target.model)
            return Plan((engine,), (engine.resolve(target),))
        except RequestError as exc:
            raise exc.under("target") from exc

    async def embed(
        self,
        inputs: Sequence[Input],
        plan: Plan,
        *,
        deadline: float,
        margin: float = 0.0,
        wait: bool = False,
        door: Door = CONTRACT,
    ) -> Answer:
        """Answer every input with a Result of its own, `margin` seconds before `deadline` at the latest.

        `deadline` is on the event loop's clock; what is not done by then is a DeadlineError in its place.
        Raises TooLargeError for the request as a whole, and OverloadedError at once when there is no room or
        the deadline cannot be met; with `wait`, waits for room instead.
        """
        regions = sum(len(item.regions) for item in inputs)
        job = _Job(plan, deadline, door, costs={engine.name: Cost() for engine in plan.distinct})
        with self._recorded(job):
            self._check_size(len(inputs), regions, plan)
            try:
                job.answer = await self._admit(inputs, job, margin, wait=wait)
            except OverloadedError as exc:
                self._count_outcomes(plan.engines, "overloaded", regions)
                exc.retry_after = self._retry_after(plan)
                raise
        return job.answer

    async def _admit(self, inputs: Sequence[Input], job: _Job, margin: float, *, wait: bool) -> Answer:
        count = sum(len(item.regions) for item in inputs) * len(job.plan.forms)
        size = sum(item.size for item in inputs)
        if wait:
            await self._wait_for_room(count, size, job.deadline)
        else:
            self._check_hope(job.plan, job.deadline)
        with self._admission.take(count, size):
            left = max(0.0, job.deadline - time.monotonic())
            return await self._embed(inputs, job, job.deadline - min(margin, left * _MOST_MARGIN))

    @contextmanager
    def _recorded(self, job: _Job) -> Iterator[None]:
        """Enter the request into the metrics and statistics of its models, however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            ok = job.answer is not None and job.door.answered(job.answer.results)
            for engine in job.plan.distinct:
                self._metrics.request_seconds.labels(engine.name).observe(seconds)
                engine.statistics(job.door.view).request(seconds, job.costs[engine.name], ok=ok)

    async def _wait_for_room(self, count: int, size: int, deadline: float) -> None:
        try:
            # Not wait_for: its task would let another slip in between this room and its taking.
            async with asyncio.timeout_at(deadline):
                await self._admission.wait(count, size)
        except TimeoutError:
            raise DeadlineError("no room in the queue before the deadline") from None

    def _check_size(self, inputs: int, regions: int, plan: Plan) -> None:
        count = regions * len(plan.forms)
        if count > self._limits.vectors:
            raise TooLargeError(f"{count} vectors are over vectors = {self._limits.vectors}", field="inputs")
        numbers = regions * sum(form.answer_bytes for form in plan.forms)
        answer = numbers + count * _FRAME_BYTES + inputs * _RESULT_BYTES + len(plan.forms) * _REPORT_BYTES
        if answer > self._limits.response_bytes:
            raise TooLargeError(
                f"an answer of {answer} bytes is over response_bytes = {self._limits.response_bytes}: "
                "send fewer inputs or ask for a smaller output",
                field="inputs",
            )

    def _check_hope(self, plan: Plan, deadline: float) -> None:
        left = deadline - time.monotonic()
        needed = self._wait_s(plan)
        if needed > max(left, 0.0):
            raise OverloadedError(f"the queue takes {needed:.3f} s and {max(left, 0):.3f} s are left")

    def _wait_s(self, plan: Plan) -> float:
        """Estimate the seconds until what waits now has been worked off; 0 when nothing waits."""
        waiting = max(0, self._reading - self._decode_threads)
        decode_s = waiting * self._decode_s / self._decode_threads
        return decode_s + max(engine.queue_s for engine in plan.distinct)

    def _retry_after(self, plan: Plan) -> float:
        """Return when the queue should have drained, jittered: callers obey it to the millisecond."""
        drained = min(max(_MIN_RETRY_S, self._wait_s(plan)), _MAX_RETRY_S)
        return drained * (1 + secrets.randbelow(1000) / 1000)

    async def _embed(self, inputs: Sequence[Input], job: _Job, answer_at: float) -> Answer:
        results = await _together([self._embed_by(item, job, answer_at) for item in inputs])
        self._count(inputs, results, job.plan)
        return Answer(results, tuple(form.origin for form in job.plan.forms), job.cost)

    async def _embed_by(self, item: Input, job: _Job, answer_at: float) -> Result:
        try:
            async with asyncio.timeout_at(answer_at):
                return await self._embed_one(item, job)
        except TimeoutError:
            return DeadlineError("not done before the deadline")

    async def _embed_one(self, item: Input, job: _Job) -> Result:
        for engine in job.plan.distinct:
            engine.inflight += len(item.regions)
        try:
            return await self._answer(item, job)
        except RequestError as exc:
            return exc
        except Exception:  # noqa: BLE001 - one input's failure stays its own, and is logged in full
            _log.exception("an input failed for a reason of ours")
            return InternalError("the server failed on this input; its log has the call's x-request-id")
        finally:
            for engine in job.plan.distinct:
                engine.inflight -= len(item.regions)

    async def _answer(self, item: Input, job: _Job) -> Result:
        read = await self._read(item, job)
        inferences = await self._infer(read, job)
        job.cost.add(Cost(decode_s=read.seconds, pixels=read.pixels, tokens=read.tokens))
        embeddings = []
        for r, part in enumerate(read.parts):
            for t, (engine, form) in enumerate(zip(job.plan.engines, job.plan.forms, strict=True)):
                outcome = part if isinstance(part, RequestError) else inferences[r, engine.name]
                if isinstance(outcome, Inference) and form.graph_output not in outcome.values:
                    outcome = _not_of_texts(engine, form)
                if isinstance(outcome, Inference):
                    embeddings.append(Embedding(r, t, _finish(outcome, engine, form, job)))
                else:
                    embeddings.append(Embedding(r, t, outcome))
        return _whole_failure(embeddings) or Embedded(tuple(embeddings), read.source)

    async def _read(self, item: Input, job: _Job) -> Read:
        loop = asyncio.get_running_loop()
        engines = job.plan.distinct
        self._reading += 1
        try:
            read = await loop.run_in_executor(self._threads, self._reader.read, item, engines, job.deadline)
        finally:
            self._reading -= 1
        self._decode_s = smooth(self._decode_s, read.seconds)
        self._metrics.decodes.inc(read.decodes)
        for engine in engines:
            self._metrics.decode_seconds.labels(engine.name).observe(read.seconds)
            job.costs[engine.name].add(Cost(decode_s=read.seconds))
        return read

    async def _infer(self, read: Read, job: _Job) -> dict[tuple[int, str], Inference | RequestError]:
        """Run every good part on its engine; an engine's failure is that part's own."""
        runs = {
            (r, engine.name): _infer_one(engine, part[engine.name], job)
            for r, part in enumerate(read.parts)
            if not isinstance(part, RequestError)
            for engine in job.plan.distinct
        }
        return dict(zip(runs, await _together(list(runs.values())), strict=True))

    def _count(self, inputs: Sequence[Input], results: Sequence[Result], plan: Plan) -> None:
        for item, result in zip(inputs, results, strict=True):
            if isinstance(result, RequestError):
                self._count_outcomes(plan.engines, _outcome_word(result), len(item.regions))
                continue
            for embedding in result.embeddings:
                self._count_outcomes((plan.engines[embedding.target],), _outcome_word(embedding.outcome), 1)

    def _count_outcomes(self, engines: Sequence[Engine], outcome: str, count: int) -> None:
        for engine in engines:
            self._metrics.items.labels(engine.name, outcome).inc(count)


def _whole_failure(embeddings: Sequence[Embedding]) -> RequestError | None:
    """Return the server's own error that all embeddings of an input share: the input has failed."""
    first = embeddings[0].outcome
    if not isinstance(first, InternalError | DeadlineError | DrainingError | OverloadedError):
        return None
    return first if all(type(e.outcome) is type(first) for e in embeddings) else None


async def _infer_one(engine: Engine, work: Work | RequestError, job: _Job) -> Inference | RequestError:
    if isinstance(work, RequestError):
        return work
    wanted = [output for output in job.plan.outputs(engine) if engine.has(work.tower, output)]
    if not wanted:
        return Inference({}, 0.0, 0.0)
    try:
        return await engine.infer(work, wanted, job.deadline, job.door.view)
    except RequestError as exc:
        return exc
    except Exception:  # noqa: BLE001 - one crop's failure stays its own, and is logged in full
        _log.exception("a batch failed")
        return InternalError("the model failed on this input; the server's log has the call's x-request-id")


def _finish(inference: Inference, engine: Engine, form: Form, job: _Job) -> Vector | RequestError:
    started = time.monotonic()
    vector = finish(inference.values, form)
    took = Cost(
        queue_s=inference.queue_s,
        compute_s=inference.compute_s,
        encode_s=time.monotonic() - started,
    )
    job.costs[engine.name].add(took)
    took.vectors = 1
    job.cost.add(took)
    return vector


def _not_of_texts(engine: Engine, form: Form) -> BadOptionError:
    text = engine.manifest.text
    known = ", ".join(text.outputs) if text else "none"
    return BadOptionError(
        f"texts have no output {form.output!r} of {engine.name}; they have {known}", field="output"
    )


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all, in order; one alone needs no task of its own."""
    return [await work[0]] if len(work) == 1 else list(await asyncio.gather(*work))


def _outcome_word(outcome: Vector | RequestError) -> str:
    return outcome.reason.name.lower() if isinstance(outcome, RequestError) else "ok"
