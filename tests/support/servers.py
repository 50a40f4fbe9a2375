"""Real servers as real processes, on free loopback ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc
import psutil

from pixvec.v1 import embedding_pb2_grpc as pb_grpc
from pixvec_server.config import TEST_CPU

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START_S = 120
ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "test-cache"


def environment(**extra: str) -> dict[str, str]:
    """Return this environment with the tests' cache and processor, and none of pixvec's other settings."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith("PIXVEC_") or key == TEST_CPU
    }
    return {**kept, "PIXVEC_CACHE": str(CACHE), **extra}


@dataclass
class Server:
    """A running server and what its log says."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0
    metrics_port: int = 0
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Address of the gRPC port."""
        return f"127.0.0.1:{self.port}"

    def channel(self) -> grpc.Channel:
        """Return a channel with a connection of its own."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channels.append(grpc.insecure_channel(self.target, options=options))
        return self.channels[-1]

    def stub(self) -> Any:
        """Return a stub over a channel of its own."""
        return pb_grpc.EmbeddingServiceStub(self.channel())  # type: ignore[no-untyped-call] # generated

    def lines(self) -> list[dict[str, Any]]:
        """Return the log, a dict for each JSON line."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def metrics(self) -> str:
        """Scrape the metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's series that carry these labels."""
        total = 0.0
        for line in self.metrics().splitlines():
            match = re.match(rf"{name}(?:{{(.*)}})? (\S+)$", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total += float(match[2])
        return total

    def memory(self) -> int:
        """Return resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def terminate(self, timeout: float = 30) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def serve(
    *flags: str,
    env: Mapping[str, str] | None = None,
    wait: bool = True,
    python: str | Path = sys.executable,
) -> Iterator[Server]:
    """Run `pixvec-server serve` with no lame duck until the block ends; `wait` for its serving line."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        settings = environment(PIXVEC_SERVER__LAME_DUCK_S="0", PIXVEC_SERVER__HOST="127.0.0.1")
        settings |= {"PIXVEC_SERVER__METRICS_HOST": "127.0.0.1", **(env or {})}
        command = [python, "-m", "pixvec_server", "serve", "--port", "0", "--metrics-port", "0"]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*command, "--log-format", "json", *flags], stdout=sink, stderr=sink, env=settings
            )
        server = Server(process, log)
        try:
            if wait:
                _await_serving(server)
            yield server
        finally:
            for channel in server.channels:
                channel.close()
            if process.poll() is None:
                process.kill()
            process.wait(10)


def _await_serving(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for line in server.lines():
            if line.get("event") == "serving":
                server.port, server.metrics_port = line["port"], line["metrics_port"]
                return
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}: {server.log.read_text()}")
        time.sleep(0.05)
    raise RuntimeError(f"no serving line within {START_S} s: {server.log.read_text()}")
