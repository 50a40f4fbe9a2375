"""mosec in two stages: two processes read pictures, one embeds them in batches."""
# ruff: noqa: ANN401 - these are the types of libraries that are not here

from __future__ import annotations

from typing import Any

import embedding  # type: ignore[import-not-found]  # of the peers' environments, as the next
import numpy as np
from mosec import Server, Worker  # type: ignore[import-not-found]
from mosec.errors import ValidationError  # type: ignore[import-not-found]


class Read(Worker):  # type: ignore[misc]
    """A file to pixels."""

    def __init__(self) -> None:
        self._read = embedding.reader()

    def deserialize(self, data: bytes) -> bytes:
        """Take the request's body as it is."""
        return data

    def forward(self, data: bytes) -> Any:
        """Read one picture."""
        try:
            return self._read(data)
        except Exception as exc:
            raise ValidationError(str(exc)) from exc


class Embed(Worker):  # type: ignore[misc]
    """Pixels to vectors."""

    def __init__(self) -> None:
        self._engine = embedding.engine()

    def forward(self, data: list[Any]) -> list[Any]:
        """Embed a batch."""
        return list(self._engine(np.stack(data)))

    def serialize(self, data: Any) -> bytes:
        """Answer float32 as it is."""
        return data.tobytes()  # type: ignore[no-any-return]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Read, num=embedding.SETTINGS["decoders"])
    server.append_worker(Embed, max_batch_size=32, max_wait_time=5)
    server.run()
