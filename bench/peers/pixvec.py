"""pixvec itself, with flags."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.servers import serve

from bench.peers.base import Model, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench import wire


@dataclass(frozen=True, slots=True)
class Pixvec:
    """Our server. protocol: the one that its plain unary rows are measured in."""

    precision: str = "fp32"
    flags: tuple[str, ...] = ()
    protocol: wire.Protocol = "embed"

    @property
    def name(self) -> str:
        """See `System.name`."""
        return " ".join(("pixvec", self.precision, *self.flags))

    @property
    def settings(self) -> str:
        """See `System.settings`."""
        return "pixvec `" + " ".join(("--precision", self.precision, *self.flags)) + "`"

    @property
    def tuned(self) -> bool:
        """See `System.tuned`."""
        return False

    @property
    def width(self) -> str:
        """See `System.width`."""
        return self.precision

    def install(self) -> None:
        """See `System.install`."""

    @contextmanager
    def start(self, model: Model) -> Iterator[Running]:
        """See `System.start`."""
        flags = ("--model", model.source, "--precision", self.precision, *self.flags)
        with serve(*flags) as server:
            yield Running(server.target, self.protocol, server.process.pid)
