"""A server that is told to stop: what becomes of calls, streams and connections of each kind."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support import oip, photos
from support.servers import ROOT, serve
from support.waiting import until

import pixvec
from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.servers import Server

IMAGE = pb.Input(image=photos.jpeg("rocket.jpg"))
REQUEST = pb.EmbedRequest(input=IMAGE)
MESSAGE = pb.EmbedStreamRequest(id="a", inputs=[IMAGE])
SERVICE = "/pixvec.v1.EmbeddingService"
EMBED = f"{SERVICE}/Embed"
PROCESSES = pytest.mark.parametrize("frontends", [0, 2])
NO_RETRIES = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
GRACE_S = 25  # of every server here: a stop that waits for it fails its test


@contextmanager
def _gated(bundle: Path, gate: Path, frontends: int, *, wait: bool = True, **env: str) -> Iterator[Server]:
    """Serve with a device that answers only while the file `gate` is absent."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "GATE": str(gate), "PIXVEC_SERVER__DRAIN_S": str(GRACE_S), **env}
    flags = ("--model", f"tiny={bundle}", "--backend", "support.gated:Gated", "--frontends", str(frontends))
    with serve(*flags, env=env, wait=wait) as running:
        yield running


def _held(gate: Path) -> bool:
    return gate.with_suffix(".held").exists()


def _says(server: Server, event: str) -> bool:
    # As text: lines of several processes may meet in one.
    return event in server.log.read_text()


class Idle:
    """Calls of every kind that stay open until the server ends them; `sending` holds their requests back."""

    def __init__(self, target: str) -> None:
        self._stack = ExitStack()
        self.sending = threading.Event()
        self.channels = [grpc.insecure_channel(target, options=NO_RETRIES) for _ in range(7)]
        silent, answered, oip_silent, oip_answered, watch, reflection, headers = self.channels
        stub = pb_grpc.EmbeddingServiceStub(answered)  # type: ignore[no-untyped-call] # generated
        self.calls = {
            "EmbedStream, silent": silent.stream_stream("/pixvec.v1.EmbeddingService/EmbedStream")(
                self._wait()
            ),
            "EmbedStream, answered": stub.EmbedStream(
                self._one(pb.EmbedStreamRequest(id="a", inputs=[IMAGE]))
            ),
            "ModelStreamInfer, silent": oip.Caller(oip_silent).ModelStreamInfer(self._wait()),
            "ModelStreamInfer, answered": oip.Caller(oip_answered).ModelStreamInfer(
                self._one(oip.of_bytes("tiny", [IMAGE.image], id="a"))
            ),
            "Watch": health_pb2_grpc.HealthStub(watch).Watch(health_pb2.HealthCheckRequest()),
            "reflection": reflection_pb2_grpc.ServerReflectionStub(reflection).ServerReflectionInfo(
                self._one(reflection_pb2.ServerReflectionRequest(list_services=""))
            ),
            "Embed, headers only": headers.stream_unary(f"{SERVICE}/Embed").future(self._wait()),
        }
        for name, call in self.calls.items():
            if "silent" not in name and "only" not in name:
                next(call)

    def codes(self) -> dict[str, str]:
        """Read every call to its end."""
        return {name: _end_of(call).name for name, call in self.calls.items()}

    def close(self) -> None:
        self.sending.set()
        for channel in self.channels:
            channel.close()

    def _wait(self) -> Iterator[Any]:
        self.sending.wait(60)
        yield from ()

    def _one(self, message: Any) -> Iterator[Any]:
        yield message
        self.sending.wait(60)


@PROCESSES
def test_open_streams_and_idle_calls_end_unavailable_and_hold_nothing_up(
    tiny_bundle: Path, frontends: int
) -> None:
    env = {"PIXVEC_SERVER__DRAIN_S": str(GRACE_S)}
    with serve("--model", f"tiny={tiny_bundle}", "--frontends", str(frontends), env=env) as ending:
        idle = Idle(ending.target)
        try:
            with socket.create_connection(("127.0.0.1", ending.port)):  # says nothing at all
                started = time.monotonic()
                assert ending.terminate() == 0
                assert time.monotonic() - started < 15
            assert idle.codes() == dict.fromkeys(idle.calls, "UNAVAILABLE")
        finally:
            idle.close()


@PROCESSES
def test_accepted_calls_are_answered_and_later_ones_refused(
    tiny_bundle: Path, tmp_path: Path, frontends: int
) -> None:
    gate = tmp_path / "gate"
    with _gated(tiny_bundle, gate, frontends) as ending:
        stub = pb_grpc.EmbeddingServiceStub(ending.channel())  # type: ignore[no-untyped-call] # generated
        other = grpc.insecure_channel(ending.target, options=NO_RETRIES)
        grpc.channel_ready_future(other).result(10)
        gate.touch()
        accepted = stub.Embed.future(REQUEST, timeout=50)
        stream = stub.EmbedStream(
            iter([pb.EmbedStreamRequest(id=str(i), inputs=[IMAGE]) for i in range(3)]), timeout=50
        )
        until(lambda: ending.metric("pixvec_inflight_items") == 4)
        ending.process.send_signal(signal.SIGTERM)
        until(lambda: _says(ending, "draining"))
        until(lambda: not _connects(ending.port))
        late = pb_grpc.EmbeddingServiceStub(other)  # type: ignore[no-untyped-call] # generated
        for caller in (late, stub):
            _await_refusal(caller)
        assert not accepted.done()
        gate.unlink()
        assert len(accepted.result().embedded.embeddings) == 1
        answers: list[pb.EmbedStreamResponse] = []
        with pytest.raises(grpc.RpcError) as caught:
            answers.extend(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert {answer.id for answer in answers} == {"0", "1", "2"}
        assert not any(answer.results[0].HasField("error") for answer in answers)
        assert ending.process.wait(10) == 0
        other.close()


@PROCESSES
def test_a_call_that_outlasts_the_grace_period_is_unavailable(
    tiny_bundle: Path, tmp_path: Path, frontends: int
) -> None:
    gate = tmp_path / "gate"
    with _gated(tiny_bundle, gate, frontends, PIXVEC_SERVER__DRAIN_S="0.3") as ending:
        gate.touch()
        call = pb_grpc.EmbeddingServiceStub(  # type: ignore[no-untyped-call] # generated
            ending.channel()
        ).Embed.future(REQUEST, timeout=50)
        until(lambda: _held(gate))
        ending.process.send_signal(signal.SIGTERM)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        gate.unlink()
        assert ending.process.wait(15) == 0


@PROCESSES
def test_a_second_signal_ends_a_drain_at_once(tiny_bundle: Path, tmp_path: Path, frontends: int) -> None:
    gate = tmp_path / "gate"
    with _gated(tiny_bundle, gate, frontends) as ending:
        gate.touch()
        call = pb_grpc.EmbeddingServiceStub(  # type: ignore[no-untyped-call] # generated
            ending.channel()
        ).Embed.future(REQUEST, timeout=50)
        until(lambda: _held(gate))
        ending.process.send_signal(signal.SIGTERM)
        until(lambda: _says(ending, "draining"))
        assert ending.terminate(5) == 130
        assert call.code() is grpc.StatusCode.UNAVAILABLE


@PROCESSES
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_model_loads_ends_the_server(
    tiny_bundle: Path, tmp_path: Path, frontends: int, number: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with _gated(tiny_bundle, gate, frontends, wait=False) as starting:
        until(lambda: _held(gate))
        starting.process.send_signal(number)
        assert starting.process.wait(10) == 0
        assert "Traceback" not in starting.log.read_text()


def test_a_client_that_vanished_during_its_call_holds_nothing_up(tiny_bundle: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with _gated(tiny_bundle, gate, 0) as ending:
        gate.touch()
        calls = [_started(ending, cancel) for cancel in (True, False)]
        until(lambda: _held(gate))
        for leave in calls:
            leave()
        gate.unlink()
        until(lambda: ending.metric("pixvec_inflight_items") == 0)
        assert ending.terminate(10) == 0


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.02])
def test_calls_that_no_handler_has_seen_end_ok_or_unavailable(tiny_bundle: Path, pause_s: float) -> None:
    """The process stands still while calls arrive, so that they and the signal meet it together."""
    with serve("--model", f"tiny={tiny_bundle}") as ending:
        channels = [grpc.insecure_channel(ending.target, options=NO_RETRIES) for _ in range(8)]
        stubs = [pb_grpc.EmbeddingServiceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
        for stub in stubs:
            stub.Embed(REQUEST, timeout=20)
        ending.process.send_signal(signal.SIGSTOP)
        calls = [stub.Embed.future(REQUEST, timeout=20) for _ in range(16) for stub in stubs]
        time.sleep(0.2)  # for the system to deliver them
        ending.process.send_signal(signal.SIGCONT)
        time.sleep(pause_s)
        ending.process.send_signal(signal.SIGTERM)
        codes = Counter(call.code().name for call in calls)
        assert codes.keys() <= {"OK", "UNAVAILABLE"}, codes
        assert ending.process.wait(20) == 0
        for channel in channels:
            channel.close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the system has no prlimit")
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_server_without_a_free_descriptor_stops_in_order(tiny_bundle: Path, spare: int) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as server, ExitStack() as stack:
        server.stub().Embed(REQUEST, timeout=20)
        process = psutil.Process(server.process.pid)
        limit = process.num_fds() + spare + 4
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(12 if spare == 0 else 4):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
        until(lambda: process.num_fds() >= limit - spare)
        assert server.terminate() == 0
        assert not _says(server, "uncaught exception")
        assert not _connects(server.port)


def test_a_client_of_two_servers_leaves_one_that_stops_without_a_failure(tiny_bundle: Path) -> None:
    """Health says so before the connections end; the answers tell which server gave them."""
    flags, lame_duck = ("--model", f"tiny={tiny_bundle}"), {"PIXVEC_SERVER__LAME_DUCK_S": "1"}
    with (
        serve(*flags, env=lame_duck) as stopping,
        serve(*flags) as other,
        pixvec.Client([stopping.target, other.target]) as client,
    ):
        for _ in range(20):
            client.embed(IMAGE.image)
        assert stopping.metric("pixvec_requests_total", method=EMBED, code="OK") > 0
        stopping.process.send_signal(signal.SIGTERM)
        calls = 0
        while stopping.process.poll() is None:
            client.embed(IMAGE.image)
            calls += 1
        assert calls > 0
        assert stopping.process.wait(30) == 0


def _started(server: Server, cancel: bool) -> Any:
    """Start a call; return what leaves it, by itself or with its connection."""
    channel = grpc.insecure_channel(server.target, options=NO_RETRIES)
    call = pb_grpc.EmbeddingServiceStub(channel).Embed.future(REQUEST)  # type: ignore[no-untyped-call]
    return call.cancel if cancel else channel.close


def _await_refusal(stub: Any) -> None:
    """Return once the server answers UNAVAILABLE; a call that it accepts runs out of time at the gate."""
    until(lambda: stub.Embed.future(REQUEST, timeout=0.2).code() is grpc.StatusCode.UNAVAILABLE)


def _end_of(call: Any) -> grpc.StatusCode:
    try:
        for _ in call if hasattr(call, "__next__") else (call.result(),):
            pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
