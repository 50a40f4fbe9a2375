"""The names under which a served model appears: one for each kind of input, as the protocol types them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixvec_server.errors import ModelNotFoundError, ModelNotReadyError
from pixvec_server.oip import inference_pb2 as pb
from pixvec_server.spec import EMBEDDING
from pixvec_server.types import State, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixvec_server.pipeline import Pipeline
    from pixvec_server.served import Served
    from pixvec_server.statistics import Duration, Statistics

VERSION = "1"
PLATFORM = "pixvec"
_ANSWERING = (State.READY, State.UNLOADED)
_TYPES = {"BYTES": pb.TYPE_STRING, "UINT8": pb.TYPE_UINT8}


@dataclass(frozen=True, slots=True)
class View:
    """A model by one kind of input: NAME + `suffix` takes the tensor `tensor` of type `datatype`."""

    suffix: str
    tensor: str
    datatype: str

    def dims(self, engine: Served) -> tuple[int, ...]:
        """Return one item's shape; of pixels the model's own size, though any other is taken as well."""
        size = engine.manifest.preprocess
        return (size.height, size.width, 3) if self is PIXELS else (1,)


IMAGE = View("", "image", "BYTES")
PIXELS = View("_pixels", "pixels", "UINT8")
TEXT = View("_text", "text", "BYTES")


def find(pipeline: Pipeline, name: str, version: str = "") -> tuple[Served, View]:
    """Return the model and the view of a name. Raises ModelNotFoundError."""
    found = _find(pipeline, name)
    if version not in {"", VERSION}:
        raise ModelNotFoundError(f"{name!r} has version {VERSION} alone, not {version!r}", field="version")
    return found


def _find(pipeline: Pipeline, name: str) -> tuple[Served, View]:
    try:
        return pipeline.find(name), IMAGE
    except ModelNotFoundError:
        found = _by_ending(pipeline, name)
        if found is None:
            raise
        return found


def _by_ending(pipeline: Pipeline, name: str) -> tuple[Served, View] | None:
    view = next((view for view in (PIXELS, TEXT) if name.endswith(view.suffix)), None)
    if view is None or name == view.suffix:
        return None
    try:
        engine = pipeline.find(name.removesuffix(view.suffix))
    except ModelNotFoundError:
        return None
    # Whether it has a text tower is not known before it is prepared: "not yet" then, not "no such model".
    return (engine, view) if not engine.prepared or _has(engine, view) else None


def every(pipeline: Pipeline) -> Iterator[tuple[Served, View]]:
    """Yield each model by each of its views."""
    for engine in pipeline.engines.values():
        yield from ((engine, view) for view in (IMAGE, PIXELS, TEXT) if _has(engine, view))


def _has(engine: Served, view: View) -> bool:
    return view is not TEXT or (engine.prepared and engine.manifest.text is not None)


def answers(engine: Served) -> bool:
    """Tell whether a model answers now, if need be after it was loaded."""
    return engine.state in _ANSWERING


def metadata(engine: Served, view: View) -> pb.ModelMetadataResponse:
    """Describe a view. Raises ModelNotReadyError while the model's bundle is not there."""
    vector = _vector_shape(engine)
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=engine.name + view.suffix,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=[tensor(name=view.tensor, datatype=view.datatype, shape=(-1, *view.dims(engine)))],
        outputs=[tensor(name=EMBEDDING, datatype="FP32", shape=(-1, *vector))],
        properties={"build": engine.build(EMBEDDING), "licence": engine.manifest.licence},
    )


def config(engine: Served, view: View, max_batch: int, *, caches: bool) -> pb.ModelConfig:
    """Describe how a view batches; `max_batch`: items of one request. Raises ModelNotReadyError."""
    vector = _vector_shape(engine)
    delay_us = round(engine.options.max_delay_s * 1e6)
    return pb.ModelConfig(
        name=engine.name + view.suffix,
        platform=PLATFORM,
        max_batch_size=max_batch,
        input=[pb.ModelInput(name=view.tensor, data_type=_TYPES[view.datatype], dims=view.dims(engine))],
        output=[pb.ModelOutput(name=EMBEDDING, data_type=pb.TYPE_FP32, dims=vector)],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=[engine.options.max_batch], max_queue_delay_microseconds=delay_us
        ),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        response_cache=pb.ModelResponseCache(enable=caches),
    )


def statistics(engine: Served, view: View) -> pb.ModelStatistics:
    """Say what a model has done for those who reached it by this view, and by the contract's own calls."""
    done = engine.statistics(view.suffix)
    return pb.ModelStatistics(
        name=engine.name + view.suffix,
        version=VERSION,
        last_inference=done.last_ms,
        inference_count=done.items,
        execution_count=done.batches,
        inference_stats=_of_requests(done),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(spent))
            for size, spent in sorted(done.by_size.items())
        ],
    )


def index(engine: Served, view: View) -> pb.RepositoryIndexResponse.ModelIndex:
    """Describe a view for the index."""
    if answers(engine):
        state, reason = "READY", "" if engine.state is State.READY else "loaded at its next use"
    else:
        state = "LOADING" if engine.state is State.LOADING else "UNAVAILABLE"
        reason = engine.state.name.lower()
    return pb.RepositoryIndexResponse.ModelIndex(
        name=engine.name + view.suffix, version=VERSION, state=state, reason=reason
    )


def _vector_shape(engine: Served) -> tuple[int, ...]:
    if not engine.prepared:
        raise ModelNotReadyError(f"model {engine.name} is {engine.state.name}", retry_after=1.0)
    return engine.resolve(Target()).shape


def _of_requests(done: Statistics) -> pb.InferStatistics:
    return pb.InferStatistics(
        success=_duration(done.success),
        fail=_duration(done.fail),
        queue=_duration(done.queue),
        compute_input=_duration(done.decode),
        compute_infer=_duration(done.compute),
        compute_output=_duration(done.encode),
        cache_hit=_duration(done.hit),
        cache_miss=_duration(done.miss),
    )


def _duration(spent: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=spent.count, ns=spent.ns)
