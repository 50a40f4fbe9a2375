"""Many callers, callers that leave, callers that are slow, and the end: the server lives through all."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import photos, tiny
from support.peak import Peak
from support.servers import ROOT, serve
from support.waiting import until

from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.servers import Server

PHOTO = photos.jpeg("rocket.jpg")
REQUEST = pb.EmbedRequest(input=pb.Input(image=PHOTO))
SMALL = pb.EmbedRequest(
    input=pb.Input(pixels=pb.Tensor(encoding=pb.ENCODING_UINT8, shape=(8, 8, 3), data=bytes(192)))
)


def _batches(server: Server) -> tuple[float, float]:
    return server.metric("pixvec_batch_size_sum"), server.metric("pixvec_batch_size_count")


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_concurrent_callers_share_batches_and_health_answers_meanwhile(server: Server) -> None:
    stub = server.stub()
    before = _batches(server)
    started = time.monotonic()
    for _ in range(32):
        stub.Embed(REQUEST)
    alone = 32 / (time.monotonic() - started)
    lonely = _batches(server)
    assert lonely[1] - before[1] == 32
    done, answers = threading.Event(), []

    def ask_health() -> None:
        with grpc.insecure_channel(server.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not done.is_set():
                answers.append(health.Check(health_pb2.HealthCheckRequest(), timeout=2).status)
                time.sleep(0.05)

    asking = threading.Thread(target=ask_health)
    asking.start()
    with ThreadPoolExecutor(32) as pool:
        started = time.monotonic()
        list(pool.map(lambda _: stub.Embed(REQUEST, timeout=30), range(320)))
        together = 320 / (time.monotonic() - started)
    done.set()
    asking.join()
    after = _batches(server)
    mean = (after[0] - lonely[0]) / (after[1] - lonely[1])
    print(f"\n1 caller {alone:.1f} images/s; 32 callers {together:.1f} images/s, mean batch {mean:.1f}")
    assert mean > 4
    assert answers
    assert set(answers) == {health_pb2.HealthCheckResponse.SERVING}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("frontends", "stops"), [(0, 3), (2, 2)])
def test_sigterm_under_load_answers_or_refuses_every_call(
    tiny_bundle: Path, frontends: int, stops: int
) -> None:
    """250 calls a second; each ends with its vector, or UNAVAILABLE once the lame duck is over."""
    total: Counter[str] = Counter()
    for _ in range(stops):
        total += _stop_under_load(tiny_bundle, frontends)
    print(f"\n{stops} stops: {dict(total)}")
    assert total.keys() <= {"OK", "UNAVAILABLE"}


def _stop_under_load(bundle: Path, frontends: int) -> Counter[str]:
    env = {"PIXVEC_SERVER__LAME_DUCK_S": "1.5"}
    flags = ("--model", f"tiny={bundle}", "--frontends", str(frontends))
    with serve(*flags, env=env) as ending:
        stubs = [ending.stub() for _ in range(4)]
        calls: list[tuple[float, Any]] = []
        started, signalled = time.monotonic(), float("inf")
        # The port closes in the midst of the load: it goes on until the process has ended.
        while ending.process.poll() is None:
            if signalled == float("inf") and time.monotonic() > started + 0.5:
                signalled = time.monotonic()
                ending.process.send_signal(signal.SIGTERM)
            calls.append((time.monotonic(), stubs[len(calls) % 4].Embed.future(SMALL, timeout=20)))
            # A machine that is late sends fewer calls, not a burst.
            time.sleep(1 / 250)
        codes = [(at, call.code().name) for at, call in calls]
        failed = {line["code"] for line in ending.lines() if line.get("event") == "call failed"}
    assert ending.process.returncode == 0
    assert failed <= {"UNAVAILABLE"}
    # Sent a second before the end of the lame duck, and so accepted.
    assert {code for at, code in codes if at < signalled + 0.5} == {"OK"}
    return Counter(code for _, code in codes)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_slow_reader_does_not_grow_the_server(server: Server) -> None:
    """The caller sends 4,000 messages of 70 KB that ask for maps of 250 KB, and reads none for a while."""
    stub = server.stub()
    maps = [pb.Target(output="features")]
    stub.EmbedBatch(pb.EmbedBatchRequest(inputs=[REQUEST.input] * 32, targets=maps))
    sent = 0

    def requests() -> Iterator[pb.EmbedStreamRequest]:
        nonlocal sent
        for i in range(4000):
            sent += 1
            yield pb.EmbedStreamRequest(id=str(i), inputs=[REQUEST.input], targets=maps)

    call = stub.EmbedStream(requests())
    with Peak(server.process.pid) as peak:
        next(call)
        time.sleep(4)
        standing = sent
        time.sleep(2)
        assert sent == standing, "the server reads on although nobody reads its answers"
    print(f"\n{standing} messages of 4000 were read, peak +{peak.growth / 2**20:.1f} MiB")
    assert peak.growth < 64 << 20
    call.cancel()
    assert stub.Embed(REQUEST, timeout=10).embedded.embeddings
    _idle(server)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_callers_that_leave_cost_nothing(server: Server) -> None:
    stub = server.stub()
    rng = np.random.default_rng(1)
    for _ in range(5):
        calls = [stub.Embed.future(REQUEST, timeout=20) for _ in range(100)]
        for call in calls:
            time.sleep(float(rng.uniform(0, 0.002)))
            call.cancel()
    _idle(server)
    assert stub.Embed(REQUEST, timeout=10).embedded.embeddings


@pytest.mark.timeout(60)
def test_an_overfull_queue_refuses_at_once_with_a_hint(tiny_bundle: Path, tmp_path: Path) -> None:
    gate = tmp_path / "closed"
    env = {"PIXVEC_BATCH__MAX_QUEUE_ITEMS": "16", "PIXVEC_LIMITS__VECTORS": "16"}
    env |= {"PYTHONPATH": str(ROOT / "tests"), "GATE": str(gate)}
    full = pb.EmbedBatchRequest(inputs=[REQUEST.input] * 16)
    with serve("--model", f"tiny={tiny_bundle}", "--backend", "support.gated:Gated", env=env) as small:
        stub = small.stub()
        gate.touch()
        first = stub.EmbedBatch.future(full, timeout=50)
        until(lambda: small.metric("pixvec_inflight_items") == 16)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Embed(REQUEST, timeout=30)
        assert not first.done()
        trailers = dict(caught.value.trailing_metadata())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(trailers["grpc-retry-pushback-ms"]) >= 50
        error = pb.Error.FromString(trailers["pixvec-error-bin"])
        assert pb.Reason.Name(error.reason) == "REASON_OVERLOADED"
        assert error.retry_after.ToTimedelta().total_seconds() > 0
        gate.unlink()
        assert len(first.result().results) == 16
        assert stub.Embed(REQUEST, timeout=10).embedded.embeddings
        _idle(small)


def test_an_expired_call_is_never_computed(tiny_server: Server) -> None:
    stub = tiny_server.stub()
    stub.Embed(REQUEST)
    before = _batches(tiny_server)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Embed(REQUEST, timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    _idle(tiny_server)
    assert _batches(tiny_server) == before


def test_garbage_never_gets_an_answer_but_invalid_argument(tiny_server: Server) -> None:
    """Seeded noise in every field of a request."""
    rng = np.random.default_rng(2)
    stub = tiny_server.stub()
    whole = REQUEST.SerializeToString()
    with grpc.insecure_channel(tiny_server.target) as channel:
        call = channel.unary_unary("/pixvec.v1.EmbeddingService/Embed")
        for _ in range(300):
            data = bytearray(whole[: rng.integers(1, 400)])
            for at in rng.integers(0, len(data), 4):
                data[at] = rng.integers(0, 256)
            with pytest.raises(grpc.RpcError) as caught:
                call(bytes(data), timeout=10)
            assert caught.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    assert len(stub.Embed(REQUEST).embedded.embeddings[0].vector.data) == tiny.SIZE * 4


def _idle(server: Server) -> None:
    """Nothing in hand within a few seconds: what was left is dropped, nothing leaks."""
    until(lambda: not server.metric("pixvec_inflight_items") + server.metric("pixvec_queue_items"))
