"""Answers of a pipeline, made by hand."""

from __future__ import annotations

import struct

from pixvec_server.errors import RequestError
from pixvec_server.types import Embedded, Embedding, Encoding, Source, Vector


def embedded(*rows: Vector | RequestError) -> Embedded:
    """Return the answer to an image with these outcomes."""
    embeddings = tuple(Embedding(0, target, row) for target, row in enumerate(rows))
    return Embedded(embeddings, Source(1, 1, "png"))


def vector(*numbers: float) -> Vector:
    """Return a float32 vector."""
    return Vector(Encoding.FLOAT32, (len(numbers),), struct.pack(f"<{len(numbers)}f", *numbers))
