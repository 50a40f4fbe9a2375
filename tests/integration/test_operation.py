"""What operators rely on: health, reflection, metrics, logs, TLS, tokens, ports, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import oip, photos, tiny
from support.processor import needs_bf16
from support.servers import ROOT, environment, serve
from support.waiting import until

import pixvec
from pixvec.v1 import embedding_pb2 as pb
from pixvec_server import bundle

if TYPE_CHECKING:
    from support.servers import Server

PNG = photos.data("chelsea.png")
GRPCURL = Path(sys.executable).with_name("grpcurl")
SERVICE = "pixvec.v1.EmbeddingService"
METHODS = {
    SERVICE: [method.name for method in pb.DESCRIPTOR.services_by_name["EmbeddingService"].methods],
    oip.NAME: list(oip.METHODS),
    "grpc.health.v1.Health": [],
}


def _check(channel: grpc.Channel, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_grpcurl_lists_the_services_and_calls_list_models(server: Server) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [GRPCURL, "-plaintext", server.target, *words], capture_output=True, text=True, check=True
        )
        return done.stdout

    assert SERVICE in run("list").split()
    models = json.loads(run(f"{SERVICE}/ListModels"))
    assert models["models"][0]["name"] == "efficientnet_lite0"
    assert models["models"][0]["state"] == "STATE_READY"
    assert models["limits"]["inputs"] == 256


def test_get_model_tells_what_runs_and_why(server: Server) -> None:
    answer = server.stub().GetModel(pb.GetModelRequest(model="tf_efficientnet_lite0"))
    model = answer.model
    assert (model.name, model.device, model.precision) == ("efficientnet_lite0", "cpu", "fp32")
    assert model.backend in {"openvino", "onnx", "torch"}
    assert model.selection.startswith("auto: ")
    assert model.parity > 0.9999
    assert list(model.input_size) == [224, 224]
    outputs = {output.name: output for output in model.outputs}
    assert list(outputs["embedding"].dimensions) == [1280]
    assert list(outputs["features"].shape) == [1280, 7, 7]
    assert answer.limits.image_pixels == 50_000_000


def test_health_answers_for_the_server_and_its_service(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        assert _check(channel, "") == _check(channel, SERVICE) == "SERVING"
        with pytest.raises(grpc.RpcError) as caught:
            _check(channel, "nobody")
    assert caught.value.code().name == "NOT_FOUND"


def test_health_is_not_serving_until_the_models_are_warm(tmp_path: Path) -> None:
    """The first start makes the bundle, which takes seconds: long enough to ask."""
    port = _free_port()
    env = {"PIXVEC_CACHE": str(tmp_path)}
    with serve("--port", str(port), env=env, wait=False) as starting:
        until(lambda: _listens(port), 30)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert _check(channel, "") == _check(channel, SERVICE) == "NOT_SERVING"
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/Embed")(
                    pb.EmbedRequest(input=pb.Input(image=PNG)).SerializeToString(), timeout=5
                )
            assert caught.value.code().name == "UNAVAILABLE"
            error = pb.Error.FromString(dict(caught.value.trailing_metadata())["pixvec-error-bin"])
            assert pb.Reason.Name(error.reason) == "REASON_MODEL_NOT_READY"
        assert starting.terminate() == 0


def test_promtool_finds_the_metrics_clean(server: Server) -> None:
    server.stub().Embed(pb.EmbedRequest(input=pb.Input(image=PNG)))
    promtool = shutil.which("promtool", path=f"{os.environ['PATH']}:{ROOT}/.tools/prometheus/usr/bin")
    if promtool is None:
        pytest.skip("promtool is not installed, and there was no apt-get to get it with")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=server.metrics(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_metrics_of_the_design_are_there_and_count(server: Server) -> None:
    stub = server.stub()

    def read(name: str, **labels: str) -> float:
        return server.metric(f"pixvec_{name}", **labels)

    ok = {"code": "OK", "method": f"/{SERVICE}/Embed"}
    before = read("requests_total", **ok), read("items_total", outcome="ok"), read("batch_size_sum")
    stub.Embed(pb.EmbedRequest(input=pb.Input(image=PNG, regions=[pb.Region(whole=True)] * 3)))
    after = read("requests_total", **ok), read("items_total", outcome="ok"), read("batch_size_sum")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 3, 3]
    bad = read("items_total", outcome="undecodable")
    with pytest.raises(grpc.RpcError):
        stub.Embed(pb.EmbedRequest(input=pb.Input(image=b"")))
    assert read("items_total", outcome="undecodable") == bad + 1
    for name in ("request", "decode", "queue", "compute"):
        assert read(f"{name}_seconds_count", model="efficientnet_lite0") > 0
    assert read("model_info", backend="openvino") == 1
    assert read("queue_items") == read("inflight_items") == 0


def test_a_failed_call_is_logged_with_its_request_id(tiny_server: Server) -> None:
    with pytest.raises(grpc.RpcError):
        tiny_server.stub().Embed(
            pb.EmbedRequest(), metadata=(("x-request-id", "find-me"), ("pixvec-tenant", "acme"))
        )
    # A thread writes the log: the line may come after the answer.
    until(lambda: any(line.get("request_id") == "find-me" for line in tiny_server.lines()))
    [line] = [line for line in tiny_server.lines() if line.get("request_id") == "find-me"]
    assert (line["code"], line["tenant"], line["level"]) == ("INVALID_ARGUMENT", "acme", "warning")


def test_tls_and_token(tiny_bundle: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    pair = authority.issue_cert("localhost", "127.0.0.1")
    pair.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    (tmp_path / "tokens").write_text("sesame\n")
    files = ("--tls-cert", "cert.pem", "--tls-key", "key.pem", "--token-file", "tokens")
    flags = [str(tmp_path / word) if i % 2 else word for i, word in enumerate(files)]
    with serve("--model", f"tiny={tiny_bundle}", *flags) as secure:
        ca = tmp_path / "ca.pem"
        with pixvec.Client(secure.target, tls=ca, token="sesame") as client:
            assert client.embed(PNG).shape == (32,)
        for token in ("wrong", None):
            with (
                pixvec.Client(secure.target, tls=ca, token=token) as client,
                pytest.raises(pixvec.AuthenticationError),
            ):
                client.embed(PNG)
        with pixvec.Client(secure.target, tls=ca) as client:
            assert client.health()
        _every_method_needs_the_token(secure.target, ca.read_bytes())


def _every_method_needs_the_token(target: str, authority: bytes) -> None:
    """Ask reflection for the list, so that a new method cannot be forgotten."""
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    credentials = grpc.ssl_channel_credentials(authority)
    with grpc.secure_channel(target, credentials) as channel:
        token = grpc.metadata_call_credentials(
            lambda _context, done: done((("authorization", "Bearer sesame"),), None)
        )
        both = grpc.composite_channel_credentials(credentials, token)
        with grpc.secure_channel(target, both) as trusted:
            names = ProtoReflectionDescriptorDatabase(trusted).get_services()
        assert SERVICE in names
        refused = 0
        for name in names:
            for method in METHODS.get(name, ["ServerReflectionInfo"]):
                call = channel.stream_stream(f"/{name}/{method}")(iter([b""]), timeout=5)
                with pytest.raises(grpc.RpcError) as caught:
                    next(iter(call))
                assert caught.value.code().name == "UNAUTHENTICATED", f"{name}/{method}"
                refused += 1
        assert refused == 1 + sum(map(len, METHODS.values()))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "nope"), "no model is called 'nope'"),
        (("--device", "cuda"), "no backend runs fp32 on cuda:0"),
        pytest.param(("--backend", "onnx", "--precision", "bf16"), "take openvino", marks=needs_bf16),
        (("--precision", "int8"), "model.precision = 'int8': Input should be"),
        (("--tls-cert", "x.pem"), "come together"),
        (("--token-file", "/none"), "server.token_file = /none"),
        (("--config", "/none.toml"), "/none.toml: No such file"),
    ],
)
def test_a_server_that_cannot_start_says_why_and_exits_with_1(
    flags: tuple[str, ...], words: str, default_bundle: Any
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pixvec_server", "serve", "--port", "0", "--metrics-port", "0", *flags],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=25,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flags", [(), ("--backend", "onnx"), ("--backend", "openvino"), ("--frontends", "1")]
)
def test_bf16_on_a_processor_without_it_ends_the_start_and_names_the_alternatives(
    flags: tuple[str, ...], tiny_bundle: Path
) -> None:
    command = [sys.executable, "-m", "pixvec_server", "serve", "--port", "0", "--metrics-port", "0"]
    done = subprocess.run(
        [*command, "--model", f"tiny={tiny_bundle}", "--device", "cpu", "--precision", "bf16", *flags],
        capture_output=True,
        text=True,
        env=environment(PIXVEC_TEST_CPU="baseline", PIXVEC_SERVER__HOST="127.0.0.1"),
        timeout=25,
        check=False,
    )
    assert done.returncode == 1
    assert "precision bf16 cannot run here: the processor, " in done.stderr
    assert "use precision fp32, a processor with bf16, or device cuda" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_graph_that_no_engine_reads_ends_the_start_in_words(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "tiny")
    graph = folder / "image.onnx"
    data = graph.read_bytes().replace(b"MatMul", b"NoSuch")
    graph.write_bytes(data)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["image.onnx"] = bundle.record(graph).model_dump()
    (folder / "bundle.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "pixvec_server", "serve", "--model", f"tiny={folder}", "--port", "0"],
        capture_output=True,
        text=True,
        env=environment(PIXVEC_SERVER__METRICS_PORT="0"),
        timeout=25,
        check=False,
    )
    assert done.returncode == 1
    assert "model tiny could not be loaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("which", ["--port", "--metrics-port"])
def test_a_port_in_use_is_an_error(tiny_server: Server, tiny_bundle: Path, which: str) -> None:
    ports = {"--port": "0", "--metrics-port": "0"}
    ports[which] = str(tiny_server.port if which == "--port" else tiny_server.metrics_port)
    words = [word for pair in ports.items() for word in pair]
    env = environment(PIXVEC_SERVER__HOST="127.0.0.1", PIXVEC_SERVER__METRICS_HOST="127.0.0.1")
    done = subprocess.run(
        [sys.executable, "-m", "pixvec_server", "serve", "--model", f"tiny={tiny_bundle}", *words],
        capture_output=True,
        text=True,
        env=env,
        timeout=25,
        check=False,
    )
    assert done.returncode == 1
    assert f"127.0.0.1:{ports[which]}" in done.stderr


def test_sigterm_says_not_serving_first_and_keeps_serving(tiny_bundle: Path) -> None:
    env = {"PIXVEC_SERVER__LAME_DUCK_S": "1.5"}
    with serve("--model", f"tiny={tiny_bundle}", env=env) as ending:
        stub = ending.stub()
        with grpc.insecure_channel(ending.target) as channel:
            assert _check(channel, "") == "SERVING"
            ending.process.send_signal(signal.SIGTERM)
            until(lambda: _check(channel, "") == "NOT_SERVING")
            assert stub.Embed(pb.EmbedRequest(input=pb.Input(image=PNG))).embedded.embeddings
        assert ending.process.wait(10) == 0


def test_an_open_health_watch_does_not_hold_the_drain_up(tiny_bundle: Path) -> None:
    env = {"PIXVEC_SERVER__DRAIN_S": "20"}
    with (
        serve("--model", f"tiny={tiny_bundle}", env=env) as ending,
        grpc.insecure_channel(ending.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        started = time.monotonic()
        assert ending.terminate() == 0
        assert time.monotonic() - started < 10


def test_a_second_sigterm_ends_at_once(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}", env={"PIXVEC_SERVER__LAME_DUCK_S": "60"}) as ending:
        ending.process.send_signal(signal.SIGTERM)
        until(lambda: any("lame duck" in line["event"] for line in ending.lines()))
        started = time.monotonic()
        assert ending.terminate() == 130
        assert time.monotonic() - started < 5


def test_an_open_stream_is_told_to_go_elsewhere(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as ending:
        go_on = threading.Event()

        def requests() -> Any:
            yield pb.EmbedStreamRequest(id="a", inputs=[pb.Input(image=PNG)])
            go_on.wait(20)

        call = ending.stub().EmbedStream(requests())
        assert next(call).id == "a"
        ending.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        go_on.set()
        assert caught.value.code().name == "UNAVAILABLE"
        error = pb.Error.FromString(dict(caught.value.trailing_metadata())["pixvec-error-bin"])
        assert pb.Reason.Name(error.reason) == "REASON_DRAINING"
        assert ending.process.wait(10) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_log_that_nobody_reads_fails_no_call_and_no_drain(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "pixvec_server", "serve", "--model", f"tiny={tiny_bundle}"]
    env = environment(PIXVEC_SERVER__LAME_DUCK_S="0", PIXVEC_SERVER__HOST="127.0.0.1")
    process = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0", "--log-format", "json"],
        stderr=subprocess.PIPE,
        env=env,
    )
    try:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr if line.startswith(b"{"))
        port = next(line["port"] for line in lines if line["event"] == "serving")
        process.stderr.close()
        with pixvec.Client(f"127.0.0.1:{port}") as client:
            with pytest.raises(pixvec.UndecodableError):
                client.embed(b"")
            assert client.embed(PNG).shape == (32,)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
