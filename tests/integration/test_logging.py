"""Standard error of a real server: every line is JSON, whatever writes it, and no call waits for a reader."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from support import photos
from support.pipes import fill
from support.servers import environment, serve
from support.waiting import until

import pixvec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLS = 1000
PNG = photos.data("chelsea.png")
SERVING = health_pb2.HealthCheckResponse.SERVING
# An IFD of five entries that ends after two: Orientation, and a Make that lies beyond the end of the file.
TRUNCATED_EXIF = bytes.fromhex(
    "457869660000 49492a0008000000 0500 12010300 01000000 06000000 0f010200 ff000000 ffff0000"
)
CHATTY = '''
import ctypes, threading, warnings
import sys
from pixvec_server.backends.openvino import OpenVinoBackend

class Backend(OpenVinoBackend):
    """Writes in every way that a library has."""

    def run(self, tower, batch, outputs):
        ctypes.PyDLL(None).dprintf(2, b"from C on 2\\n")
        ctypes.CDLL(None).dprintf(1, b"from C on 1\\n")
        # Over what a pipe holds, with the interpreter's lock held: nobody can read meanwhile.
        for _ in range(3000):
            ctypes.PyDLL(None).dprintf(2, b"flood %s\\n", b"x" * 100)
        print("printed")
        sys.stderr.write("written to sys.stderr\\n")
        warnings.warn("a warning")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        return super().run(tower, batch, outputs)
'''


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serves(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == SERVING)


@contextmanager
def _started(bundle: Path, stderr: int, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run a server whose standard error is this descriptor; yield it and its two ports."""
    port, metrics_port = _free_port(), _free_port()
    env = environment(PIXVEC_SERVER__LAME_DUCK_S="0", PIXVEC_SERVER__METRICS_HOST="127.0.0.1")
    ports = ("--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(metrics_port))
    command = [sys.executable, "-m", "pixvec_server", "serve", "--model", f"tiny={bundle}", *ports]
    process = subprocess.Popen([*command, "--log-format", "json", *flags], stderr=stderr, env=env)
    try:
        until(lambda: process.poll() is not None or _serves(port), 60)
        assert process.poll() is None
        yield process, port, metrics_port
    finally:
        process.kill()
        process.wait(10)


def _dropped(metrics_port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("pixvec_log_dropped_total{"))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("flags", [(), ("--frontends", "2")], ids=["one", "frontends"])
@pytest.mark.parametrize("reader", ["full", "closed"])
def test_an_unread_standard_error_drops_lines_and_delays_nothing(
    tiny_bundle: Path, reader: str, flags: tuple[str, ...]
) -> None:
    reading, writing = os.pipe()
    if reader == "full":
        fill(writing)
    else:
        os.close(reading)
    with _started(tiny_bundle, writing, *flags) as (process, port, metrics_port):
        os.close(writing)
        refused = 0
        with pixvec.Client(f"127.0.0.1:{port}") as client:
            for _ in range(CALLS):
                with pytest.raises(pixvec.UndecodableError):
                    client.embed(b"")
                refused += 1
            assert client.embed(PNG).shape == (32,)
        assert refused == CALLS
        assert _serves(port)
        assert _dropped(metrics_port) > CALLS / 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    if reader == "full":
        os.close(reading)


def _truncated_exif() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(out, "JPEG", exif=TRUNCATED_EXIF)
    return out.getvalue()


def _damaged_fax() -> bytes:
    """Return a TIFF in CCITT group 4 whose strip, which PIL writes after the header, is noise."""
    out = io.BytesIO()
    Image.effect_noise((128, 64), 90).convert("1").save(out, "TIFF", compression="group4")
    with Image.open(out) as written:
        [size] = written.tag_v2[279]  # type: ignore[attr-defined] # a TIFF has it
    return out.getvalue()[:8] + random.Random(1).randbytes(size) + out.getvalue()[8 + size :]


@pytest.mark.parametrize("flags", [(), ("--frontends", "1")], ids=["one", "frontends"])
def test_what_decoders_write_becomes_json_lines(tiny_bundle: Path, flags: tuple[str, ...]) -> None:
    with serve("--model", f"tiny={tiny_bundle}", *flags) as server:
        with pixvec.Client(server.target) as client:
            assert client.embed(_truncated_exif()).shape == (32,)
            with suppress(pixvec.UndecodableError):  # an error, or what libtiff could read
                client.embed(_damaged_fax())
        until(lambda: _events(server.log, "library output") != [])
        assert server.terminate() == 0
        warned = _events(server.log, "python warning")
        assert warned
        assert all(len(line["request_id"]) == 32 for line in warned)
        assert "Fax4" in _events(server.log, "library output")[0]["line"]


def _events(file: Path, event: str) -> list[dict[str, Any]]:
    """Return an event's lines. Raises when any line of the file is no JSON object."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return [line for line in lines if line["event"] == event]


@pytest.mark.timeout(60)
def test_whatever_writes_to_standard_output_and_error_is_a_limited_json_line(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    env = {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    with serve("--model", f"tiny={tiny_bundle}", "--backend", "chatty:Backend", env=env) as server:
        with pixvec.Client(server.target) as client:
            assert client.embed(PNG).shape == (32,)
        assert server.terminate() == 0
        written = [line["line"] for line in _events(server.log, "library output")]
        assert len(written) < 100
        assert "from C on 2" in written
        assert any(
            "ZeroDivisionError" in line["exception"]
            for line in _events(server.log, "uncaught exception in a thread")
        )
        assert {line["text"] for line in _events(server.log, "python warning")} == {"a warning"}


def test_a_server_that_cannot_start_says_so_in_json(tmp_path: Path) -> None:
    with serve("--model", f"tiny={tmp_path / 'nothing'}", wait=False) as server:
        assert server.process.wait(20) == 1
        [line] = _events(server.log, "server failed")
        assert "nothing" in line["error"]


def test_a_crash_leaves_the_stacks_of_all_threads(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as server:
        server.process.send_signal(signal.SIGSEGV)
        assert server.process.wait(20) == -signal.SIGSEGV
        assert "Fatal Python error: Segmentation fault" in server.log.read_text()


def test_a_crash_with_a_full_pipe_ends_the_process(tiny_bundle: Path) -> None:
    reading, writing = os.pipe()
    fill(writing)
    with _started(tiny_bundle, writing) as (process, _port, _metrics_port):
        process.send_signal(signal.SIGABRT)
        assert process.wait(20) == -signal.SIGABRT
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("missing", ["1", "2"])
def test_a_server_without_an_output_starts_and_serves(tiny_bundle: Path, missing: str) -> None:
    port = _free_port()
    env = environment(PIXVEC_SERVER__LAME_DUCK_S="0")
    serving = f"{sys.executable} -m pixvec_server serve --model tiny={tiny_bundle} --host 127.0.0.1"
    command = f"exec {serving} --port {port} --metrics-port 0 {missing}>&-"
    process = subprocess.Popen(["sh", "-c", command], env=env)
    try:
        until(lambda: process.poll() is not None or _serves(port), 30)
        with pixvec.Client(f"127.0.0.1:{port}") as client:
            assert client.embed(PNG).shape == (32,)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)
