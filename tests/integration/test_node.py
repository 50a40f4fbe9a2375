"""The example client for Node, installed by npm, against a real server and one made to be difficult."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from support import photos
from support.servers import ROOT

import pixvec
from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.servers import Server

    Run = Callable[..., subprocess.CompletedProcess[str]]

FOLDER = ROOT / "build" / "node" / "examples" / "node"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def node() -> Run:
    """Run the command of examples/node, laid out as in the repository with its packages under build/node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    contract = FOLDER.parents[1] / "proto" / "pixvec"
    shutil.copytree(ROOT / "proto" / "pixvec", contract, dirs_exist_ok=True)
    ignore = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "examples" / "node", FOLDER, dirs_exist_ok=True, ignore=ignore)
    package = (FOLDER / "package.json").read_text(encoding="utf-8")
    installed = FOLDER / "node_modules" / ".installed.json"
    if not installed.is_file() or installed.read_text(encoding="utf-8") != package:
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        installed.write_text(package, encoding="utf-8")

    def run(*arguments: str | Path, script: str = "embed.mjs") -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PIXVEC_")}
        command = ["node", FOLDER / script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=kept)

    return run


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_its_vectors_are_the_python_clients_and_a_torn_image_fails_alone(
    node: Run, server: Server, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(photos.data("rocket.jpg")[:5000])
    files = [photos.path("chelsea.png"), torn, photos.path("rocket.jpg"), photos.path("coffee.png")]
    done = node(server.target, *files, tmp_path / "missing.jpg")
    assert (done.returncode, done.stderr) == (3, "")
    said = lines(done)
    assert [line["path"] for line in said] == [*map(str, files), str(tmp_path / "missing.jpg")]
    assert [line["ok"] for line in said] == [True, False, True, True, False]
    assert [line["error"]["reason"] for line in said if not line["ok"]] == ["UNDECODABLE", "UNREADABLE"]
    assert "truncated" in said[1]["error"]["message"]
    with pixvec.Client(server.target) as client:
        answers = client.embed_batch_full([file for file in files if file != torn])
    for line, answer in zip((said[0], said[2], said[3]), answers, strict=True):
        assert isinstance(answer, pixvec.Embedded)
        vector = np.array(line["vector"])
        # Written in full: float32 and float64 hold the very same numbers.
        assert np.array_equal(vector, answer.vector.astype(np.float64))
        origin = answer.origins[0]
        assert line["origin"] == {"model": origin.model, "space": origin.space, "build": origin.build}


def test_an_unknown_model_is_told_in_the_servers_words(node: Run, tiny_server: Server) -> None:
    done = node("--model", "nosuch", tiny_server.target, photos.path("rocket.jpg"))
    assert (done.returncode, done.stdout) == (1, "")
    with pixvec.Client(tiny_server.target) as client, pytest.raises(pixvec.ModelNotFoundError) as error:
        client.embed(photos.path("rocket.jpg"), model="nosuch")
    assert done.stderr.startswith(f"pixvec: MODEL_NOT_FOUND: {error.value} (request ")


def test_the_pages_program_runs(node: Run, tiny_server: Server, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "clients" / "node.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(photos.data("rocket.jpg")[:5000])
    reads = ['import { readFileSync } from "node:fs";']
    for name, file in (("cat", photos.path("chelsea.png")), ("torn", torn)):
        reads.append(f"const {name}Bytes = readFileSync({json.dumps(str(file))});")
    program = program.replace("localhost:50051", tiny_server.target)
    (FOLDER / "page.mjs").write_text("\n".join([*reads, program]), encoding="utf-8")
    done = node(script="page.mjs")
    assert (done.returncode, done.stderr) == (0, "")
    with pixvec.Client(tiny_server.target) as client:
        space = client.embed_full(photos.path("chelsea.png")).origins[0].space
    assert done.stdout.startswith("Float32Array(32) [")
    assert f"] {space}\nUNDECODABLE inputs[1].image: " in done.stdout


def test_wrong_usage_is_told(node: Run) -> None:
    for arguments in ((), ("127.0.0.1:1",), ("--nonsense", "127.0.0.1:1", "cat.jpg")):
        done = node(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: node embed.mjs")


class Difficult(pb_grpc.EmbeddingServiceServicer):
    """Refuses every call's first attempts; embeds an image as its first byte, two images a request."""

    LIMITS = pb.Limits(inputs=2, vectors=9, request_bytes=14_000, image_bytes=9_000)

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self.chunks: list[list[int]] = []
        self.overloaded = False

    def refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, error: pb.Error) -> None:
        context.set_trailing_metadata((("pixvec-error-bin", error.SerializeToString()),))
        context.abort(code, error.message)

    def ListModels(  # noqa: N802 - gRPC's name
        self, _: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        self.attempts.append("ListModels")
        if len(self.attempts) == 1:
            draining = pb.Error(code=14, reason=pb.REASON_DRAINING, message="stopping")
            self.refuse(context, grpc.StatusCode.UNAVAILABLE, draining)
        return pb.ListModelsResponse(limits=self.LIMITS)

    def EmbedBatch(  # noqa: N802 - gRPC's name
        self, request: pb.EmbedBatchRequest, context: grpc.ServicerContext
    ) -> pb.EmbedBatchResponse:
        self.attempts.append("EmbedBatch")
        if self.overloaded:
            error = pb.Error(code=8, reason=pb.REASON_OVERLOADED, message="the queue is full")
            error.retry_after.FromMilliseconds(1250)
            self.refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error)
        assert request.ByteSize() <= self.LIMITS.request_bytes
        self.chunks.append([len(item.image) for item in request.inputs])
        response = pb.EmbedBatchResponse(report=pb.Report(origins=[pb.Origin(model="m", space="s")]))
        for item in request.inputs:
            # A shape of odd length before the numbers, so that they lie at every offset.
            tensor = pb.Tensor(encoding=pb.ENCODING_FLOAT32, shape=[1] * item.image[0])
            tensor.data = np.array([item.image[0]], "<f4").tobytes()
            embedding = pb.Embedding(vector=tensor)
            response.results.append(pb.Result(embedded=pb.Embedded(embeddings=[embedding])))
        return response


@pytest.fixture
def difficult() -> Iterator[tuple[Difficult, str]]:
    service = Difficult()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    pb_grpc.add_EmbeddingServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_requests_keep_to_the_limits_in_images_and_bytes(
    node: Run, difficult: tuple[Difficult, str], tmp_path: Path
) -> None:
    service, target = difficult
    files = []
    for index, size in enumerate((10, 20, 30, 6000, 4000, 9001, 9000)):
        files.append(tmp_path / f"{index}.jpg")
        files[-1].write_bytes(bytes([index + 1]) * size)
    done = node(target, *files)
    assert done.returncode == 3, done.stderr
    said = lines(done)
    assert [line["ok"] for line in said] == [True] * 5 + [False, True]
    assert said[5]["error"]["reason"] == "TOO_LARGE"
    assert [line["vector"] for line in said if line["ok"]] == [[1.0], [2.0], [3.0], [4.0], [5.0], [7.0]]
    # 14,000 bytes less 4,096 for the request's own fields; 9,001 bytes are over the limit and never sent.
    assert service.chunks == [[10, 20], [30, 6000], [4000], [9000]]
    assert service.attempts[:2] == ["ListModels", "ListModels"], "the refused call was tried again"


def test_an_overloaded_server_is_tried_four_times_and_its_hint_is_told(
    node: Run, difficult: tuple[Difficult, str], tmp_path: Path
) -> None:
    service, target = difficult
    service.overloaded = True
    (tmp_path / "small.jpg").write_bytes(b"small")
    done = node(target, tmp_path / "small.jpg")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pixvec: OVERLOADED: the queue is full (try again after 1250 ms)\n"
    assert service.attempts.count("EmbedBatch") == 4
