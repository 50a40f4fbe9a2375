"""The images of a dataset's rows, upright and small; nothing else can be read through it."""

import io
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import numpy as np

from pixvec._errors import InputError, TooLargeError
from pixvec._fetch import fetch
from pixvec._inputs import URL_MAX_BYTES, URL_TIMEOUT_S
from pixvec._orientation import upright, upright_size

from ._originals import Original, Originals, Url
from ._rows import Row

try:
    from PIL import Image as Pillow
except ImportError as missing:
    raise InputError("thumbnails need Pillow: pip install 'pixvec[dataset]'") from missing

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Size: TypeAlias = tuple[int, int]
Pillow.init()
# None of their readers runs a program, as that of EPS does; Pillow need not be built with all of them.
_SAFE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "AVIF")
_FORMATS = tuple(name for name in _SAFE if name in Pillow.OPEN)
_QUALITY = 85
_FETCHED_BYTES = 64 << 20
_AHEAD = 16
# What Pillow raises for broken files.
_ERRORS = (
    OSError,
    RuntimeError,  # of AVIF
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    Pillow.DecompressionBombError,
    Pillow.DecompressionBombWarning,
)


class Images:
    """Reads the images of rows, by their index; each method raises InputError for one that cannot be read.

    about: what dataset.json tells. fetches: whether URLs are asked for. What they held last is kept, 64 MiB
    at most.
    """

    def __init__(self, rows: Sequence[Row], about: Mapping[str, Any], *, fetches: bool = True) -> None:
        self._rows = rows
        self._originals = Originals((about.get("source") or {}).get("kind", ""))
        self._fetches = fetches
        self._fetched = Cache(_FETCHED_BYTES)

    def original(self, index: int) -> Original:
        """Return what a row's image is made of; archives are read fastest in the order of the rows."""
        return self._originals.of(self._rows[index])

    def size(self, index: int) -> Size:
        """Return width and height of the whole upright image."""
        return self._read(index, self.original(index), upright_size)

    def whole(self, index: int, px: int) -> bytes:
        """Return the whole image as a JPEG of at most `px` by `px`."""
        return self._read(index, self.original(index), lambda image: as_jpeg(_upright(image, px), px))

    def thumb(self, index: int, px: int, original: Original | None = None) -> bytes:
        """Return what a row is of, its object or the whole image, as a JPEG of at most `px` by `px`.

        original: its own, where it is at hand.
        """
        row = self._rows[index]
        of = self.original(index) if original is None else original
        most = px if row.box is None else None  # a box is in pixels of the image as it is
        return self._read(index, of, lambda image: as_jpeg(cut(_upright(image, most), row), px))

    def export(
        self, indices: Sequence[int], original: Original, image_px: int, thumb_px: int
    ) -> tuple[Size, bytes, list[bytes]]:
        """Return the size of the one image that these rows lie in, the whole as a JPEG, and their thumbnails.

        original: of the first of them.
        """

        def all_of(image: "Image") -> tuple[Size, bytes, list[bytes]]:
            size = upright_size(image)
            marked = any(self._rows[i].box for i in indices)  # in pixels of the image as it is
            upright = _upright(image, None if marked else max(image_px, thumb_px))
            thumbs = [as_jpeg(cut(upright, self._rows[i]), thumb_px) for i in indices]
            return size, as_jpeg(upright, image_px), thumbs

        return self._read(indices[0], original, all_of)

    def close(self) -> None:
        """Close the archives that were opened."""
        self._originals.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, index: int, original: Original, use: Callable[["Image"], T]) -> T:
        uri = self._rows[index].uri
        try:
            with self._opened(original) as image:
                return use(image)
        except TooLargeError as error:
            raise InputError(error.message) from error
        except _ERRORS as error:
            raise InputError(f"{uri}: {error}") from error

    def _opened(self, original: Original) -> "Image":
        if isinstance(original, np.ndarray):
            return Pillow.fromarray(original)
        if isinstance(original, bytes):
            return Pillow.open(io.BytesIO(original), formats=_FORMATS)
        if isinstance(original, Url):
            return Pillow.open(io.BytesIO(self._fetch(original)), formats=_FORMATS)
        if not original.is_file():  # a pipe would be waited for
            raise InputError(f"{original}: no file of this machine")
        return Pillow.open(original, formats=_FORMATS)

    def _fetch(self, url: str) -> bytes:
        if not self._fetches:
            raise InputError(f"{url}: it is not asked for, since fetch is False")
        return self._fetched.get(url, lambda: fetch(url, timeout_s=URL_TIMEOUT_S, max_bytes=URL_MAX_BYTES))


class Cache:
    """Keeps what was made last, up to so many bytes; safe to share among threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return what is kept under a key, made now if there is nothing."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self.bytes += len(made) - len(self._kept.pop(key, b""))
            self._kept[key] = made
            while self.bytes > self.most_bytes:
                self.bytes -= len(self._kept.popitem(last=False)[1])
        return made


def in_threads(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield what tasks return, in their order; a few are taken ahead of what is asked for, and no more."""
    with ThreadPoolExecutor() as pool:
        running: deque[Future[T]] = deque()
        for task in tasks:
            running.append(pool.submit(task))
            if len(running) > _AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def cut(upright: "Image", row: Row) -> "Image":
    """Return a row's part of its upright image: the box as far as it lies in the image, or all of it."""
    if row.box is None:
        return upright
    left, top, right, bottom = row.box
    box = max(0, left), max(0, top), min(upright.width, right), min(upright.height, bottom)
    return upright.crop(box) if box[0] < box[2] and box[1] < box[3] else upright


def as_jpeg(image: "Image", px: int) -> bytes:
    """Return an image as a JPEG of at most `px` by `px`, on white where it lets through."""
    small = _opaque(image)
    small.thumbnail((px, px))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _opaque(image: "Image") -> "Image":
    if image.mode.startswith("I"):  # 16 bits
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Pillow.new("RGBA", image.size, "white")
    return Pillow.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _upright(image: "Image", px: int | None = None) -> "Image":
    if px is not None:
        image.draft("RGB", (px, px))  # lets a JPEG's decoder leave out what is not needed
    return upright(image)
