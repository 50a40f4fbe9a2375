"""Which rows of a dataset are nearest to an image that is not in it."""

import threading
from typing import Any

import numpy as np

from pixvec._client import Client
from pixvec._types import Array
from pixvec.dataset import Dataset


class Search:
    """Embeds images as the dataset was embedded, and compares them with every row by cosine."""

    def __init__(self, dataset: Dataset, client: Client) -> None:
        self._vectors, self._client = dataset.vectors, client
        self._origin: dict[str, Any] = dataset.about.get("origin") or {}
        self._lengths: Array | None = None
        self._lock = threading.Lock()

    def nearest(self, image: bytes, count: int) -> tuple[list[int], list[float]]:
        """Return the nearest rows, the first first, and their similarities. Raises what the client raises."""
        origin = self._origin
        vector = self._client.embed(
            image,
            model=origin.get("model", ""),
            output=origin.get("output", ""),
            dimensions=origin.get("dimensions"),
            normalize=origin.get("normalized"),
            space=origin.get("space", ""),
        )
        similarities = self._similarities(np.asarray(vector, np.float32))
        rows = np.argsort(-similarities, kind="stable")[:count]
        return rows.tolist(), similarities[rows].tolist()

    def _similarities(self, vector: Array) -> Array:
        with self._lock:
            if self._lengths is None:
                self._lengths = np.linalg.norm(self._vectors, axis=1)
        lengths = self._lengths * np.linalg.norm(vector)
        cosines: Array = self._vectors @ vector / np.maximum(lengths, np.finfo(np.float32).tiny)
        return cosines
