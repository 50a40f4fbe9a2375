"""Health in full, and no registered method that is unimplemented or fails for an internal reason."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.servers import Server, serve

NAMES = ("", "pixvec.v1.EmbeddingService", "inference.GRPCInferenceService")
SERVICES = {*NAMES[1:], "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
METHODS = 14
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
UNEXPECTED = {
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def _health(server: Server) -> Any:
    return health_pb2_grpc.HealthStub(server.channel())


def _check(health: Any, name: str) -> int:
    status: int = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
    return status


def _list(health: Any) -> dict[str, int]:
    answer = health.List(health_pb2.HealthListRequest(), timeout=10)
    return {name: response.status for name, response in answer.statuses.items()}


def _watch(health: Any, name: str) -> Iterator[int]:
    return (
        response.status for response in health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
    )


def _internal_lines(server: Server) -> list[dict[str, Any]]:
    return [line for line in server.lines() if "exception" in line or "Traceback" in json.dumps(line)]


def test_health_tells_every_status_in_all_three_ways(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}", env={"PIXVEC_SERVER__LAME_DUCK_S": "3"}) as server:
        health = _health(server)
        watches = {name: _watch(health, name) for name in NAMES}
        unknown = _watch(health, "no.such.Service")
        assert next(unknown) == SERVICE_UNKNOWN
        assert {name: next(watch) for name, watch in watches.items()} == dict.fromkeys(NAMES, SERVING)
        assert {name: _check(health, name) for name in NAMES} == dict.fromkeys(NAMES, SERVING)
        assert _list(health) == dict.fromkeys(NAMES, SERVING)
        with pytest.raises(grpc.RpcError) as caught:
            _check(health, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

        server.process.send_signal(signal.SIGTERM)
        assert {name: next(watch) for name, watch in watches.items()} == dict.fromkeys(NAMES, NOT_SERVING)
        assert {name: _check(health, name) for name in NAMES} == dict.fromkeys(NAMES, NOT_SERVING)
        assert _list(health) == dict.fromkeys(NAMES, NOT_SERVING)
        assert server.process.wait(20) == 0
        assert _internal_lines(server) == []


def test_health_needs_no_token_and_names_only_what_is_served(tiny_bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    env = {"PIXVEC_SERVER__OPEN_INFERENCE": "false"}
    with serve("--model", f"tiny={tiny_bundle}", "--token-file", str(tokens), env=env) as server:
        health = _health(server)
        assert _list(health) == dict.fromkeys(NAMES[:2], SERVING)
        assert _check(health, "") == next(_watch(health, "")) == SERVING


def test_list_answers_in_a_server_of_several_processes(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}", "--frontends", "1") as server:
        assert _list(_health(server)) == dict.fromkeys(NAMES, SERVING)


def test_no_registered_method_is_unimplemented_or_fails_inside(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as server:
        channel = server.channel()
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == SERVICES
        pool = descriptor_pool.DescriptorPool(database)
        methods = [m for name in SERVICES for m in pool.FindServiceByName(name).methods]
        assert len(methods) >= METHODS
        codes = {method.full_name: _call_with_nothing(channel, method) for method in methods}
        assert not {name: code for name, code in codes.items() if code in UNEXPECTED}
        assert _internal_lines(server) == []


def _call_with_nothing(channel: grpc.Channel, method: MethodDescriptor) -> grpc.StatusCode:
    """Call a method with one message without fields; a stream's first answer is enough."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = message_factory.GetMessageClass(method.output_type).FromString
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    call = kinds[method.client_streaming, method.server_streaming](
        path, request_serializer=bytes, response_deserializer=parse
    )
    try:
        answer = call(iter((b"",)) if method.client_streaming else b"", timeout=10)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as exc:
        return exc.code()
    return grpc.StatusCode.OK


def test_reflection_answers_every_kind_of_question_and_nonsense(tiny_bundle: Path) -> None:
    kinds = {
        "list_services": "*",
        "file_by_filename": "pixvec/v1/embedding.proto",
        "file_containing_symbol": "pixvec.v1.EmbedRequest",
        "all_extension_numbers_of_type": "pixvec.v1.EmbedRequest",
        "file_containing_extension": {"containing_type": "pixvec.v1.EmbedRequest", "extension_number": 1},
    }
    nonsense = {
        "file_by_filename": "../etc/passwd",
        "file_containing_symbol": "no.such.Symbol",
        "all_extension_numbers_of_type": "no.such.Type",
        "file_containing_extension": {"containing_type": "no.such.Type", "extension_number": -1},
    }
    questions = [*kinds.items(), *nonsense.items()]
    with serve("--model", f"tiny={tiny_bundle}") as server:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel())
        requests = [reflection_pb2.ServerReflectionRequest(**{key: value}) for key, value in questions]
        requests.append(reflection_pb2.ServerReflectionRequest())
        answers = list(stub.ServerReflectionInfo(iter(requests), timeout=10))
        assert len(answers) == len(requests)
        assert not any(answer.HasField("error_response") for answer in answers[:4])
        assert all(answer.error_response.error_code for answer in answers[4:])
        assert _internal_lines(server) == []
