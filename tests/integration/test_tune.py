"""The real `pixvec-server tune` on the tiny model, and a server that uses what it kept."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support.servers import environment, serve

from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for i in range(54):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.timeout(120)
def test_a_server_uses_what_tune_measured(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    model, cache = f"tiny={tiny_bundle}", {"PIXVEC_CACHE": str(tmp_path / "cache")}
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pixvec_server",
        "tune",
        model,
        pictures,
        "--device",
        "cpu",
        "--json",
    ]
    effort = ["--rounds", "1", "--seconds", "0.01", "--for", "throughput"]
    done = subprocess.run(
        [*command, *effort], capture_output=True, text=True, check=False, env=environment(**cache)
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    auto = report["auto"]
    assert (report["given"], report["seeded"], report["goal"]) == (54, 0, "throughput")
    assert {s["backend"] for s in report["measured"]} == {"onnx", "openvino"}
    assert report["skipped"]["torch fp32"] == "tiny was made from a graph"

    with serve("--model", model, "--device", "cpu", env=cache) as server:
        [ready] = [line for line in server.lines() if line["event"] == "model ready"]
        described = server.stub().GetModel(pb.GetModelRequest(model="tiny"))
    assert "tuned here on" in ready["why"]
    assert f"for throughput: {auto['backend']} {auto['precision']}" in ready["why"]
    assert f"/{auto['backend']}-{auto['precision']}/" in ready["build"]
    assert described.model.selection == ready["why"]
