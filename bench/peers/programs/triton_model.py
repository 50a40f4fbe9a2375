"""A model of Triton's Python backend: files or pixels in, vectors out. Its batches are Triton's own."""
# ruff: noqa: ANN401 - these are the types of libraries that are not here

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import embedding  # type: ignore[import-not-found]  # of the peers' environments, as the next
import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]


class TritonPythonModel:
    """See Triton's documentation of its Python backend."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002
        """Load the graph."""
        self._engine, self._read = embedding.engine(), embedding.reader()
        threads = embedding.SETTINGS["decoders"]
        self._map: Any = ThreadPoolExecutor(threads).map if threads > 1 else map

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request: its vectors, or its own error."""
        pixels = list(self._map(self._pixels, requests))
        vectors = iter(self._embed([one for one in pixels if not isinstance(one, Exception)]))
        return [
            triton.InferenceResponse([], triton.TritonError(str(one)))
            if isinstance(one, Exception)
            else triton.InferenceResponse([triton.Tensor("embedding", next(vectors))])
            for one in pixels
        ]

    def _embed(self, pixels: list[Any]) -> list[Any]:
        if not pixels:
            return []
        ends = np.cumsum([len(one) for one in pixels])
        return np.split(self._engine(np.concatenate(pixels)), ends[:-1])

    def _pixels(self, request: Any) -> Any:
        given = triton.get_input_tensor_by_name(request, "pixels")
        if given is not None:
            return given.as_numpy()
        files = triton.get_input_tensor_by_name(request, "image").as_numpy().ravel()
        try:
            return np.stack([self._read(file) for file in files])
        except Exception as exc:  # noqa: BLE001 - a file of any kind fails in any way
            return exc
