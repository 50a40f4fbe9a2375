"""Triton Inference Server 2.51 with its Python backend, the one that a wheel carries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from bench.peers.base import (
    ENGINES,
    PEERS,
    PROGRAMS,
    Model,
    Running,
    free_port,
    pinned,
    process,
    settings,
    venv,
)
from pixvec_server.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "2.51"
_WHEEL = "nvidia-pytriton==0.7.0"
_FOLDER = PEERS / "tritonserver"
_BATCHING = "max_batch_size: 32\ndynamic_batching { max_queue_delay_microseconds: 2000 }\n"
# Its stub was built before numpy 2, whose arrays it misreads.
_REQUIREMENTS = [*pinned(*ENGINES), "numpy==1.26.4"]
Variant = Literal["users", "tuned", "null"]


@dataclass(frozen=True, slots=True)
class Triton:
    """Triton in one of its variants.

    users: onnxruntime and Pillow, one picture read after the other. tuned: OpenVINO and libjpeg-turbo, a
    batch read side by side, the best of a handful of instances, threads and decoders. null: no
    compute at all.
    """

    variant: Variant = "users"
    precision: str = "fp32"
    instances: int = 1
    threads: int = field(default_factory=available_cpus)
    decoders: int = field(default_factory=available_cpus)

    @property
    def name(self) -> str:
        """See `System.name`."""
        return {"users": "triton", "tuned": f"triton tuned {self.precision}", "null": "triton null"}[
            self.variant
        ]

    @property
    def settings(self) -> str:
        """See `System.settings`."""
        if self.variant == "null":
            return f"Triton {VERSION} Python backend, no compute"
        how = (
            "onnxruntime fp32, Pillow"
            if self.variant == "users"
            else f"OpenVINO {self.precision}, simplejpeg"
        )
        return f"Triton {VERSION} Python backend, {how}"

    @property
    def tuned(self) -> bool:
        """See `System.tuned`."""
        return self.variant == "tuned"

    @property
    def width(self) -> str:
        """See `System.width`."""
        return self.precision if self.tuned else "fp32"

    def install(self) -> None:
        """See `System.install`."""
        venv("triton", _REQUIREMENTS)
        _unpack()

    @contextmanager
    def start(self, model: Model) -> Iterator[Running]:
        """See `System.start`."""
        python = venv("triton", _REQUIREMENTS)
        with TemporaryDirectory() as folder:
            _write_repository(Path(folder), model, self)
            port = free_port()
            command = [_FOLDER / "bin" / "tritonserver", *_flags(Path(folder), port)]
            target = f"127.0.0.1:{port}"
            env = self._environment(python, model)
            with process(command, env, target, "infer", model.name) as running:
                yield running

    def _environment(self, python: Path, model: Model) -> dict[str, str]:
        tuned = self.variant == "tuned"
        chosen = settings(
            model,
            engine="openvino" if tuned else "onnxruntime",
            reader="one box" if tuned else "two steps",
            precision=self.precision,
            threads=self.threads,
            decoders=self.decoders if tuned else 1,
        )
        libraries = (_FOLDER / "libs", sysconfig.get_config_var("LIBDIR"))
        return {
            **chosen,
            "VIRTUAL_ENV": str(python.parents[1]),
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }


def _flags(repository: Path, port: int) -> list[str]:
    local = [f"--{kind}-address=127.0.0.1" for kind in ("grpc", "http", "metrics")]
    ports = [f"--grpc-port={port}", f"--http-port={free_port()}", f"--metrics-port={free_port()}"]
    places = [f"--model-repository={repository}", f"--backend-directory={_FOLDER / 'backends'}"]
    return [*places, *local, *ports, "--model-control-mode=none"]


def _write_repository(repository: Path, model: Model, triton: Triton) -> None:
    folder = repository / model.name
    (folder / "1").mkdir(parents=True)
    null = triton.variant == "null"
    shutil.copy(PROGRAMS / ("triton_null.py" if null else "triton_model.py"), folder / "1" / "model.py")
    shutil.copy(PROGRAMS / "embedding.py", folder / "1")
    side, size = model.side, 4 if null else model.dimensions
    inputs = [
        '{ name: "image" data_type: TYPE_STRING dims: [1] optional: true }',
        f'{{ name: "pixels" data_type: TYPE_UINT8 dims: [{side}, {side}, 3] optional: true }}',
    ]
    instances = triton.instances if triton.variant == "tuned" else 1
    (folder / "config.pbtxt").write_text(
        f'name: "{model.name}"\nbackend: "python"\n{_BATCHING}'
        f"input [ {', '.join(inputs)} ]\n"
        f'output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [{size}] }} ]\n'
        f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]\n"
    )


def _unpack() -> None:
    """Fetch the wheel and keep its server, its Python backend with this interpreter's stub, its libraries."""
    marker = _FOLDER / "installed"
    if marker.is_file() and marker.read_text() == _WHEEL:
        return
    shutil.rmtree(_FOLDER, ignore_errors=True)
    with TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, _WHEEL]
        subprocess.run(pip, check=True)
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(scratch)
        _keep(Path(scratch))
    marker.write_text(_WHEEL)


def _keep(unpacked: Path) -> None:
    server = unpacked / "pytriton" / "tritonserver"
    backend = _FOLDER / "backends" / "python"
    stubs = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(server / "bin", _FOLDER / "bin")
    shutil.copytree(server / "backends" / "python", backend)
    shutil.copytree(stubs, backend, dirs_exist_ok=True)
    shutil.copytree(unpacked / "nvidia_pytriton.libs", _FOLDER / "libs")
    for program in (_FOLDER / "bin" / "tritonserver", backend / "triton_python_backend_stub"):
        program.chmod(0o755)
