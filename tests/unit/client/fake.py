"""A small real server: vectors are derived from the bytes, so every answer can be checked."""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as stubs

SIZE = 16
SCALE = 1 / 64


def vector_of(content: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the unit vector that the server answers for these bytes."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)
    return vector / np.linalg.norm(vector)


def content_of(message: pb.Input) -> bytes:
    kind = message.WhichOneof("content")
    if kind == "pixels":
        return bytes(message.pixels.data)
    return message.text.encode() if kind == "text" else bytes(message.image)


def error(reason: int, code: grpc.StatusCode, message: str, retry_after: float = 0) -> pb.Error:
    made = pb.Error(code=code.value[0], reason=pb.Reason.Name(reason), message=message)
    if retry_after:
        made.retry_after.FromMilliseconds(int(retry_after * 1000))
    return made


def abort(context: Any, failure: pb.Error) -> None:
    code = next(c for c in grpc.StatusCode if c.value[0] == failure.code)
    context.set_trailing_metadata(
        (("pixvec-error-bin", failure.SerializeToString()), ("x-request-id", "request-7"))
    )
    context.abort(code, failure.message)


def refuse(reason: int, code: grpc.StatusCode, message: str = "no", retry_after: float = 0) -> Any:
    return lambda context: abort(context, error(reason, code, message, retry_after))


def bare(code: grpc.StatusCode) -> Any:
    return lambda context: context.abort(code, "bare")


def overloaded(retry_after: float) -> pb.Error:
    return error(pb.REASON_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after)


BAD = {
    b"bad": error(pb.REASON_UNDECODABLE, grpc.StatusCode.INVALID_ARGUMENT, "not an image"),
    b"busy": error(pb.REASON_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after=1.5),
}


def encode(vector: Any, encoding: int) -> pb.Tensor:
    shape = list(vector.shape)
    if encoding == pb.ENCODING_INT8:
        data = np.clip(np.rint(vector / SCALE), -128, 127).astype(np.int8).tobytes()
        return pb.Tensor(encoding=pb.ENCODING_INT8, shape=shape, data=data, scale=SCALE)
    if encoding == pb.ENCODING_BINARY:
        return pb.Tensor(encoding=pb.ENCODING_BINARY, shape=shape, data=np.packbits(vector > 0).tobytes())
    if encoding == pb.ENCODING_FLOAT16:
        return pb.Tensor(encoding=pb.ENCODING_FLOAT16, shape=shape, data=vector.astype("<f2").tobytes())
    if encoding == pb.ENCODING_BFLOAT16:
        upper = (vector.astype("<f4").view("<u4") >> 16).astype("<u2")
        return pb.Tensor(encoding=pb.ENCODING_BFLOAT16, shape=shape, data=upper.tobytes())
    return pb.Tensor(encoding=pb.ENCODING_FLOAT32, shape=shape, data=vector.astype("<f4").tobytes())


@dataclass
class Service(stubs.EmbeddingServiceServicer):
    limits: pb.Limits = field(
        default_factory=lambda: pb.Limits(request_bytes=1 << 24, inputs=64, image_bytes=1 << 23, vectors=256)
    )
    space: str = "space-1"
    # Run before each call in turn, once each; then `always`, when there is one.
    next_failures: deque[Callable[[Any], None]] = field(default_factory=deque)
    always: Callable[[Any], None] | None = None
    delay_s: float = 0.0
    # More batches at once are refused, with a hint of so many seconds.
    capacity: int | None = None
    hint_s: float = 0.02
    queue_ns: int = 2
    # After so many messages an EmbedStream breaks, once.
    break_after: int | None = None
    # EmbedStreams whose callers said that they were done.
    streams_ended: int = 0
    calls: list[tuple[str, Any]] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0
    most_under_way: int = 0
    cancelled: int = 0

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        self._enter("Embed", request, context)
        result = self._result(request.input, request.targets)
        if result.WhichOneof("outcome") == "error":
            abort(context, result.error)
        return pb.EmbedResponse(embedded=result.embedded, report=self._report(request.targets))

    def EmbedBatch(self, request: pb.EmbedBatchRequest, context: Any) -> pb.EmbedBatchResponse:  # noqa: N802
        self._enter("EmbedBatch", request, context)
        with self.lock:
            full = self.capacity is not None and self.under_way >= self.capacity
            self.under_way += not full
            self.most_under_way = max(self.most_under_way, self.under_way)
        if full:
            abort(
                context, error(pb.REASON_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", self.hint_s)
            )
        try:
            slow = any(message.image.startswith(b"slow") for message in request.inputs)
            time.sleep(0.3 if slow else self.delay_s)
            self.cancelled += not context.is_active()
            results = [self._result(message, request.targets) for message in request.inputs]
            return pb.EmbedBatchResponse(results=results, report=self._report(request.targets))
        finally:
            with self.lock:
                self.under_way -= 1

    def EmbedStream(  # noqa: N802
        self, requests: Iterator[pb.EmbedStreamRequest], context: Any
    ) -> Iterator[pb.EmbedStreamResponse]:
        for number, request in enumerate(requests):
            self._enter("EmbedStream", request, context)
            if self.break_after is not None and number == self.break_after:
                self.break_after = None
                context.abort(grpc.StatusCode.UNAVAILABLE, "the stream breaks")
            time.sleep(self.delay_s)
            results = [self._result(message, request.targets) for message in request.inputs]
            yield pb.EmbedStreamResponse(id=request.id, results=results, report=self._report(request.targets))
        self.streams_ended += 1

    def Similarity(self, request: pb.SimilarityRequest, context: Any) -> pb.SimilarityResponse:  # noqa: N802
        self._enter("Similarity", request, context)
        spaces = {o.space for o in [*request.queries, *request.candidates] if o.HasField("vector")}
        if spaces - {self.space}:
            abort(context, error(pb.REASON_SPACE_MISMATCH, grpc.StatusCode.FAILED_PRECONDITION, "spaces"))
        queries, candidates = (
            np.stack([_operand(o) for o in side]) for side in (request.queries, request.candidates)
        )
        rows = []
        for scores in (queries @ candidates.T).astype("<f4"):
            if request.HasField("top_k"):
                order = np.argsort(-scores)[: request.top_k]
                rows.append(pb.Row(indices=order.tolist(), scores=scores[order].tobytes()))
            else:
                rows.append(pb.Row(scores=scores.tobytes()))
        return pb.SimilarityResponse(rows=rows, report=self._report([request.target]))

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        self._enter("ListModels", request, context)
        return pb.ListModelsResponse(models=[self._model()], limits=self.limits, server_version="0")

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        self._enter("GetModel", request, context)
        if request.model not in {"", "hash", "prod"}:
            message = f"no model {request.model}"
            abort(context, error(pb.REASON_MODEL_NOT_FOUND, grpc.StatusCode.NOT_FOUND, message))
        return pb.GetModelResponse(model=self._model(), limits=self.limits)

    def of(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def images(self) -> list[bytes]:
        """Return the content of every input that arrived, each as often as it did."""
        requests = [*self.of("EmbedBatch"), *self.of("EmbedStream")]
        return [content_of(message) for request in requests for message in request.inputs]

    def _enter(self, name: str, request: Any, context: Any) -> None:
        with self.lock:
            self.calls.append((name, request))
            self.metadata.append(dict(context.invocation_metadata()))
            failing = None
            if name not in {"ListModels", "GetModel"}:
                failing = self.next_failures.popleft() if self.next_failures else self.always
        if failing is not None:
            failing(context)

    def _result(self, message: pb.Input, targets: Any) -> pb.Result:
        content = content_of(message)
        if content in BAD:
            return pb.Result(error=BAD[content])
        embedded = pb.Embedded(source=pb.Source(width=3, height=2, format="hash", frames=1))
        for r, region in enumerate(message.regions or [pb.Region(whole=True)]):
            for t, target in enumerate(targets or [pb.Target()]):
                embedded.embeddings.append(self._embedding(content, r, region, t, target))
        return pb.Result(embedded=embedded)

    def _embedding(
        self, content: bytes, r: int, region: pb.Region, t: int, target: pb.Target
    ) -> pb.Embedding:
        if not region.whole and region.left >= region.right:
            failure = error(pb.REASON_UNDECODABLE, grpc.StatusCode.INVALID_ARGUMENT, "an empty box")
            return pb.Embedding(region=r, target=t, error=failure)
        suffix = b"" if region.whole else f"{region.left},{region.top}".encode()
        vector = vector_of(content + suffix)[: target.dimensions or SIZE]
        return pb.Embedding(region=r, target=t, vector=encode(vector, target.encoding))

    def _report(self, targets: Any) -> pb.Report:
        origin = pb.Origin(model="hash", space=self.space, build="build-1", normalized=True)
        timing = pb.Timing(decode_ns=1, queue_ns=self.queue_ns, compute_ns=3, total_ns=6)
        return pb.Report(origins=[origin] * max(1, len(targets)), usage=pb.Usage(vectors=1), timing=timing)

    def _model(self) -> pb.Model:
        output = pb.Output(
            name="embedding", space=self.space, shape=[SIZE], dimensions=[SIZE, 8], normalized=True
        )
        return pb.Model(
            name="hash",
            aliases=["prod"],
            state=pb.STATE_READY,
            outputs=[output],
            backend="sha",
            device="cpu",
            input_size=[32, 32],
        )


def _operand(operand: pb.Operand) -> Any:
    if operand.HasField("vector"):
        dtype = "<f2" if operand.vector.encoding == pb.ENCODING_FLOAT16 else "<f4"
        return np.frombuffer(operand.vector.data, dtype).astype(np.float32)
    return vector_of(content_of(operand.input))


@dataclass
class Running:
    service: Service
    target: str
    health: Any

    def set_serving(self, state: str, service: str = "") -> None:
        self.health.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(state))


@contextmanager
def serving(service: Service | None = None) -> Iterator[Running]:
    """Run a service on a free loopback port."""
    service = service or Service()
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    stubs.add_EmbeddingServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health = grpc_health.HealthServicer()
    health.set("pixvec.v1.EmbeddingService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Running(service, f"127.0.0.1:{port}", health)
    finally:
        server.stop(None).wait()
