"""The Open Inference Protocol over a real channel, beside the contract's own calls on the same server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import oip, photos
from support.servers import Server, serve

from pixvec.v1 import embedding_pb2 as contract
from pixvec_server import __version__
from pixvec_server.oip import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("chelsea.png", "rocket.jpg", "coffee.png", "china.jpg", "moon.png")
FILES = [photos.data(name) for name in NAMES]
GRPCURL = Path(sys.executable).with_name("grpcurl")
METHOD = f"/{oip.NAME}/ModelInfer"
HELD_MS = 2000.0
# What one request holds fills the queue, and stays there for as long as batches are held back.
SLOW = {
    "PIXVEC_BATCH__MAX_QUEUE_ITEMS": "4",
    "PIXVEC_LIMITS__VECTORS": "4",
    "PIXVEC_BATCH__MAX_SIZE": "8",
    "PIXVEC_BATCH__MAX_DELAY_MS": str(HELD_MS),
}


@pytest.fixture
def calls(tiny_server: Server) -> Iterator[oip.Caller]:
    """A caller of the shared server."""
    with oip.caller(tiny_server.target) as made:
        yield made


@pytest.fixture(scope="module")
def slow(tiny_bundle: Path) -> Iterator[Server]:
    """A server with room for four items, which holds every batch back."""
    with serve("--model", f"tiny={tiny_bundle}", env=SLOW) as running:
        yield running


def _natively(server: Server, inputs: list[contract.Input], **target: Any) -> Any:
    request = contract.EmbedBatchRequest(inputs=inputs, targets=[contract.Target(**target)])
    results = server.stub().EmbedBatch(request).results
    return np.stack([np.frombuffer(r.embedded.embeddings[0].vector.data, "<f4").reshape(-1) for r in results])


def _error(code: str, ask: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    assert caught.value.code().name == code, caught.value.details()
    return caught.value


def _refused(calls: oip.Caller, request: pb.ModelInferRequest, code: str = "INVALID_ARGUMENT") -> str:
    return str(_error(code, lambda: calls.ModelInfer(request)).details())


def test_the_server_is_there_and_says_what_it_is(calls: oip.Caller) -> None:
    assert calls.ServerLive().live
    assert calls.ServerReady().ready
    about = calls.ServerMetadata()
    assert (about.name, about.version) == ("pixvec", __version__)
    assert set(about.extensions) == {
        "model_configuration",
        "statistics",
        "binary_tensor_data",
        "parameters",
    }


@pytest.mark.parametrize(
    ("name", "full"), [("tiny", "tiny"), ("", "tiny"), ("tiny-alias", "tiny"), ("tiny_pixels", "tiny_pixels")]
)
def test_a_model_is_described(calls: oip.Caller, name: str, full: str) -> None:
    assert calls.ModelReady(name=name).ready
    about = calls.ModelMetadata(name=name, version="1")
    assert (about.name, list(about.versions), about.platform) == (full, ["1"], "pixvec")
    assert about.properties["licence"] == "CC0-1.0"
    [given], [got] = about.inputs, about.outputs
    pixels = full.endswith("_pixels")
    expected = ("pixels", "UINT8", [-1, 8, 8, 3]) if pixels else ("image", "BYTES", [-1, 1])
    assert (given.name, given.datatype, list(given.shape)) == expected
    assert (got.name, got.datatype, list(got.shape)) == ("embedding", "FP32", [-1, 32])
    config = calls.ModelConfig(name=name).config
    assert (config.name, config.max_batch_size) == (full, 256)
    assert config.input[0].data_type == (pb.TYPE_UINT8 if pixels else pb.TYPE_STRING)
    assert list(config.input[0].dims) == expected[2][1:]
    assert (config.output[0].name, config.output[0].data_type) == ("embedding", pb.TYPE_FP32)
    assert list(config.output[0].dims) == [32]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.HasField("model_transaction_policy")
    assert not config.model_transaction_policy.decoupled


def test_the_index_lists_every_name_of_every_model(calls: oip.Caller) -> None:
    for ready in (False, True):
        models = calls.RepositoryIndex(ready=ready).models
        assert [(m.name, m.version, m.state) for m in models] == [
            ("tiny", "1", "READY"),
            ("tiny_pixels", "1", "READY"),
        ]


def test_a_model_that_waits_for_its_first_use_answers(tiny_bundle: Path) -> None:
    env = {"PIXVEC_MODEL__LOAD": "first_use"}
    with serve("--model", f"tiny={tiny_bundle}", env=env) as server, oip.caller(server.target) as calls:
        assert calls.ServerReady().ready
        for name in ("tiny", "tiny_pixels"):
            assert calls.ModelReady(name=name).ready
            assert list(calls.ModelMetadata(name=name).outputs[0].shape) == [-1, 32]
        listed = calls.RepositoryIndex(ready=True).models
        assert {(m.state, m.reason) for m in listed} == {("READY", "loaded at its next use")}
        assert calls.vectors(oip.of_bytes("tiny", FILES)).shape == (5, 32)
        assert {(m.state, m.reason) for m in calls.RepositoryIndex().models} == {("READY", "")}


@pytest.mark.parametrize("name", ["nobody", "tiny_text", "nobody_pixels"])
def test_an_unknown_model_or_version_is_not_found(calls: oip.Caller, name: str) -> None:
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        ask = getattr(calls, method)
        assert name in _error("NOT_FOUND", lambda ask=ask: ask(name=name)).details()
        assert "version" in _error("NOT_FOUND", lambda ask=ask: ask(name="tiny", version="2")).details()
    assert name in _refused(calls, oip.of_bytes(name, FILES[:1]), "NOT_FOUND")
    assert "version" in _refused(calls, oip.of_bytes("tiny", FILES[:1], model_version="2"), "NOT_FOUND")


def test_a_batch_is_embed_batchs_bit_for_bit_and_in_order(tiny_server: Server, calls: oip.Caller) -> None:
    expected = _natively(tiny_server, [contract.Input(image=data) for data in FILES])
    response = calls.ModelInfer(oip.of_bytes("tiny", FILES, id="mine", model_version="1"))
    assert (response.id, response.model_name, response.model_version) == ("mine", "tiny", "1")
    assert oip.vectors(response).tobytes() == expected.tobytes()
    assert calls.vectors(oip.of_bytes("", FILES[::-1])).tobytes() == expected[::-1].tobytes()
    spelt_out = pb.ModelInferRequest(model_name="tiny-alias")
    spelt_out.inputs.add(
        name="image", datatype="BYTES", shape=[5], contents=pb.InferTensorContents(bytes_contents=FILES)
    )
    assert calls.vectors(spelt_out).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3, 50), (427, 640)])
def test_pixels_of_any_size_are_the_contracts_pixels(
    tiny_server: Server, calls: oip.Caller, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, *size, 3), np.uint8)
    tensors = [
        contract.Input(pixels=contract.Tensor(encoding="ENCODING_UINT8", shape=p.shape, data=p.tobytes()))
        for p in pixels
    ]
    expected = _natively(tiny_server, tensors)
    assert calls.vectors(oip.of_pixels("tiny_pixels", pixels)).tobytes() == expected.tobytes()
    spelt_out = oip.of_pixels("tiny_pixels", pixels)
    del spelt_out.raw_input_contents[:]
    spelt_out.inputs[0].contents.uint_contents.extend(pixels.ravel().tolist())
    assert calls.vectors(spelt_out).tobytes() == expected.tobytes()


def test_parameters_and_outputs_shape_the_answer(tiny_server: Server, calls: oip.Caller) -> None:
    images = [contract.Input(image=data) for data in FILES]
    parameters = {
        "dimensions": pb.InferParameter(int64_param=16),
        "normalize": pb.InferParameter(bool_param=False),
    }
    cut = calls.ModelInfer(oip.of_bytes("tiny", FILES, parameters=parameters))
    expected = _natively(tiny_server, images, dimensions=16, normalize=False)
    assert oip.vectors(cut).tobytes() == expected.tobytes()
    assert not cut.parameters["normalized"].bool_param
    both = calls.ModelInfer(oip.of_bytes("tiny", FILES, outputs=["features", "embedding"]))
    assert [(o.name, list(o.shape)) for o in both.outputs] == [
        ("features", [5, 3, 8, 8]),
        ("embedding", [5, 32]),
    ]
    assert oip.vectors(both, 1).tobytes() == _natively(tiny_server, images).tobytes()
    spaces = [output.parameters["space"].string_param for output in both.outputs]
    model = tiny_server.stub().GetModel(contract.GetModelRequest()).model
    assert spaces == [
        next(o.space for o in model.outputs if o.name == output.name) for output in both.outputs
    ]
    build = calls.ModelMetadata(name="tiny").properties["build"]
    assert both.outputs[1].parameters["build"].string_param == build
    pinned = {"space": pb.InferParameter(string_param=spaces[1])}
    calls.ModelInfer(oip.of_bytes("tiny", FILES[:1], parameters=pinned))


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"parameters": {"space": "s1-none"}}, "FAILED_PRECONDITION", "parameters.space: "),
        ({"parameters": {"dimensions": 31}}, "INVALID_ARGUMENT", "parameters.dimensions: "),
        ({"parameters": {"colour": "red"}}, "INVALID_ARGUMENT", "parameters.colour: "),
        ({"parameters": {"sequence_id": 7}}, "INVALID_ARGUMENT", "parameters.sequence_id: "),
        ({"outputs": ["embedding", "logits"]}, "INVALID_ARGUMENT", "outputs[1].name: "),
        ({"outputs": ["embedding"] * 9}, "INVALID_ARGUMENT", "outputs: 9 outputs are over"),
        ({"tensor": "IMAGE"}, "INVALID_ARGUMENT", "inputs: "),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_the_requests_own_names(
    calls: oip.Caller, fields: dict[str, Any], code: str, words: str
) -> None:
    parameters = {
        key: pb.InferParameter(**{"string_param" if isinstance(value, str) else "int64_param": value})
        for key, value in fields.pop("parameters", {}).items()
    }
    request = oip.of_bytes("tiny", FILES[:1], parameters=parameters, **fields)
    assert _refused(calls, request, code).startswith(words)


@pytest.mark.parametrize("bad", [b"", b"no image", FILES[1][:500]])
def test_one_bad_image_fails_the_batch_and_is_named(calls: oip.Caller, bad: bytes) -> None:
    assert _refused(calls, oip.of_bytes("tiny", [*FILES[:3], bad, FILES[4]])).startswith("inputs[0][3]")


def test_a_vector_that_is_no_number_is_the_servers_own_error(calls: oip.Caller) -> None:
    black = np.zeros((1, 8, 8, 3), np.uint8)
    request = oip.of_pixels("tiny_pixels", black)
    request.outputs.add(name="broken")
    assert "NaN" in _refused(calls, request, "INTERNAL")


def test_bytes_that_are_no_message_are_the_callers_error(tiny_server: Server) -> None:
    with grpc.insecure_channel(tiny_server.target) as channel:
        for method in ("ModelInfer", "ModelReady"):
            ask = channel.unary_unary(f"/{oip.NAME}/{method}")
            _error("INVALID_ARGUMENT", lambda ask=ask: ask(b"\xff\xff\xff", timeout=5))
        for method in ("RepositoryModelLoad", "TraceSetting", "SystemSharedMemoryStatus"):
            ask = channel.unary_unary(f"/{oip.NAME}/{method}")
            _error("UNIMPLEMENTED", lambda ask=ask: ask(b"", timeout=5))


def test_a_message_over_the_limit_is_refused_by_grpc_itself(calls: oip.Caller) -> None:
    _refused(calls, oip.of_bytes("tiny", [bytes(65 << 20)]), "RESOURCE_EXHAUSTED")
    _refused(calls, oip.of_bytes("tiny", [bytes(40 << 20)]))


def test_a_stream_answers_in_order_and_an_error_is_its_messages_own(calls: oip.Caller) -> None:
    def requests() -> Iterator[pb.ModelInferRequest]:
        for i in range(20):
            data = [FILES[i % 5]] if i % 3 else FILES
            request = oip.of_bytes("tiny", [b"bad"] if i == 7 else data, id=str(i))
            if i % 2:
                request.parameters["triton_enable_empty_final_response"].bool_param = True
            yield request

    got = list(calls.ModelStreamInfer(requests()))
    assert [answer.infer_response.id for answer in got] == [str(i) for i in range(20)]
    assert [i for i, answer in enumerate(got) if answer.error_message] == [7]
    assert got[7].error_message.startswith("inputs[0][0]")
    assert not got[7].infer_response.outputs
    for i, answer in enumerate(got):
        marked = "triton_final_response" in answer.infer_response.parameters
        assert marked is bool(i % 2)
    [expected] = calls.vectors(oip.of_bytes("tiny", [FILES[3]]))
    assert np.abs(oip.vectors(got[8].infer_response)[0] - expected).max() < 1e-6


def test_a_stream_is_never_refused_for_lack_of_room(slow: Server) -> None:
    """Its own messages fill the queue many times over: the server reads no further instead."""
    with oip.caller(slow.target) as calls:
        requests = (oip.of_bytes("tiny", FILES[:4], id=str(i)) for i in range(3))
        got = list(calls.ModelStreamInfer(requests))
    assert [answer.error_message for answer in got] == [""] * 3
    assert [answer.infer_response.id for answer in got] == ["0", "1", "2"]


def test_a_full_queue_is_unavailable_and_says_when_to_come_back(slow: Server) -> None:
    with oip.caller(slow.target, ("grpc.enable_retries", 0)) as calls, ThreadPoolExecutor(1) as pool:
        first = pool.submit(calls.vectors, oip.of_bytes("tiny", FILES[:4]))
        deadline = time.monotonic() + 10
        while not slow.metric("pixvec_inflight_items"):
            assert time.monotonic() < deadline
        error = _error("UNAVAILABLE", lambda: calls.ModelInfer(oip.of_bytes("tiny", FILES[:1])))
        natively = _error(
            "RESOURCE_EXHAUSTED",
            lambda: slow.stub().Embed(contract.EmbedRequest(input=contract.Input(image=FILES[0]))),
        )
        assert first.result().shape == (4, 32)
    for caught, code in ((error, 14), (natively, 8)):
        trailers = dict(caught.trailing_metadata())
        assert 50 <= int(trailers["grpc-retry-pushback-ms"]) <= 10_000
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        assert status.code == code
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "OVERLOADED"
        detail = contract.Error.FromString(trailers["pixvec-error-bin"])
        assert (detail.code, contract.Reason.Name(detail.reason)) == (code, "REASON_OVERLOADED")


def test_the_parameter_timeout_and_the_calls_deadline(slow: Server) -> None:
    request = oip.of_bytes("tiny", FILES[:1])
    request.parameters["timeout"].int64_param = 200_000
    with oip.caller(slow.target, ("grpc.enable_retries", 0)) as calls:
        started = time.monotonic()
        assert "the parameter timeout" in _refused(calls, request, "UNAVAILABLE")
        assert 0.2 <= time.monotonic() - started < HELD_MS / 1000
        [streamed] = calls.ModelStreamInfer(iter([request]))
        assert "the parameter timeout" in streamed.error_message
        _error("DEADLINE_EXCEEDED", lambda: calls.ModelInfer(oip.of_bytes("tiny", FILES[:1]), timeout=0.2))
        request.parameters["timeout"].int64_param = 10_000_000
        _error("DEADLINE_EXCEEDED", lambda: calls.ModelInfer(request, timeout=0.2))
        assert calls.vectors(request).shape == (1, 32)


def _stats(calls: oip.Caller, name: str = "tiny") -> pb.ModelStatistics:
    found: pb.ModelStatistics
    [found] = calls.ModelStatistics(name=name).model_stats
    return found


def _add_up(stats: pb.ModelStatistics) -> None:
    assert sum(b.compute_infer.count for b in stats.batch_stats) == stats.execution_count
    assert sum(b.batch_size * b.compute_infer.count for b in stats.batch_stats) == stats.inference_count
    stages = stats.inference_stats
    for stage in (stages.queue, stages.compute_input, stages.compute_infer, stages.compute_output):
        assert stage.count == stages.success.count
        assert stage.ns <= stages.success.ns


def test_statistics_are_what_was_sent(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as server, oip.caller(server.target) as calls:
        before = [_stats(calls), _stats(calls, "tiny_pixels")]
        assert {s.inference_count + s.execution_count + s.last_inference for s in before} == {0}
        for _ in range(3):
            calls.ModelInfer(oip.of_bytes("tiny", FILES))
        calls.ModelInfer(oip.of_bytes("tiny-alias", FILES[:1]))
        for _ in range(2):
            calls.ModelInfer(oip.of_pixels("tiny_pixels", np.full((3, 9, 9, 3), 7, np.uint8)))
        stub = server.stub()
        for data in FILES[:2]:
            stub.Embed(contract.EmbedRequest(input=contract.Input(image=data)))
        mixed = [contract.Input(image=data) for data in (*FILES[:2], b"bad")]
        stub.EmbedBatch(contract.EmbedBatchRequest(inputs=mixed))
        stream = [oip.of_bytes("tiny", FILES[:2]), oip.of_bytes("tiny", [b"bad"])]
        list(calls.ModelStreamInfer(iter(stream)))
        _refused(calls, oip.of_bytes("tiny", [FILES[0], b"bad", FILES[1]]))
        _refused(calls, oip.of_bytes("tiny", FILES[:1], tensor="IMAGE"))
        _refused(calls, oip.of_bytes("tiny", FILES[:1], outputs=["logits"]))
        _refused(calls, oip.of_bytes("nobody", FILES[:1]), "NOT_FOUND")
        images, pixels = calls.ModelStatistics().model_stats
        # 3 batches of 5 and one image by the protocol, 2 images and a batch of 2 + 1 bad by the contract, a
        # message of 2 in a stream; the failed batch's 2 good images were computed as well.
        assert (images.name, images.version, images.inference_count) == ("tiny", "1", 15 + 1 + 2 + 2 + 2 + 2)
        assert images.inference_stats.success.count == 3 + 1 + 2 + 1 + 1
        assert images.inference_stats.fail.count == 1 + 1 + 1 + 1
        assert images.inference_stats.fail.ns > 0
        assert (pixels.name, pixels.inference_count) == ("tiny_pixels", 6)
        assert (pixels.inference_stats.success.count, pixels.inference_stats.fail.count) == (2, 0)
        for stats in (images, pixels):
            _add_up(stats)
            assert abs(stats.last_inference - time.time() * 1000) < 60_000
        assert images == _stats(calls)
        assert server.metric("pixvec_requests_total", method=METHOD, code="OK") == 6
        assert server.metric("pixvec_requests_total", method=METHOD, code="INVALID_ARGUMENT") == 3
        assert server.metric("pixvec_requests_total", method=METHOD, code="NOT_FOUND") == 1
        with ThreadPoolExecutor(16) as pool:
            answered = list(pool.map(lambda _: calls.vectors(oip.of_bytes("tiny", FILES[:1])), range(200)))
        assert len(answered) == 200
        after = _stats(calls)
        _add_up(after)
        assert after.inference_count == images.inference_count + 200
        assert after.inference_stats.success.count == images.inference_stats.success.count + 200
        assert after.execution_count - images.execution_count < 200


def test_a_token_guards_every_method(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("sesame\n")
    flags = ("--token-file", str(tmp_path / "tokens"))
    with (
        serve("--model", f"tiny={tiny_bundle}", *flags) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        for method in oip.METHODS:
            ask = channel.stream_stream(f"/{oip.NAME}/{method}")
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                _error(
                    "UNAUTHENTICATED",
                    lambda ask=ask, m=metadata: list(ask(iter([b""]), timeout=5, metadata=m)),
                )
        ask = channel.unary_unary(f"/{oip.NAME}/ServerReady")
        assert ask(b"", timeout=5, metadata=(("authorization", "Bearer sesame"),)) == b"\x08\x01"


def _health(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)


def _grpcurl(server: Server, *words: str, data: str = "") -> str:
    given = ("-d", data) if data else ()
    command = [GRPCURL, "-plaintext", *given, server.target, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_health_and_reflection_know_the_service(tiny_server: Server) -> None:
    with grpc.insecure_channel(tiny_server.target) as channel:
        assert _health(channel, oip.NAME) == health_pb2.HealthCheckResponse.SERVING
    assert oip.NAME in _grpcurl(tiny_server, "list").split()
    listed = _grpcurl(tiny_server, "list", oip.NAME).split()
    assert sorted(listed) == sorted(f"{oip.NAME}.{method}" for method in oip.METHODS)
    described = _grpcurl(tiny_server, "describe", "inference.ModelInferRequest")
    assert "pixvec" not in described
    about = json.loads(_grpcurl(tiny_server, f"{oip.NAME}/ModelMetadata", data='{"name": "tiny_pixels"}'))
    assert about["name"] == "tiny_pixels"
    assert about["inputs"][0]["shape"] == ["-1", "8", "8", "3"]


def test_the_service_can_be_turned_off(tiny_bundle: Path) -> None:
    env = {"PIXVEC_SERVER__OPEN_INFERENCE": "false"}
    with serve("--model", f"tiny={tiny_bundle}", env=env) as server:
        with grpc.insecure_channel(server.target) as channel:
            for method in oip.METHODS:
                ask = channel.unary_unary(f"/{oip.NAME}/{method}")
                _error("UNIMPLEMENTED", lambda ask=ask: ask(b"", timeout=5))
            _error("NOT_FOUND", lambda: _health(channel, oip.NAME))
            assert _health(channel, "") == health_pb2.HealthCheckResponse.SERVING
        listed = _grpcurl(server, "list").split()
        assert "pixvec.v1.EmbeddingService" in listed
        assert oip.NAME not in listed


def test_an_open_stream_is_answered_and_sent_away_when_the_server_stops(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as ending, oip.caller(ending.target) as calls:
        go_on = threading.Event()

        def requests() -> Iterator[pb.ModelInferRequest]:
            for i in range(5):
                yield oip.of_bytes("tiny", FILES, id=str(i))
            go_on.wait(20)

        answers = calls.ModelStreamInfer(requests())
        assert next(answers).infer_response.id == "0"
        ending.process.send_signal(signal.SIGTERM)
        got: list[str] = []
        with pytest.raises(grpc.RpcError) as caught:
            got.extend(answer.infer_response.id for answer in answers)
        go_on.set()
        assert caught.value.code().name == "UNAVAILABLE"
        detail = contract.Error.FromString(dict(caught.value.trailing_metadata())["pixvec-error-bin"])
        assert contract.Reason.Name(detail.reason) == "REASON_DRAINING"
        assert got == [str(i + 1) for i in range(len(got))]
        assert ending.process.wait(10) == 0


def test_ready_is_false_in_the_lame_duck_while_calls_are_answered(tiny_bundle: Path) -> None:
    env = {"PIXVEC_SERVER__LAME_DUCK_S": "2"}
    with (
        serve("--model", f"tiny={tiny_bundle}", env=env) as ending,
        oip.caller(ending.target) as calls,
    ):
        assert calls.ServerReady().ready
        ending.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while calls.ServerReady().ready:
            assert time.monotonic() < deadline
        assert calls.ServerLive().live
        assert calls.vectors(oip.of_bytes("tiny", FILES[:1])).shape == (1, 32)
        assert ending.process.wait(10) == 0
