"""inference.GRPCInferenceService: what tritonclient, KServe and perf_analyzer call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from pixvec_server import log
from pixvec_server.errors import DeadlineError, InternalError, OverloadedError, RequestError
from pixvec_server.oip import inference_pb2 as pb
from pixvec_server.rpc import call as calls
from pixvec_server.rpc.flow import Flow
from pixvec_server.rpc.oip import tensors, views
from pixvec_server.statistics import Door

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from pixvec_server.config import LimitsSection
    from pixvec_server.pipeline import Pipeline, Plan
    from pixvec_server.rpc.service import ServiceOptions
    from pixvec_server.types import Target

# The name on the wire; the messages' own package is another, see the proto.
NAME = "inference.GRPCInferenceService"
EXTENSIONS = ("model_configuration", "statistics", "binary_tensor_data", "parameters")
_log = log.get("oip")


class InferenceService:
    """The protocol's calls. `ready` is what ServerReady says."""

    def __init__(
        self, pipeline: Pipeline, limits: LimitsSection, options: ServiceOptions, draining: asyncio.Event
    ) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._options = options
        self._draining = draining
        self.ready = False

    def handler(self) -> Any:  # noqa: ANN401 - grpc ships no types
        """Return the generic handler: a generated one would register the messages under their public name."""
        methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        handlers = {}
        for method in methods:
            request, response = (getattr(pb, kind.name) for kind in (method.input_type, method.output_type))
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.name == "ModelStreamInfer"
                else grpc.unary_unary_rpc_method_handler
            )
            inner = getattr(self, method.name)
            handlers[method.name] = make(inner, request.FromString, response.SerializeToString)
        return grpc.method_handlers_generic_handler(NAME, handlers)

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: calls.Context
    ) -> pb.ServerLiveResponse:
        """Say that the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: calls.Context
    ) -> pb.ServerReadyResponse:
        """Say what health says."""
        return pb.ServerReadyResponse(ready=self.ready)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: calls.Context
    ) -> pb.ModelReadyResponse:
        """Say whether a model answers; one that waits for its first use does."""
        engine, _ = views.find(self._pipeline, request.name, request.version)
        return pb.ModelReadyResponse(ready=views.answers(engine))

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: calls.Context
    ) -> pb.ServerMetadataResponse:
        """Name the server and the extensions that it serves in full."""
        return pb.ServerMetadataResponse(name="pixvec", version=self._options.version, extensions=EXTENSIONS)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: calls.Context
    ) -> pb.ModelMetadataResponse:
        """Describe a model's tensors."""
        return views.metadata(*views.find(self._pipeline, request.name, request.version))

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: calls.Context
    ) -> pb.ModelConfigResponse:
        """Describe a model's tensors and its batches."""
        engine, view = views.find(self._pipeline, request.name, request.version)
        config = views.config(engine, view, self._limits.inputs, caches=self._pipeline.caches)
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: calls.Context
    ) -> pb.ModelStatisticsResponse:
        """Say what a model has done, or all of them when none is named."""
        named = (
            [views.find(self._pipeline, request.name, request.version)]
            if request.name
            else views.every(self._pipeline)
        )
        return pb.ModelStatisticsResponse(model_stats=[views.statistics(*pair) for pair in named])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: calls.Context
    ) -> pb.RepositoryIndexResponse:
        """List every model by each kind of input that it takes."""
        listed = (pair for pair in views.every(self._pipeline) if not request.ready or views.answers(pair[0]))
        return pb.RepositoryIndexResponse(models=[views.index(*pair) for pair in listed])

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: calls.Context
    ) -> pb.ModelInferResponse:
        """Embed a batch; one item's error is the call's."""
        return await self._infer(request, calls.current.get())

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: calls.Context
    ) -> None:
        """Embed a batch for each message, answered in their order; an error is its message's own."""
        flow = Flow(
            self._answer_message, context.write, self._options.stream_window, self._draining, ordered=True
        )
        await flow.serve(requests)

    async def _answer_message(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        call = calls.current.get().anew()
        try:
            response = pb.ModelStreamInferResponse(infer_response=await self._infer(request, call, wait=True))
        except RequestError as exc:
            response = _failed(request, exc)
        except Exception:  # noqa: BLE001 - one message's failure stays its own, and is logged in full
            _log.exception("a stream's message failed for a reason of ours")
            error = InternalError("the server failed on this message; see its log")
            response = _failed(request, error)
        if tensors.wants_final_flag(request):
            response.infer_response.parameters["triton_final_response"].bool_param = True
        return response

    async def _infer(
        self, request: pb.ModelInferRequest, call: calls.Call, *, wait: bool = False
    ) -> pb.ModelInferResponse:
        engine, view = views.find(self._pipeline, request.model_name, request.model_version)
        route, named = (name.removesuffix(view.suffix) for name in (call.model, request.model_name))
        calls.check_route(route, named, self._pipeline.same)
        started = call.arrived
        try:
            items = tensors.read_inputs(request, view, self._limits.inputs)
            plan = self._plan(tensors.read_targets(request, engine.name, self._limits.targets))
            timeout = tensors.read_timeout(request)
        except RequestError:
            engine.statistics(view.suffix).fail.add(calls.since(started))
            raise
        deadline = call.until(self._options.default_deadline_s, self._options.max_deadline_s)
        soonest = deadline if timeout is None else min(deadline, started + timeout)
        name, door = request.model_name or engine.name, Door(view.suffix, whole=True)
        try:
            answer = await self._pipeline.embed(
                items, plan, deadline=soonest, wait=wait, door=door, tenant=call.tenant
            )
            return tensors.write_response(request, name, views.VERSION, plan.forms, answer.results)
        except DeadlineError as exc:
            if soonest < deadline:
                raise OverloadedError(f"not done within {timeout} s, the parameter timeout") from exc
            raise

    def _plan(self, targets: tuple[Target, ...]) -> Plan:
        try:
            return self._pipeline.plan(targets)
        except RequestError as exc:
            raise tensors.located(exc) from exc


def _failed(request: pb.ModelInferRequest, error: RequestError) -> pb.ModelStreamInferResponse:
    words = f"{error.field}: {error.message}" if error.field else error.message
    return pb.ModelStreamInferResponse(
        error_message=words,
        infer_response=pb.ModelInferResponse(model_name=request.model_name, id=request.id),
    )
