"""mosec 0.9.8: a Rust front, Python workers in stages."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.peers.base import ENGINES, PROGRAMS, Model, Running, free_port, pinned, process, settings, venv
from pixvec_server.cpu import available_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "0.9.8"
_REQUIREMENTS = [*pinned(*ENGINES, "numpy"), f"mosec=={VERSION}"]

# Its own limit of 3 s would refuse what the others answer late.
_FLAGS = ("--address", "127.0.0.1", "--timeout", "60000")


@dataclass(frozen=True, slots=True)
class Mosec:
    """Two processes that read pictures, then batches of up to 32 after at most 5 ms.

    With a precision: OpenVINO and libjpeg-turbo in the place of onnxruntime and Pillow.
    """

    precision: str = ""

    @property
    def name(self) -> str:
        """See `System.name`."""
        return f"mosec tuned {self.precision}" if self.precision else "mosec"

    @property
    def settings(self) -> str:
        """See `System.settings`."""
        how = f"OpenVINO {self.precision}, simplejpeg" if self.precision else "onnxruntime fp32, Pillow"
        return f"mosec {VERSION}, 2 decode workers, {how}"

    @property
    def tuned(self) -> bool:
        """See `System.tuned`."""
        return bool(self.precision)

    @property
    def width(self) -> str:
        """See `System.width`."""
        return self.precision or "fp32"

    def install(self) -> None:
        """See `System.install`."""
        venv("mosec", _REQUIREMENTS)

    @contextmanager
    def start(self, model: Model) -> Iterator[Running]:
        """See `System.start`."""
        port = free_port()
        python = venv("mosec", _REQUIREMENTS)
        command = [python, PROGRAMS / "mosec_app.py", *_FLAGS, "--port", port]
        env = settings(
            model,
            engine="openvino" if self.precision else "onnxruntime",
            reader="one box" if self.precision else "two steps",
            precision=self.precision,
            threads=available_cpus(),
            decoders=2,
        )
        with process(command, env, f"127.0.0.1:{port}", "http", model.name) as running:
            yield running
