"""Front ends before one device process: the same answers, one queue, and a life after each one's death."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import oip, photos, tiny
from support.servers import ROOT, Server, environment, serve
from support.waiting import until

from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as pb_grpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
FILES = [photos.data(name) for name in ("chelsea.png", "rocket.jpg", "coffee.png")]
INPUTS = [pb.Input(image=data) for data in FILES]
REQUEST = pb.EmbedRequest(input=pb.Input(image=photos.jpeg("rocket.jpg")))
GATED = ("--backend", "support.gated:Gated")
TWO = ("--frontends", "2")


@pytest.fixture(scope="module")
def fronts(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two front ends before two tiny models, of which one comes with its first use."""
    other = tiny.write(tmp_path_factory.mktemp("other") / "late", "late", seed=8)
    models = ("--model", f"tiny={tiny_bundle}", "--model", f"late={other}?load=first_use&idle_unload_s=0.5")
    with serve(*TWO, *models) as running:
        yield running


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that holds the device of `gated` up for as long as it exists."""
    return tmp_path_factory.mktemp("gate") / "closed"


@pytest.fixture(scope="module")
def gated(tiny_bundle: Path, gate: Path) -> Iterator[Server]:
    """Two front ends before a device that waits when it is told to. Tests leave it whole and idle."""
    env = {"PYTHONPATH": str(ROOT / "tests"), "GATE": str(gate)}
    with serve(*TWO, "--model", f"tiny={tiny_bundle}", *GATED, env=env) as running:
        yield running


def _children(server: Server) -> dict[str, psutil.Process]:
    found = {}
    for child in psutil.Process(server.process.pid).children():
        words = child.cmdline()
        if "pixvec_server.frontends" in words:
            found[words[words.index("pixvec_server.frontends") + 1]] = child
    return found


def _arenas(process: psutil.Process) -> int:
    """Count the sets of slots that a process holds."""
    return Path(f"/proc/{process.pid}/maps").read_text().count("memfd:pixvec-frontend")


def _connections(server: Server) -> dict[str, int]:
    """Count each front end's callers."""
    return {
        name: sum(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == server.port
            for one in child.net_connections("tcp")
        )
        for name, child in _children(server).items()
        if name != "device"
    }


class Doors:
    """A channel to each front end. The kernel spreads connections: some are opened in vain."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._opened: list[grpc.Channel] = []

    def __enter__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        before = _connections(self._server)
        while len(found) < len(before):
            assert len(self._opened) < 64
            channel = grpc.insecure_channel(
                self._server.target, options=[("grpc.use_local_subchannel_pool", 1)]
            )
            self._opened.append(channel)
            grpc.channel_ready_future(channel).result(10)
            after = _connections(self._server)
            [name] = [name for name in after if after[name] > before[name]]
            found.setdefault(name, pb_grpc.EmbeddingServiceStub(channel))  # type: ignore[no-untyped-call]
            before = after
        return found

    def __exit__(self, *_: object) -> None:
        for channel in self._opened:
            channel.close()


def _plain(message: Any) -> bytes:
    """An answer's bytes without what differs from call to call."""
    if hasattr(message, "report"):
        message.report.timing.Clear()
    return bytes(message.SerializeToString(deterministic=True))


def _health(target: str) -> str:
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=2).status
        except grpc.RpcError as exc:
            return str(exc.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def test_answers_are_those_of_one_process_bit_for_bit(fronts: Server, tiny_server: Server) -> None:
    one, many = tiny_server.stub(), fronts.stub()
    vectors = pb.Target(model="tiny"), pb.Target(model="tiny", dimensions=8, encoding="ENCODING_INT8")
    maps = pb.Target(model="tiny", output="features", encoding="ENCODING_FLOAT16")
    black = pb.Input(pixels=pb.Tensor(encoding="ENCODING_UINT8", shape=[8, 8, 3], data=bytes(192)))
    broken = pb.Target(model="tiny", output="broken")
    regions = [pb.Region(whole=True), pb.Region(left=9, right=9), pb.Region(right=50, bottom=50)]
    parts = pb.Input(image=FILES[0], regions=regions)
    poisoned = [*INPUTS, pb.Input(image=b"poison"), black, parts, pb.Input(text="no text tower")]
    batch = pb.EmbedBatchRequest(inputs=poisoned, targets=[*vectors, maps, broken])
    operands = [pb.Operand(input=item) for item in INPUTS]
    for method, request in (
        ("Embed", pb.EmbedRequest(input=INPUTS[1], targets=[*vectors, maps])),
        ("EmbedBatch", batch),
        ("Similarity", pb.SimilarityRequest(queries=operands[:1], candidates=operands)),
    ):
        assert _plain(getattr(many, method)(request)) == _plain(getattr(one, method)(request)), method
    messages = [pb.EmbedStreamRequest(id=str(i), inputs=poisoned[i:]) for i in range(len(poisoned))]
    answers = [
        {answer.id: _plain(answer) for answer in stub.EmbedStream(iter(messages))} for stub in (one, many)
    ]
    assert answers[0] == answers[1]
    assert len(answers[1]) == len(messages)


def test_open_inference_answers_and_counts_its_own(fronts: Server, tiny_server: Server) -> None:
    request = oip.of_bytes("tiny", FILES)
    with oip.caller(fronts.target) as many, oip.caller(tiny_server.target) as one:
        assert many.ModelInfer(request).raw_output_contents == one.ModelInfer(request).raw_output_contents
        [before] = many.ModelStatistics(name="tiny").model_stats
        for _ in range(5):
            many.ModelInfer(request)
        [after] = many.ModelStatistics(name="tiny").model_stats
        assert after.inference_count - before.inference_count == 15
        assert after.inference_stats.success.count - before.inference_stats.success.count == 5
        assert 5 <= after.execution_count - before.execution_count <= 15
        sizes = [{one.batch_size: one.compute_infer.count for one in s.batch_stats} for s in (before, after)]
        computed = [sum(size * count for size, count in each.items()) for each in sizes]
        assert computed[1] - computed[0] == 15
        assert many.ServerReady().ready


def test_a_model_comes_with_its_first_use_and_leaves(fronts: Server) -> None:
    with Doors(fronts) as stubs:

        def state(name: str) -> str:
            model = stubs[name].GetModel(pb.GetModelRequest(model="late")).model
            return str(pb.State.Name(model.state))

        until(lambda: all(state(name) == "STATE_UNLOADED" for name in stubs))
        request = pb.EmbedRequest(input=INPUTS[0], targets=[pb.Target(model="late")])
        first, second = stubs
        assert stubs[first].Embed(request).embedded.embeddings[0].vector.data
        assert state(second) == "STATE_READY"
        until(lambda: state(second) == "STATE_UNLOADED")


def test_every_process_names_itself_and_metrics_are_of_all(fronts: Server) -> None:
    with Doors(fronts) as stubs:
        assert len(stubs) == 2
        ok = {"code": "OK", "method": "/pixvec.v1.EmbeddingService/Embed"}
        before = fronts.metric("pixvec_requests_total", **ok)
        for stub in stubs.values():
            stub.Embed(REQUEST)
            with pytest.raises(grpc.RpcError):
                stub.Embed(pb.EmbedRequest(), metadata=(("x-request-id", "find-me"),))
        assert fronts.metric("pixvec_requests_total", **ok) == before + 2
    named = {line["process"] for line in fronts.lines() if line.get("request_id") == "find-me"}
    assert named == {"frontend-1", "frontend-2"}
    assert {line["process"] for line in fronts.lines()} == {*named, "device", "supervisor"}
    assert fronts.metric("pixvec_model_info", model="tiny") == 1
    for name in (*named, "device", "supervisor"):
        assert fronts.metric("process_resident_memory_bytes", process=name) > 0


def _in_hand(server: Server, inflight: int, queued: int | None = None) -> Callable[[], bool]:
    return lambda: (
        server.metric("pixvec_inflight_items") == inflight
        and queued in {None, server.metric("pixvec_queue_items")}
    )


def _shut(gate: Path) -> Callable[[], bool]:
    """Shut the gate; what is returned tells whether a batch waits there."""
    held = gate.with_suffix(".held")
    held.unlink(missing_ok=True)
    gate.touch()
    return held.exists


def test_a_batch_is_of_all_front_ends(gated: Server, gate: Path) -> None:
    with Doors(gated) as stubs:
        before = gated.metric("pixvec_batch_size_sum"), gated.metric("pixvec_batch_size_count")
        held = _shut(gate)
        calls = [next(iter(stubs.values())).Embed.future(REQUEST)]
        until(held)
        calls += [stub.Embed.future(REQUEST) for stub in stubs.values()]
        until(_in_hand(gated, 3, 2))
        gate.unlink()
        assert all(call.result().embedded.embeddings for call in calls)
        after = gated.metric("pixvec_batch_size_sum"), gated.metric("pixvec_batch_size_count")
        assert (after[0] - before[0], after[1] - before[1]) == (3, 2)


def test_nobody_computes_for_those_who_left_or_are_late(gated: Server, gate: Path) -> None:
    with Doors(gated) as stubs:
        one, other = stubs.values()
        before = gated.metric("pixvec_batch_size_sum")
        held = _shut(gate)
        running = one.Embed.future(REQUEST)
        until(held)
        late, left = other.Embed.future(REQUEST, timeout=2), other.Embed.future(REQUEST)
        until(_in_hand(gated, 3, 2))
        left.cancel()
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(_in_hand(gated, 1))
        gate.unlink()
        assert running.result().embedded.embeddings
        until(_in_hand(gated, 0, 0))
        assert gated.metric("pixvec_batch_size_sum") - before == 1


def test_a_dead_front_end_is_replaced_and_harms_no_other(gated: Server, gate: Path) -> None:
    counters = ("pixvec_requests_total", "pixvec_batch_size_sum", "pixvec_items_total")
    with Doors(gated) as stubs:
        first, second = stubs
        assert stubs[first].Embed(REQUEST).embedded.embeddings
        before = {name: gated.metric(name) for name in counters}
        victim = _children(gated)[first]
        held = _shut(gate)
        dying, living = stubs[first].Embed.future(REQUEST), stubs[second].Embed.future(REQUEST)
        until(lambda: held() and _in_hand(gated, 2)())
        victim.kill()
        assert dying.code() is grpc.StatusCode.UNAVAILABLE
        assert all(gated.metric(name) >= value for name, value in before.items())
        gate.unlink()
        assert living.result().embedded.embeddings
        until(lambda: first in _children(gated) and _children(gated)[first].pid != victim.pid)
    until(lambda: gated.metric("process_resident_memory_bytes", process=first) > 0)
    until(lambda: len(_connections(gated)) == 2)
    with Doors(gated) as stubs:
        for stub in stubs.values():
            until(lambda stub=stub: _answers(stub))  # type: ignore[misc]
    assert all(gated.metric(name) > value for name, value in before.items())
    until(lambda: _arenas(_children(gated)["device"]) == 2)


def test_a_dead_device_is_unavailable_until_it_is_replaced(gated: Server, gate: Path) -> None:
    with Doors(gated) as stubs:
        held = _shut(gate)
        calls = [stub.Embed.future(REQUEST) for stub in stubs.values()]
        until(lambda: held() and _in_hand(gated, 2)())
        before = gated.metric("pixvec_batch_size_sum")
        _children(gated)["device"].kill()
        for call in calls:
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            error = pb.Error.FromString(dict(call.trailing_metadata())["pixvec-error-bin"])
            assert pb.Reason.Name(error.reason) == "REASON_MODEL_NOT_READY"
            assert error.HasField("retry_after")
        # The next device cannot warm up while the gate is shut.
        assert _health(gated.target) == "NOT_SERVING"
        with pytest.raises(grpc.RpcError) as caught:
            next(iter(stubs.values())).Embed(REQUEST)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        gate.unlink()
        until(lambda: _health(gated.target) == "SERVING", 60)
        for stub in stubs.values():
            until(lambda stub=stub: _answers(stub), 60)  # type: ignore[misc]
        assert gated.metric("pixvec_batch_size_sum") >= before
        held_by = {name: _arenas(child) for name, child in _children(gated).items()}
        assert held_by == {"device": 2, "frontend-1": 1, "frontend-2": 1}


def _answers(stub: Any) -> bool:
    try:
        return bool(stub.Embed(REQUEST, timeout=5).embedded.embeddings)
    except grpc.RpcError:
        return False


def test_sigterm_to_all_under_load_answers_every_accepted_call(tiny_bundle: Path) -> None:
    """As systemd sends it: to every process at once. The device ends after the last answer."""
    with serve(*TWO, "--model", f"tiny={tiny_bundle}", env={"PIXVEC_SERVER__LAME_DUCK_S": "1"}) as ending:
        stubs = [ending.stub() for _ in range(8)]
        outcomes: list[tuple[float, Any]] = []
        done = threading.Event()

        def load(stub: Any) -> None:
            while not done.is_set():
                at = time.monotonic()
                try:
                    stub.Embed(REQUEST, timeout=20)
                    outcomes.append((at, grpc.StatusCode.OK))
                except grpc.RpcError as exc:
                    outcomes.append((at, exc.code()))
                    time.sleep(0.02)

        callers = [threading.Thread(target=load, args=(stub,)) for stub in stubs]
        for caller in callers:
            caller.start()
        time.sleep(0.5)
        everyone = [psutil.Process(ending.process.pid), *_children(ending).values()]
        signalled = time.monotonic()
        for process in everyone:
            process.send_signal(signal.SIGTERM)
        code = ending.process.wait(20)
        done.set()
        for caller in callers:
            caller.join()
        failed = {line["code"] for line in ending.lines() if line.get("event") == "call failed"}
    assert code == 0
    assert failed <= {"UNAVAILABLE"}
    assert {code for at, code in outcomes if at < signalled + 0.9} == {grpc.StatusCode.OK}
    assert {code for _, code in outcomes} <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert not any(process.is_running() for process in everyone[1:])


@pytest.mark.parametrize("how", ["the supervisor is killed", "SIGTERM twice"])
def test_no_process_is_left(tiny_bundle: Path, how: str) -> None:
    env = {"PIXVEC_SERVER__LAME_DUCK_S": "60"}
    with serve(*TWO, "--model", f"tiny={tiny_bundle}", env=env) as ending:
        assert ending.stub().Embed(REQUEST).embedded.embeddings
        children = list(_children(ending).values())
        assert len(children) == 3
        # What they share has no name that could be left behind.
        maps = [Path(f"/proc/{child.pid}/maps").read_text() for child in children]
        assert all("memfd:pixvec-" in held and "/dev/shm/" not in held for held in maps)
        if how == "SIGTERM twice":
            ending.process.send_signal(signal.SIGTERM)
            until(lambda: any("lame duck" in line["event"] for line in ending.lines()))
            assert ending.terminate() == 130
        else:
            ending.process.kill()
            ending.process.wait()
        until(lambda: not any(child.is_running() for child in children))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "nope"), "no model is called 'nope'"),
        (("--model", "tiny", "--precision", "fp16", "--backend", "onnx"), "export it in fp16"),
        (("--model", "tiny", "--token-file", "/none"), "server.token_file = /none"),
        (("--model", "tiny", "--port", "PORT"), "Address already in use"),
        (("--model", "tiny", "--port", "SHARED"), "Address already in use"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    flags: tuple[str, ...], words: str, tiny_bundle: Path, tiny_server: Server, fronts: Server
) -> None:
    own = {"tiny": f"tiny={tiny_bundle}", "PORT": str(tiny_server.port), "SHARED": str(fronts.port)}
    done = subprocess.run(
        [sys.executable, "-m", "pixvec_server", "serve", *TWO, "--port", "0", "--metrics-port", "0"]
        + [own.get(flag, flag) for flag in flags],
        capture_output=True,
        text=True,
        env=environment(PIXVEC_SERVER__HOST="127.0.0.1"),
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
