"""What every peer shares: what it serves, how it is installed, started, waited for and ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import psutil
from support.photos import jpeg
from support.servers import CACHE, ROOT

from bench import load
from bench.wire import WIRES
from pixvec_server import provision
from pixvec_server.preprocess import spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from bench import wire

PEERS = ROOT / ".tools" / "peers"
PROGRAMS = Path(__file__).parent / "programs"
START_S = 120
# The engines and readers of every peer, at the versions that pixvec is tested with.
_CONSTRAINTS = ROOT / "constraints.txt"
ENGINES = ("onnxruntime", "openvino", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle in a peer's words: its graph, and the transform before it. source: for pixvec's `--model`."""

    name: str
    source: str
    graph: str
    side: int
    short_side: int
    dimensions: int
    interpolation: str = "bicubic"


@dataclass(frozen=True, slots=True)
class Running:
    """A started server. pid: the root of its process tree."""

    target: str
    protocol: wire.Protocol
    pid: int


class System(Protocol):
    """A server that can be measured. tuned: set up as its users would not without reading on."""

    @property
    def name(self) -> str:
        """Short, for tables and the command line."""

    @property
    def settings(self) -> str:
        """What it was started with, for people."""

    @property
    def tuned(self) -> bool:
        """Whether it has better than its users' settings."""

    @property
    def width(self) -> str:
        """Its precision: fp32 or bf16."""

    def install(self) -> None:
        """Make its virtual environment, once."""

    def start(self, model: Model) -> AbstractContextManager[Running]:
        """Serve a model until the block ends."""


def model(source: str) -> Model:
    """Return the model of a `--model` source, its bundle made when the cache has none."""
    bundle = provision.obtain(provision.parse(source), CACHE)
    spec = spec_of(bundle.manifest.preprocess)
    if (spec.mode, spec.antialias, spec.height) != ("short_side_crop", True, spec.width):
        raise ValueError(f"{source}: the peers' programs crop a square, which is not its transform")
    [size] = bundle.manifest.outputs["embedding"].shape
    graph = str(bundle.folder / bundle.manifest.graph_of("image"))
    return Model(bundle.manifest.name, source, graph, spec.height, spec.short_side, size, spec.interpolation)


def pinned(*names: str) -> list[str]:
    """Return the requirements of packages that constraints.txt pins."""
    pins = dict(line.split("==") for line in _CONSTRAINTS.read_text().split() if "==" in line)
    return [f"{name}=={pins[name]}" for name in names]


def venv(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of a peer's own environment, made anew when its requirements have changed."""
    folder = PEERS / name
    marker, wanted = folder / "installed", "\n".join(requirements)
    python = folder / "bin" / "python"
    if not marker.is_file() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        marker.write_text(wanted)
    return python


def free_port() -> int:
    """Return a port of loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def settings(model: Model, **choices: object) -> dict[str, str]:
    """Return the environment of a peer's program: the model and what is chosen for it."""
    return {
        "PYTHONPATH": str(PROGRAMS),
        "PEER": json.dumps({**asdict(model), **choices}),
    }


@contextmanager
def process(
    command: Sequence[object], env: Mapping[str, str], target: str, protocol: wire.Protocol, name: str
) -> Iterator[Running]:
    """Run a server from its first answer to the block's end, and then kill it with all its children."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            root = subprocess.Popen(
                [str(word) for word in command],
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **env},
            )
        try:
            _await_answer(root, log, target, protocol, name)
            yield Running(target, protocol, root.pid)
        finally:
            kill(root)


def _await_answer(
    root: subprocess.Popen[bytes], log: Path, target: str, protocol: wire.Protocol, name: str
) -> None:
    request = WIRES[protocol].encode(name, [jpeg("rocket.jpg")])
    deadline = time.monotonic() + START_S
    said: object = None
    while time.monotonic() < deadline and root.poll() is None:
        try:
            [answer] = load.ask(target, protocol, [request])
        except load.CallError as exc:
            said = exc
        else:
            if all(vector is not None for vector in WIRES[protocol].decode(answer)):
                return
        time.sleep(0.2)
    raise RuntimeError(f"no answer of {name} ({said}): {log.read_text()[-12_000:]}")


def kill(root: subprocess.Popen[bytes]) -> None:
    """End a process and all its descendants, and nothing else."""
    try:
        tree = [psutil.Process(root.pid), *psutil.Process(root.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = []
    for one in tree:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=10)
    root.wait(10)
