"""The transfer-learning script `generate_embedding`: labelled images in, a table of vectors out.

>>> written = generate_embedding(csv_file="images.csv", trained_model="VGG16")   # doctest: +SKIP
>>> written.shape, written.files                                                 # doctest: +SKIP
((1284, 4096), (PosixPath('transferfeature_data.npy'), PosixPath('transferfeature_labels.npy')))

Needs `pip install 'pixvec[dataset]'`.
"""

import argparse
import csv
import errno
import io
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from pixvec._client import Client
from pixvec._errors import (
    AuthenticationError,
    BadOptionError,
    DeadlineError,
    InputError,
    ModelNotFoundError,
    OverloadedError,
    PixvecError,
    SpaceMismatchError,
    UnavailableError,
)
from pixvec._inputs import ImageLike
from pixvec._sources import Unreadable
from pixvec._types import Array

from . import Served, whole_file

if TYPE_CHECKING:
    from pixvec.dataset import Picture, Source

# Told how many images are done, and of how many.
Progress: TypeAlias = Callable[[int, int | None], object]

MODELS = ("VGG16", "VGG19", "ResNet50", "MobileNet", "Xception", "InceptionV3", "InceptionResNetV2")
IMAGENET, UNTRAINED = "imagenet", "None"
_SOME_FAILED = 3
_URL = re.compile(r"(?i)(https?:|file://)")
# Of one request, unless a batch size is given; the server makes its own batches of what arrives.
_IMAGES = 32
# Errors that every further image would meet too.
_NOT_THE_IMAGES = (
    AuthenticationError,
    DeadlineError,
    ModelNotFoundError,
    OverloadedError,
    SpaceMismatchError,
    UnavailableError,
)


class Failure(NamedTuple):
    """An image that is not among the vectors, and why."""

    image: str
    why: str


@dataclass(frozen=True, slots=True)
class Written:
    """What a run wrote: the files, the shape (N, D) of the vectors, and the images that are not in them."""

    files: tuple[Path, ...]
    shape: tuple[int, int]
    failed: tuple[Failure, ...]


class _Table(NamedTuple):
    """The vectors (N, D) of the source's `rows` that have one, their labels, and what failed."""

    rows: list[int]
    labels: list[str]
    vectors: Array
    failed: tuple[Failure, ...]


def generate_embedding(
    *,
    csv_file: str | os.PathLike[str] | None = None,
    npy_data: str | os.PathLike[str] | None = None,
    npy_labels: str | os.PathLike[str] | None = None,
    save_folder_path: str | os.PathLike[str] = ".",
    save_name: str = "transferfeature",
    trained_model: str = "VGG16",
    save_csv: bool = False,
    image_height: int = 90,
    image_width: int = 160,
    image_channels: int = 3,
    nn_weights: str | None = IMAGENET,
    batch_size: int = 1,
    client: Client | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Written:
    """Embed the images of a csv file, or of a pair of npy files, and write the vectors and their labels.

    csv_file: rows of label and path, without a header; paths are relative to the file. npy_data, npy_labels:
    (N, H*W*C) images of image_height, image_width and image_channels, and N labels. trained_model: one of
    MODELS. nn_weights: "imagenet", or None for random ones. batch_size: images of one request; 1: as many as
    suit the server. client: whose server is asked; None: see `pixvec.compat`. progress: is told how many
    images are done, and of how many.

    Writes {save_name}_data.npy (N, D) float32 and {save_name}_labels.npy (N, 1), or with `save_csv`
    {save_name}.csv with the header Class,n0,...; in the order of the images. An image that does not work is
    left out and told of in `failed`. Raises BadOptionError for options that do not fit together and a place
    where nothing can be written, InputError for a source that cannot be read and when no image works,
    ModelNotFoundError when the server does not serve the model.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise BadOptionError(f"batch_size = {batch_size!r}: give a whole number of 1 or more")
    source = _source(csv_file, npy_data, npy_labels, (image_height, image_width, image_channels))
    served = _served(trained_model, nn_weights, client)
    files = _files(save_folder_path, save_name, as_csv=save_csv)
    table = _embed(served, source, _IMAGES if batch_size == 1 else int(batch_size), progress)
    labels = _labels_of(table.labels) if npy_labels is None else _array_of(npy_labels)[table.rows]
    write = _write_csv if save_csv else _write_npy
    write(files, table.vectors, labels.reshape(-1, 1))
    return Written(files, (table.vectors.shape[0], table.vectors.shape[1]), table.failed)


@contextmanager
def _unseen(_what: str) -> Iterator[Progress]:
    yield lambda _done, _total: None


def main(
    argv: Sequence[str] | None = None,
    bar: Callable[[str], AbstractContextManager[Progress]] = _unseen,
) -> int:
    """Run the script's command line; None: this process's arguments.

    bar: shows how far the run is: it is told what is done, and gives what `progress` is. Returns 0, 3 when
    some images failed (stderr says which), or 1 for an error; wrong flags exit with 2.
    """
    given = vars(_parser().parse_args(argv))
    try:
        with bar("embedding") as progress:
            written = generate_embedding(**given, progress=progress)
    except (PixvecError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for failure in written.failed:
        sys.stderr.write(f"failed: {failure.image}: {failure.why}\n")
    sys.stdout.write(f"{written.shape} {' '.join(map(str, written.files))}\n")
    return _SOME_FAILED if written.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate-embedding",
        description="Write embeddings of labelled images. The server is that of the variable PIXVEC_TARGET.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-csv", "--csv_file", help="rows of label and path, without a header")
    add("-data", "--npy_data", help="npy file of images as rows of numbers; needs -labels")
    add("-labels", "--npy_labels", help="npy file of the images' labels; needs -data")
    add("-dir", "--save_folder_path", default=".", help="folder of what is written (here)")
    add(
        "-n",
        "--save_name",
        nargs="?",
        default="transferfeature",
        const="transferfeature",
        help="how the files' names begin (%(default)s)",
    )
    add("-tm", "--trained_model", default="VGG16", help=f"{', '.join(MODELS)} (%(default)s)")
    add("-to-csv", "--save_csv", action="store_true", help="one csv file in place of two npy files")
    add("-he", "--image_height", type=int, default=90, help="of the images of -data (%(default)s)")
    add("-w", "--image_width", type=int, default=160, help="of the images of -data (%(default)s)")
    add("-c", "--image_channels", type=int, default=3, help="of the images of -data (%(default)s)")
    add("-weights", "--nn_weights", default=IMAGENET, help="None: random weights (%(default)s)")
    add("-b", "--batch_size", type=int, default=1, help="images of one request; 1: as suits the server")
    return parser


def _served(trained_model: str, nn_weights: str | None, client: Client | None) -> Served:
    names = {name.lower(): f"transfer-{name.lower()}" for name in MODELS}
    if not isinstance(trained_model, str) or trained_model.lower() not in names:
        raise ModelNotFoundError(f"trained_model = {trained_model!r}: give one of {', '.join(MODELS)}")
    if nn_weights not in {IMAGENET, UNTRAINED, None}:
        raise BadOptionError(f"nn_weights = {nn_weights!r}: give {IMAGENET!r}, or None for random weights")
    name, untrained = names[trained_model.lower()], nn_weights != IMAGENET
    served = Served(name, client, f"{name}?weights=none" if untrained else "")
    if served.trained is untrained:
        found = "trained" if untrained else "random"
        raise BadOptionError(
            f"nn_weights = {nn_weights!r}, and the server's {name} has {found} weights; start another with: "
            f"{served.command}"
        )
    return served


def _source(
    csv_file: str | os.PathLike[str] | None,
    data: str | os.PathLike[str] | None,
    labels: str | os.PathLike[str] | None,
    size: tuple[int, int, int],
) -> "Source":
    from pixvec.dataset import SourceOptions, open_source  # noqa: PLC0415 - needs more than the client does

    if csv_file is not None and data is None and labels is None:
        return open_source(_listed(Path(csv_file)))
    if csv_file is None and data is not None and labels is not None:
        if "," in os.fspath(data):
            raise BadOptionError(f"npy_data = {os.fspath(data)!r}: its path has a comma: rename the file")
        height, width, channels = size
        options = SourceOptions(kind="npy", height=height, width=width, channels=channels)
        return open_source(f"{os.fspath(data)},{os.fspath(labels)}", options)
    given = {"csv_file": csv_file, "npy_data": data, "npy_labels": labels}
    named = ", ".join(name for name, value in given.items() if value is not None) or "nothing"
    raise BadOptionError(
        f"{named} given: give csv_file (-csv) alone, or npy_data and npy_labels (-data, -labels)"
    )


def _listed(file: Path) -> dict[str, tuple[str | Path, str]]:
    """Return the path or URL and the label of each row, under its line's number."""
    images: dict[str, tuple[str | Path, str]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, strict=True)
            for cells in rows:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) < 2 or not cells[1].strip():
                    raise InputError(f"{file}: line {rows.line_num}: {','.join(cells)!r} is not label,path")
                label, path = cells[0].strip(), cells[1].strip()
                images[f"line {rows.line_num}"] = path if _URL.match(path) else file.parent / path, label
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: after {len(images)} images: it is no csv file in UTF-8: {error}"
        ) from error
    if not images:
        raise InputError(f"{file}: it lists no images; a row is label,path")
    return images


def _embed(served: Served, source: "Source", batch_size: int, progress: Progress) -> _Table:
    asked: deque[Picture] = deque()
    answers = served.client.embed_iter(
        _images(source, asked), batch_size=batch_size, on_error="return", **served.wanted(normalize=False)
    )
    rows, labels, vectors, failed = [], [], [], []
    with closing(answers):
        for row, answer in enumerate(answers):
            picture = asked.popleft()
            if not isinstance(answer, PixvecError):
                rows.append(row)
                labels.append(picture.label or "")
                vectors.append(np.asarray(answer))
            elif isinstance(answer, _NOT_THE_IMAGES):
                raise answer
            else:
                failed.append(Failure(picture.uri, answer.message.removeprefix(f"{picture.uri}: ")))
            progress(row + 1, source.total)
    if not vectors:
        raise InputError(f"none of {len(failed)} images works; the first: {failed[0].image}: {failed[0].why}")
    return _Table(rows, labels, np.stack(vectors), tuple(failed))


def _images(source: "Source", asked: "deque[Picture]") -> Iterator[ImageLike]:
    for picture in source.pictures():
        asked.append(picture)
        yield _readable(picture)


def _readable(picture: "Picture") -> ImageLike:
    try:
        return picture.read()
    except (OSError, PixvecError) as error:
        return Unreadable(picture.uri, getattr(error, "strerror", None) or str(error))


def _labels_of(texts: Sequence[str]) -> Array:
    """Return the labels (N,): whole numbers if all are and stay what they are (007 does not), else texts."""
    labels = np.array(texts)
    try:
        numbers = labels.astype(np.int64)
    except (ValueError, OverflowError):
        return labels
    return numbers if np.array_equal(numbers.astype(labels.dtype), labels) else labels


def _array_of(file: str | os.PathLike[str]) -> Array:
    array: Array = np.load(file, allow_pickle=False)
    return array


def _files(folder: str | os.PathLike[str], name: str, *, as_csv: bool) -> tuple[Path, ...]:
    """Return the files of a run; raises now, and not after hours of work, where they cannot be written."""
    names = (f"{name}.csv",) if as_csv else (f"{name}_data.npy", f"{name}_labels.npy")
    files = tuple(Path(folder) / each for each in names)
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
            with TemporaryFile(dir=file.parent):
                pass
    except OSError as error:
        raise BadOptionError(
            f"nothing can be written to {error.filename}: {error.strerror}: give another save_folder_path "
            "(-dir) or save_name (-n)"
        ) from error
    return files


def _write_npy(files: Sequence[Path], vectors: Array, labels: Array) -> None:
    # Both take their names when both are whole: new vectors do not stand beside old labels for long.
    with ExitStack() as drafts:
        for path, array in zip(files, (vectors, labels), strict=True):
            np.save(drafts.enter_context(whole_file(path)), array, allow_pickle=False)


def _write_csv(files: Sequence[Path], vectors: Array, labels: Array) -> None:
    with whole_file(files[0]) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["Class", *(f"n{at}" for at in range(vectors.shape[1]))])
        rows.writerows(_cells(vectors, labels))


def _cells(vectors: Array, labels: Array) -> Iterator[list[str]]:
    # str of a float32 is the shortest text that reads back as the same float32.
    for label, vector in zip(labels[:, 0], vectors, strict=True):
        yield [label.decode() if isinstance(label, bytes) else str(label), *map(str, vector)]
