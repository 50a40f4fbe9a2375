"""Embeds files and texts with a bundle in this process: what a server does, without one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from pixvec_server import vectors
from pixvec_server.backends.base import BackendOptions
from pixvec_server.backends.select import choose, factory
from pixvec_server.cpu import available_cpus
from pixvec_server.errors import ConfigError, RequestError
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.served import build_id
from pixvec_server.spec import EMBEDDING
from pixvec_server.tokenizer import TextTokenizer
from pixvec_server.types import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pixvec_server.backends.base import Batch
    from pixvec_server.bundle import Bundle
    from pixvec_server.manifest import OutputRecord
    from pixvec_server.types import F32, U8

_BATCH = 8
_PIXELS_IN_HAND = 200_000_000
_DECODING = DecodeOptions("exact")
_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pjpeg", ".png", ".tif", ".tiff", ".webp"
}  # fmt: skip


@dataclass(slots=True)
class Embedded:
    """Vectors (n, …) by output of the files whose indexes are `rows`; `failed` says of the others why."""

    values: dict[str, F32]
    rows: list[int]
    failed: dict[int, str] = field(default_factory=dict)


class Offline:
    """A bundle on the backend that `serve` would choose for it. Use it as a context."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.bundle, self.manifest = bundle, manifest
        self.placement = choose("auto", "auto", "auto", stored=manifest.precision)
        self._spec = spec_of(manifest.preprocess)
        self._decoder = Decoder(ImageLimits(), _DECODING, PixelBudget(_PIXELS_IN_HAND))
        text = manifest.text
        self._tokenizer = (
            None if text is None else TextTokenizer(bundle.read(text.tokenizer.file), text.tokenizer)
        )
        options = BackendOptions(threads=available_cpus(), instances=1)
        self._backend = factory(self.placement.kind)(bundle, self.placement, options)

    def __enter__(self) -> Self:
        """Return itself: the backend is loaded already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the backend."""
        self._backend.close()

    def build(self, output: str = EMBEDDING) -> str:
        """Name the recipe of an output's vectors, as a server of this bundle in its default mode does."""
        return build_id(self.manifest.outputs[output].space, self.placement, _DECODING.mode, self._spec)

    def pixels(self, data: bytes) -> U8:
        """Decode a file and fit it: (height, width, 3) uint8 RGB. Raises RequestError."""
        with ExitStack() as held:
            return fit(self._decoder.decode(data, held, None), WHOLE, self._spec)

    def tokens(self, texts: Iterable[str]) -> Batch:
        """Turn texts into a text tower's input: (n, context) int64."""
        assert self._tokenizer is not None
        return np.stack([self._tokenizer.encode(text).ids for text in texts])

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> dict[str, F32]:
        """Run a tower over any number of items: float32 (n, …) by output, as the graph gives them."""
        parts = [
            self._backend.run(tower, batch[at : at + _BATCH], outputs) for at in range(0, len(batch), _BATCH)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def embed_images(
        self,
        files: Sequence[Path | bytes],
        outputs: Sequence[str],
        on_done: Callable[[int], None] = lambda _count: None,
    ) -> Embedded:
        """Embed image files; one that cannot be read or decoded fails alone.

        `on_done` is told of each batch how many files it had.
        """
        done = Embedded({}, [])
        parts: list[dict[str, F32]] = []
        with ThreadPoolExecutor(available_cpus()) as threads:
            for at in range(0, len(files), _BATCH):
                read = list(threads.map(self._read, files[at : at + _BATCH]))
                good = {at + i: found for i, found in enumerate(read) if not isinstance(found, str)}
                done.failed |= {at + i: found for i, found in enumerate(read) if isinstance(found, str)}
                if good:
                    done.rows += good
                    parts.append(self.run("image", np.stack(list(good.values())), outputs))
                on_done(len(read))
        for name in outputs:
            empty = np.empty((0, *self.manifest.outputs[name].shape), np.float32)
            done.values[name] = np.concatenate([empty, *(part[name] for part in parts)])
        return done

    def embed_texts(self, texts: Sequence[str], outputs: Sequence[str]) -> dict[str, F32]:
        """Embed texts: float32 (n, …) by output, as the graph gives them."""
        return self.run("text", self.tokens(texts), outputs)

    def _read(self, file: Path | bytes) -> U8 | str:
        """Return a file's pixels, or what is wrong with it."""
        try:
            return self.pixels(file.read_bytes() if isinstance(file, Path) else file)
        except OSError as exc:
            return exc.strerror or "cannot be read"
        except RequestError as exc:
            return exc.message


def as_served(values: F32, record: OutputRecord) -> F32:
    """Give rows (n, size) the length that a server sends them with unless it is asked otherwise."""
    return np.stack([vectors.unit(row) for row in values]) if record.normalized else values


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and of folders every image below. Raises ConfigError for neither."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
            found += [file for file in below if file.is_file()]
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{path}: no such file or folder")
    return found
