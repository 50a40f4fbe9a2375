"""A request's way: admission, one decode for all its regions and models, batches, join.

One admission bounds what all models have in hand; one pool of threads decodes for all. Whatever goes wrong
with an input is that input's own Result.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixvec_server import log
from pixvec_server.errors import (
    BadOptionError,
    DeadlineError,
    DrainingError,
    InternalError,
    ModelNotFoundError,
    ModelNotReadyError,
    OverloadedError,
    RequestError,
    TooLargeError,
)
from pixvec_server.forms import Form, finish
from pixvec_server.inference import Output, Place, Wish, together
from pixvec_server.statistics import CONTRACT, Door
from pixvec_server.types import Answer, Cost, Embedded, Embedding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pixvec_server.batching import Admission
    from pixvec_server.inference import Inferrer
    from pixvec_server.metrics import Metrics
    from pixvec_server.served import Served
    from pixvec_server.types import Input, Result, Target, Vector

_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
# Of an embedding beside its numbers, and of a result beside its embeddings, on the wire.
_FRAME_BYTES, _RESULT_BYTES, _REPORT_BYTES = 48, 64, 1024
# The share of the time left that a margin for sending may take.
_MOST_MARGIN = 0.5
# The share of the time left that the estimated wait may take: estimates err, and answers take time to leave.
_HOPE = 0.8
# Errors of the server's: an input whose every embedding is one has failed as a whole.
_OF_OURS = (InternalError, DeadlineError, DrainingError, ModelNotReadyError, OverloadedError)
_log = log.get("pipeline")


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """What one request may hold, beyond what its messages' own checks bound."""

    vectors: int
    response_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The targets of a request, resolved: an engine and a form for each."""

    engines: tuple[Served, ...]
    forms: tuple[Form, ...]
    # Each engine once, in the order of the targets, and the graph's outputs that the request needs of it.
    outputs: dict[Served, tuple[str, ...]] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        outputs: dict[Served, dict[str, None]] = {}
        for engine, form in zip(self.engines, self.forms, strict=True):
            outputs.setdefault(engine, {})[form.graph_output] = None
        object.__setattr__(self, "outputs", {engine: tuple(names) for engine, names in outputs.items()})


@dataclass(slots=True)
class _Job:
    """One request on its way: what it asks for, by when, and what it has cost, in all and by model."""

    plan: Plan
    deadline: float
    door: Door
    wish: Wish
    costs: dict[str, Cost]
    cost: Cost = field(default_factory=Cost)
    answer: Answer | None = None


class Pipeline:
    """The served models and the way to them. Runs on one event loop."""

    def __init__(
        self,
        engines: Sequence[Served],
        inferrer: Inferrer,
        admission: Admission,
        limits: PipelineLimits,
        metrics: Metrics,
    ) -> None:
        self.engines = {engine.name: engine for engine in engines}
        self.default = next(iter(self.engines))
        self._inferrer = inferrer
        self._admission = admission
        self._limits = limits
        self._metrics = metrics

    @property
    def caches(self) -> bool:
        """Whether what was sent before is answered from a cache."""
        return self._inferrer.caches

    def close(self) -> None:
        """Let the decode threads end when they are done."""
        self._inferrer.close()

    def find(self, name: str) -> Served:
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

    def aliases(self, engine: Served) -> tuple[str, ...]:
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

    def turn_away(self, name: str, deadline: float) -> None:
        """Refuse a call that has not been read yet, when `embed` would whatever it says.

        `name` is the model that its metadata name; without one and with several models, it may be any.
        It counts as a request of one vector. Raises OverloadedError.
        """
        engine = self.engines.get(name or self.default)
        if engine is None or not (name or len(self.engines) == 1):
            return
        try:
            self._check_hope((engine,), deadline)
            self._admission.check(1, 1)
        except OverloadedError as exc:
            self._refuse((engine,), 1, exc)
            self._metrics.request_seconds.labels(engine.name).observe(0.0)
            engine.statistics(CONTRACT.view).request(0.0, Cost(), ok=False, caches=self.caches)
            raise

    async def embed(
        self,
        inputs: Sequence[Input],
        plan: Plan,
        *,
        deadline: float,
        margin: float = 0.0,
        wait: bool = False,
        door: Door = CONTRACT,
        tenant: str = "",
    ) -> Answer:
        """Answer every input with a Result of its own, `margin` seconds before `deadline` at the latest.

        `deadline` is on the event loop's clock; what is not done by then is a DeadlineError in its place.
        Of what is kept from before, a `tenant` is given its own alone.
        Raises TooLargeError for the request as a whole, and OverloadedError at once when there is no room or
        the deadline cannot be met; with `wait`, waits for room instead.
        """
        regions = sum(len(item.regions) for item in inputs)
        costs = {engine.name: Cost() for engine in plan.outputs}
        job = _Job(plan, deadline, door, Wish(plan.outputs, deadline, door.view, tenant, costs), costs)
        with self._recorded(job):
            self._check_size(len(inputs), regions, plan)
            try:
                job.answer = await self._admit(inputs, job, margin, wait=wait)
            except OverloadedError as exc:
                self._refuse(plan.engines, regions, exc)
                raise
        return job.answer

    async def _admit(self, inputs: Sequence[Input], job: _Job, margin: float, *, wait: bool) -> Answer:
        count = sum(len(item.regions) for item in inputs) * len(job.plan.forms)
        size = sum(item.size for item in inputs)
        if wait:
            await self._wait_for_room(count, size, job.deadline)
        else:
            self._check_hope(job.plan.outputs, job.deadline)
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
            for engine in job.plan.outputs:
                self._metrics.request_seconds.labels(engine.name).observe(seconds)
                done = engine.statistics(job.door.view)
                done.request(seconds, job.costs[engine.name], ok=ok, caches=self.caches)

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

    def _check_hope(self, engines: Collection[Served], deadline: float) -> None:
        left = deadline - time.monotonic()
        needed = self._wait_s(engines)
        if needed > max(left * _HOPE, 0.0):
            raise OverloadedError(f"the queue takes {needed:.3f} s and {max(left, 0):.3f} s are left")

    def _wait_s(self, engines: Collection[Served]) -> float:
        """Estimate the seconds until what waits now has been worked off; 0 when nothing waits."""
        # Not their sum: what waits to be decoded is in the engines' estimate as well.
        return max(self._inferrer.wait_s, *(engine.queue_s for engine in engines))

    def _refuse(self, engines: Sequence[Served], vectors: int, error: OverloadedError) -> None:
        """Count a refusal and say when the queue should have drained.

        Jittered, for callers obey it to the millisecond.
        """
        self._count_outcomes(engines, "overloaded", vectors)
        drained = min(max(_MIN_RETRY_S, self._wait_s(engines)), _MAX_RETRY_S)
        error.retry_after = drained * (1 + secrets.randbelow(1000) / 1000)

    async def _embed(self, inputs: Sequence[Input], job: _Job, answer_at: float) -> Answer:
        results: list[Result] = [DeadlineError("not done before the deadline") for _ in inputs]

        async def embed(i: int) -> None:
            results[i] = await self._embed_one(inputs[i], job)

        with suppress(TimeoutError):
            async with asyncio.timeout_at(answer_at):
                await together([embed(i) for i in range(len(inputs))])
        self._count(inputs, results, job.plan)
        return Answer(results, tuple(form.origin for form in job.plan.forms), job.cost)

    async def _embed_one(self, item: Input, job: _Job) -> Result:
        for engine in job.plan.outputs:
            engine.inflight += len(item.regions)
        try:
            return await self._answer(item, job)
        except RequestError as exc:
            return exc
        except Exception:  # noqa: BLE001 - one input's failure stays its own, and is logged in full
            _log.exception("an input failed for a reason of ours")
            return InternalError("the server failed on this input; its log has the call's x-request-id")
        finally:
            for engine in job.plan.outputs:
                engine.inflight -= len(item.regions)

    async def _answer(self, item: Input, job: _Job) -> Result:
        inferred = await self._inferrer.infer(item, job.wish)
        job.cost.add(inferred.cost)
        embeddings = []
        for r in range(len(item.regions)):
            for t, (engine, form) in enumerate(zip(job.plan.engines, job.plan.forms, strict=True)):
                outcome = inferred.outcomes.get(Place(r, engine.name, form.graph_output))
                if outcome is None:
                    embeddings.append(Embedding(r, t, _not_of_texts(engine, form)))
                elif isinstance(outcome, RequestError):
                    embeddings.append(Embedding(r, t, outcome))
                else:
                    embeddings.append(Embedding(r, t, _finish(outcome, engine, form, job)))
        return _whole_failure(embeddings) or Embedded(tuple(embeddings), inferred.source)

    def _count(self, inputs: Sequence[Input], results: Sequence[Result], plan: Plan) -> None:
        for item, result in zip(inputs, results, strict=True):
            if isinstance(result, RequestError):
                self._count_outcomes(plan.engines, _outcome_word(result), len(item.regions))
                continue
            for embedding in result.embeddings:
                self._count_outcomes((plan.engines[embedding.target],), _outcome_word(embedding.outcome), 1)

    def _count_outcomes(self, engines: Sequence[Served], outcome: str, count: int) -> None:
        for engine in engines:
            self._metrics.items.labels(engine.name, outcome).inc(count)


def _whole_failure(embeddings: Sequence[Embedding]) -> RequestError | None:
    """Return the server's own error that all embeddings of an input share: the input has failed."""
    first = embeddings[0].outcome
    if not isinstance(first, _OF_OURS):
        return None
    return first if all(type(e.outcome) is type(first) for e in embeddings) else None


def _finish(output: Output, engine: Served, form: Form, job: _Job) -> Vector | RequestError:
    started = time.monotonic()
    vector = finish({form.graph_output: output.values}, form)
    took = Cost(
        queue_s=output.queue_s,
        compute_s=output.compute_s,
        encode_s=time.monotonic() - started,
        vectors=1,
        cached=int(output.cached),
    )
    job.costs[engine.name].add(took)
    job.cost.add(took)
    return vector


def _not_of_texts(engine: Served, form: Form) -> BadOptionError:
    text = engine.manifest.text
    known = ", ".join(text.outputs) if text else "none"
    return BadOptionError(
        f"texts have no output {form.output!r} of {engine.name}; they have {known}", field="output"
    )


def _outcome_word(outcome: Vector | RequestError) -> str:
    return outcome.reason.name.lower() if isinstance(outcome, RequestError) else "ok"
