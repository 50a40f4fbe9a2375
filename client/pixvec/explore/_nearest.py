"""Which rows of a dataset are nearest: to each other, and to an image or a text that is not in it."""

import threading
from typing import NamedTuple

import numpy as np

from pixvec._client import Client
from pixvec._types import Array, EmbedOptions
from pixvec.dataset import Dataset
from pixvec.dataset.neighbours import nearest

# What texts have an output for, whatever outputs images have beside it.
_OUTPUT_OF_TEXTS = "embedding"


class Near(NamedTuple):
    """Rows, the nearest first, and their cosines."""

    rows: list[int]
    similarities: list[float]


class Neighbourhoods:
    """Compares vectors with those of all rows by cosine, exactly."""

    def __init__(self, dataset: Dataset) -> None:
        self._vectors = dataset.vectors
        self._lengths: Array | None = None
        self._lock = threading.Lock()

    def of_row(self, row: int, count: int) -> Near:
        """Return the rows that are nearest to a row, without itself."""
        similarities = self._similarities(self._vectors[row])
        similarities[row] = -np.inf
        return _best(similarities, min(count, len(similarities) - 1))

    def of_vector(self, vector: Array, count: int) -> Near:
        """Return the rows that are nearest to a vector (D,)."""
        return _best(self._similarities(np.asarray(vector, np.float32)), count)

    def _similarities(self, vector: Array) -> Array:
        # One at a time: a product takes all processors by itself, and many at once wait for each other.
        with self._lock:
            if self._lengths is None:
                self._lengths = np.linalg.norm(self._vectors, axis=1)
            products = self._vectors @ vector
        lengths = self._lengths * np.linalg.norm(vector)
        cosines: Array = products / np.maximum(lengths, np.finfo(np.float32).tiny)
        return cosines


class Search:
    """Embeds what is searched for as the dataset was embedded. Its methods raise what the client raises."""

    def __init__(self, dataset: Dataset, client: Client) -> None:
        """Ask the server whether the dataset's model takes texts."""
        self._client = client
        origin = dataset.about.get("origin") or {}
        self._options = EmbedOptions(
            model=origin.get("model", ""),
            output=origin.get("output", ""),
            dimensions=origin.get("dimensions"),
            normalize=origin.get("normalized"),
            space=origin.get("space", ""),
        )
        named = origin.get("output", "") in {"", _OUTPUT_OF_TEXTS}
        self.takes_texts = named and client.model(origin.get("model", "")).max_text_tokens > 0

    def image(self, image: bytes) -> Array:
        """Return the vector (D,) of an encoded image."""
        return self._client.embed(image, **self._options)

    def text(self, text: str) -> Array:
        """Return the vector (D,) of a text."""
        return self._client.embed_text(text, **self._options)


def neighbours_of(dataset: Dataset, count: int) -> Array | None:
    """Return the nearest other rows of each row, (N, k) with k at most `count`; None: there is one row only.

    Raises InputError for vectors that are not finite, and above 50,000 rows where usearch is not installed.
    """
    if len(dataset.rows) < 2:
        return None
    found: Array = nearest(dataset.vectors, count).indices
    return found


def _best(similarities: Array, count: int) -> Near:
    rows = np.argsort(-similarities, kind="stable")[:count]
    return Near(rows.tolist(), similarities[rows].tolist())
