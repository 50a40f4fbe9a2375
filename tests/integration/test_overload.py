"""What a server does with calls that it cannot answer in time: refuses them unread, and says so sparingly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import photos, tiny
from support.servers import ROOT, Server, serve
from support.waiting import until

from pixvec.v1 import embedding_pb2 as pb

pytestmark = pytest.mark.timeout(60)
REQUEST = pb.EmbedRequest(input=pb.Input(image=photos.jpeg("rocket.jpg")))
NO_MESSAGE = b"\xff"
BUSY_S, SHORT_S = 0.5, 0.2


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "closed"


@pytest.fixture
def server(tmp_path: Path, tiny_bundle: Path, gate: Path) -> Iterator[Server]:
    """Two models behind a gate; the first has taken BUSY_S for a batch, and has one call in hand."""
    other = tiny.write(tmp_path / "other", "other", seed=8)
    models = ("--model", f"tiny={tiny_bundle}", "--model", f"other={other}")
    env = {"PYTHONPATH": str(ROOT / "tests"), "GATE": str(gate)}
    with serve(*models, "--backend", "support.gated:Gated", env=env) as running:
        stub = running.stub()
        gate.touch()
        slow = stub.Embed.future(REQUEST, timeout=20)
        time.sleep(BUSY_S)
        gate.unlink()
        slow.result()
        gate.touch()
        held = stub.Embed.future(REQUEST, timeout=20)
        until(lambda: running.metric("pixvec_inflight_items", model="tiny") == 1)
        yield running
        gate.unlink()
        assert held.result().embedded.embeddings


def _refused(server: Server, body: bytes, **metadata: str) -> grpc.RpcError:
    call = server.channel().unary_unary("/pixvec.v1.EmbeddingService/Embed")
    pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
    with pytest.raises(grpc.RpcError) as caught:
        call(body, timeout=SHORT_S, metadata=pairs)
    return caught.value


def test_what_has_no_hope_is_refused_before_it_is_read(server: Server) -> None:
    error = _refused(server, NO_MESSAGE, pixvec_model="tiny")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the queue takes" in error.details()
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 50
    assert server.metric("pixvec_items_total", model="tiny", outcome="overloaded") == 1
    assert server.metric("pixvec_requests_total", code="RESOURCE_EXHAUSTED") == 1


def test_a_call_that_may_be_for_an_idle_model_is_read(server: Server) -> None:
    for metadata in ({}, {"pixvec_model": "other"}, {"pixvec_model": "unknown"}):
        assert _refused(server, NO_MESSAGE, **metadata).code() is grpc.StatusCode.INVALID_ARGUMENT
    request = pb.EmbedRequest(input=REQUEST.input, targets=[pb.Target(model="tiny")])
    assert _refused(server, request.SerializeToString()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_refusals_are_logged_once_a_second(server: Server) -> None:
    def said() -> list[dict[str, Any]]:
        return [line for line in server.lines() if line.get("code") == "RESOURCE_EXHAUSTED"]

    began = time.monotonic()
    for _ in range(20):
        _refused(server, NO_MESSAGE, pixvec_model="tiny")
    until(said)  # a thread writes the log
    assert 1 <= len(said()) <= 1 + int(time.monotonic() - began)
    time.sleep(1.05)
    _refused(server, NO_MESSAGE, pixvec_model="tiny")
    until(lambda: sum(line.get("unsaid", 0) + 1 for line in said()) == 21)
