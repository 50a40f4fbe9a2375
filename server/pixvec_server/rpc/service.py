"""pixvec.v1.EmbeddingService: reads messages, asks the pipeline, writes messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as pb_grpc
from pixvec_server import log
from pixvec_server.errors import BadOptionError, InternalError, RequestError, TooLargeError
from pixvec_server.rpc import call as calls
from pixvec_server.rpc import describe, messages
from pixvec_server.rpc.stream import Stream, refuse
from pixvec_server.types import Answer, Cost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pixvec_server.config import LimitsSection
    from pixvec_server.pipeline import Pipeline, Plan
    from pixvec_server.similarity import Comparer
    from pixvec_server.types import Input, Result, Target

# Whose messages are pictures.
_HEAVY = tuple(f"/pixvec.v1.EmbeddingService/{name}" for name in ("Embed", "EmbedBatch"))
_log = log.get("service")


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How calls are timed, in seconds, and how far a stream is read ahead, in messages."""

    default_deadline_s: float
    max_deadline_s: float
    send_margin_s: float
    stream_window: int
    version: str


class EmbeddingService(pb_grpc.EmbeddingServiceServicer):
    """The six methods of the contract."""

    def __init__(
        self,
        pipeline: Pipeline,
        comparer: Comparer,
        limits: LimitsSection,
        options: ServiceOptions,
        draining: asyncio.Event,
    ) -> None:
        self._pipeline = pipeline
        self._comparer = comparer
        self._limits = limits
        self._options = options
        self._draining = draining

    def turn_away(self, call: calls.Call) -> None:
        """Raise OverloadedError, before it is read, for a call that cannot be answered in time."""
        if call.method in _HEAVY:
            self._pipeline.turn_away(call.model, self._deadline(call))

    async def Embed(self, request: pb.EmbedRequest, context: calls.Context) -> pb.EmbedResponse:
        """See the contract."""
        call = calls.current.get()
        plan = self._plan(self._targets(request.targets), call)
        try:
            item = messages.read_input(request.input, self._limits.regions)
        except RequestError as exc:
            raise exc.under("input") from exc
        answer = await self._pipeline.embed([item], plan, deadline=self._deadline(call), tenant=call.tenant)
        result = answer.results[0]
        if isinstance(result, RequestError):
            raise result.under("input")
        return pb.EmbedResponse(
            embedded=messages.write_embedded(result),
            report=messages.write_report(answer, calls.since(call.arrived)),
        )

    async def EmbedBatch(
        self, request: pb.EmbedBatchRequest, context: calls.Context
    ) -> pb.EmbedBatchResponse:
        """See the contract."""
        call = calls.current.get()
        plan = self._plan(self._targets(request.targets), call)
        answer = await self.embed_all(request.inputs, plan, self._deadline(call), call.tenant)
        return pb.EmbedBatchResponse(
            results=[messages.write_result(result) for result in answer.results],
            report=messages.write_report(answer, calls.since(call.arrived)),
        )

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: calls.Context
    ) -> None:
        """See the contract."""
        stream = Stream(self._answer_message, context.write, self._options.stream_window, self._draining)
        await stream.serve(request_iterator)

    async def Similarity(
        self, request: pb.SimilarityRequest, context: calls.Context
    ) -> pb.SimilarityResponse:
        """See the contract."""
        call = calls.current.get()
        question = await self._comparer.run(messages.read_question, request)
        calls.check_route(call.model, question.target.model, self._pipeline.same)
        rows, answer = await self._comparer.compare(
            question, deadline=self._deadline(call), tenant=call.tenant
        )
        return pb.SimilarityResponse(
            rows=[messages.write_row(row) for row in rows],
            report=messages.write_report(answer, calls.since(call.arrived)),
        )

    async def ListModels(
        self, request: pb.ListModelsRequest, context: calls.Context
    ) -> pb.ListModelsResponse:
        """See the contract."""
        return pb.ListModelsResponse(
            models=[describe.model(engine, self._pipeline) for engine in self._pipeline.engines.values()],
            limits=describe.limits(self._limits),
            server_version=self._options.version,
        )

    async def GetModel(self, request: pb.GetModelRequest, context: calls.Context) -> pb.GetModelResponse:
        """See the contract."""
        engine = self._pipeline.find(request.model)
        return pb.GetModelResponse(
            model=describe.model(engine, self._pipeline), limits=describe.limits(self._limits)
        )

    async def embed_all(
        self, items: Sequence[pb.Input], plan: Plan, deadline: float, tenant: str, *, wait: bool = False
    ) -> Answer:
        """Embed every input that can be read; the others' Results are their own errors, in place."""
        self._check_count(items)
        read = [self._read(item) for item in items]
        good = [item for item in read if not isinstance(item, RequestError)]
        answer = Answer([], tuple(form.origin for form in plan.forms), Cost())
        if good:
            margin = self._options.send_margin_s
            answer = await self._pipeline.embed(
                good, plan, deadline=deadline, margin=margin, wait=wait, tenant=tenant
            )
        done = iter(answer.results)
        merged = [item if isinstance(item, RequestError) else next(done) for item in read]
        answer.results = [_at(result, i) for i, result in enumerate(merged)]
        return answer

    async def _answer_message(
        self, request: pb.EmbedStreamRequest, first: Sequence[pb.Target]
    ) -> pb.EmbedStreamResponse:
        """Answer one message of a stream; whatever is wrong with it is the Result of each of its inputs."""
        started = asyncio.get_running_loop().time()
        call = calls.current.get()
        try:
            plan = self._plan(self._targets(request.targets or first), call)
            deadline = started + self._options.default_deadline_s
            answer = await self.embed_all(request.inputs, plan, deadline, call.tenant, wait=True)
        except RequestError as exc:
            return refuse(request, exc)
        except Exception:  # noqa: BLE001 - one message's failure stays its own, and is logged in full
            _log.exception("a stream's message failed for a reason of ours")
            return refuse(request, InternalError("the server failed on this message; see its log"))
        return pb.EmbedStreamResponse(
            id=request.id,
            results=map(messages.write_result, answer.results),
            report=messages.write_report(answer, calls.since(started)),
        )

    def _targets(self, given: Sequence[pb.Target]) -> tuple[Target, ...]:
        return messages.read_targets(given, self._limits.targets)

    def _plan(self, targets: tuple[Target, ...], call: calls.Call) -> Plan:
        calls.check_route(call.model, targets[0].model, self._pipeline.same)
        return self._pipeline.plan(targets)

    def _check_count(self, items: Sequence[pb.Input]) -> None:
        if not items:
            raise BadOptionError("inputs is empty: send at least one", field="inputs")
        if len(items) > self._limits.inputs:
            raise TooLargeError(
                f"{len(items)} inputs are over inputs = {self._limits.inputs}", field="inputs"
            )

    def _read(self, message: pb.Input) -> Input | RequestError:
        try:
            return messages.read_input(message, self._limits.regions)
        except RequestError as exc:
            return exc

    def _deadline(self, call: calls.Call) -> float:
        return call.until(self._options.default_deadline_s, self._options.max_deadline_s)


def _at(result: Result, index: int) -> Result:
    return result.under(f"inputs[{index}]") if isinstance(result, RequestError) else result
