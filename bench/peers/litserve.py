"""LitServe 0.2.19: FastAPI in front of a worker process."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.peers.base import ENGINES, PROGRAMS, Model, Running, free_port, pinned, process, settings, venv

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "0.2.19"
_REQUIREMENTS = [*pinned(*ENGINES, "numpy"), f"litserve=={VERSION}"]


@dataclass(frozen=True, slots=True)
class LitServe:
    """One worker, batches of up to 32 after at most 5 ms, onnxruntime and Pillow."""

    @property
    def name(self) -> str:
        """See `System.name`."""
        return "litserve"

    @property
    def settings(self) -> str:
        """See `System.settings`."""
        return f"LitServe {VERSION}, onnxruntime fp32, Pillow"

    @property
    def tuned(self) -> bool:
        """See `System.tuned`."""
        return False

    @property
    def width(self) -> str:
        """See `System.width`."""
        return "fp32"

    def install(self) -> None:
        """See `System.install`."""
        venv("litserve", _REQUIREMENTS)

    @contextmanager
    def start(self, model: Model) -> Iterator[Running]:
        """See `System.start`."""
        port = free_port()
        command = [venv("litserve", _REQUIREMENTS), PROGRAMS / "litserve_app.py", port]
        env = settings(model, engine="onnxruntime", reader="two steps")
        with process(command, env, f"127.0.0.1:{port}", "http", model.name) as running:
            yield running
