"""NVIDIA's own load generator finds the server to be one of its kind, and the two agree on every count."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import oip, perf_analyzer, photos
from support.servers import ROOT, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WINDOW_MS = 700
JPEG = photos.encode(photos.image("rocket.jpg").resize((160, 107)), "JPEG")


@pytest.fixture(scope="module")
def program() -> Path:
    """The program, fetched once."""
    try:
        return perf_analyzer.obtain(ROOT / ".tools" / "perf_analyzer")
    except perf_analyzer.UnavailableError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small JPEG, as perf_analyzer's input."""
    return perf_analyzer.image_input(tmp_path_factory.mktemp("inputs") / "one.json", [JPEG])


def _agrees(report: perf_analyzer.Report, batch: int = 1) -> None:
    """The load goes on while counts are read: what is under way at the edges is in one's count alone."""
    assert report.requests > 0, report.text
    assert abs(report.succeeded - report.requests) <= 2 * report.concurrency, report.text
    assert abs(report.inferences - batch * report.succeeded) <= batch * report.concurrency, report.text
    assert 0 < report.executions <= report.inferences, report.text
    assert 0 < report.p50_us <= report.p99_us, report.text


@pytest.mark.parametrize("flags", [(), ("-x", "1")])
@pytest.mark.parametrize("concurrency", [1, 32])
def test_it_measures_a_model_and_its_counts_are_the_servers(
    program: Path, tiny_server: Server, image: Path, concurrency: int, flags: tuple[str, ...]
) -> None:
    with oip.caller(tiny_server.target) as calls:
        [before] = calls.ModelStatistics(name="tiny").model_stats
        report = perf_analyzer.run(
            program, tiny_server.target, "tiny", image, *flags, concurrency=concurrency, window_ms=WINDOW_MS
        )
        [after] = calls.ModelStatistics(name="tiny").model_stats
    _agrees(report)
    assert report.concurrency == concurrency
    assert after.inference_stats.fail == before.inference_stats.fail
    assert after.inference_count - before.inference_count >= report.requests
    if concurrency > 1:
        assert report.executions < report.inferences, report.text


def test_it_measures_pixels(program: Path, tiny_server: Server, tmp_path: Path) -> None:
    pixels = np.asarray(photos.image("rocket.jpg").resize((8, 8), Image.Resampling.BICUBIC)).tobytes()
    inputs = perf_analyzer.pixels_input(tmp_path / "pixels.json", [pixels])
    _agrees(
        perf_analyzer.run(
            program, tiny_server.target, "tiny_pixels", inputs, concurrency=4, window_ms=WINDOW_MS
        )
    )


def test_the_pages_recipe_writes_its_inputs(image: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "open-inference.md").read_text(encoding="utf-8")
    [program] = re.findall(r"python -c '(.*?)' cat.jpg > one.json", page, re.DOTALL)
    (tmp_path / "cat.jpg").write_bytes(JPEG)
    command = [sys.executable, "-W", "ignore", "-c", program, "cat.jpg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(image.read_text())


def test_it_measures_streams(program: Path, tiny_server: Server, image: Path) -> None:
    flags = ("--streaming", "--async")
    _agrees(
        perf_analyzer.run(
            program, tiny_server.target, "tiny", image, *flags, concurrency=8, window_ms=WINDOW_MS
        )
    )


def test_it_measures_batches(program: Path, tiny_server: Server, image: Path) -> None:
    report = perf_analyzer.run(
        program, tiny_server.target, "tiny", image, "-b", "4", concurrency=2, window_ms=WINDOW_MS
    )
    _agrees(report, batch=4)


def test_what_it_cannot_measure_is_an_error(program: Path, tiny_server: Server, image: Path) -> None:
    with pytest.raises(RuntimeError, match="no model is called 'nobody'"):
        perf_analyzer.run(program, tiny_server.target, "nobody", image)
