"""Writes the page as a folder that opens from disk, with no network and nothing else at hand."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array
from pixvec.dataset import Dataset
from pixvec.dataset._images import Images, Size, in_threads
from pixvec.dataset._originals import Original

from ._nearest import neighbours_of
from ._page import DATA, NEAR_ROWS, NEIGHBOURS, PAGE, as_script, data_of, page_files, pictures_of

THUMBS, IMAGES = "thumbs", "images"
# Written first, so that a folder with it holds nothing but a page, or the beginning of one.
MARKER = ".pixvec-page"

_Progress: TypeAlias = Callable[[int, int], object]
_Outcome: TypeAlias = "Size | InputError"


@dataclass(frozen=True, slots=True)
class Built:
    """A page on disk; missing: why an image could not be read, by its id: the page shows none of it."""

    page: Path
    missing: Mapping[str, str]


def build(
    dataset: Dataset,
    projections: Mapping[str, Array],
    columns: Mapping[str, Array],
    folder: str | os.PathLike[str],
    *,
    image_px: int = 640,
    thumb_px: int = 128,
    fetch: bool = True,
    progress: _Progress = lambda _done, _total: None,
) -> Built:
    """Write the page into a folder, which is made, or held such a page before.

    projections, columns: see `pixvec.explore`; without `neighbours` they are computed. image_px, thumb_px:
    longest sides of the copies of images and of their thumbnails, which are what takes the space. fetch: get
    images that the dataset knows by URL; the page itself asks for none. progress: is told how many images are
    done, of how many. Raises InputError.
    """
    for name, px in (("image_px", image_px), ("thumb_px", thumb_px)):
        if px < 1:
            raise InputError(f"{name} = {px}: it is a length in pixels, from 1 up")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"folder = {target}: a file has that name, take another one")
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).exists():
        raise InputError(f"folder = {target}: it holds something else than a page, take an empty one")
    files, data = page_files(), data_of(dataset, projections, _with_neighbours(dataset, columns))
    target.mkdir(parents=True, exist_ok=True)
    (target / MARKER).touch()
    (target / DATA).unlink(missing_ok=True)  # it comes last: a page without it is not finished
    for name in (THUMBS, IMAGES):
        (target / name).mkdir(exist_ok=True)
        for old in (target / name).glob("*.jpg"):
            old.unlink()
    for name, content in files.items():
        (target / name).write_bytes(content)
    sizes, missing = _write_images(
        dataset, target, image_px=image_px, thumb_px=thumb_px, fetch=fetch, progress=progress
    )
    script = as_script(data | {"served": False, "search": None, "sizes": sizes})
    (target / DATA).write_bytes(script)
    return Built(target / PAGE, missing)


def _with_neighbours(dataset: Dataset, columns: Mapping[str, Array]) -> Mapping[str, Array]:
    if NEIGHBOURS in columns:
        return columns
    near = neighbours_of(dataset, NEAR_ROWS)
    return columns if near is None else {**columns, NEIGHBOURS: near}


def _write_images(
    dataset: Dataset, target: Path, *, image_px: int, thumb_px: int, fetch: bool, progress: _Progress
) -> tuple[list[Size | None], dict[str, str]]:
    """Write a copy of each image and each row's thumbnail; return the images' sizes, and what is missing."""
    together = list(_rows_by_picture(dataset))

    def write(picture: int, rows: list[int], original: Original) -> _Outcome:
        try:
            size, whole, thumbs = images.export(rows, original, image_px, thumb_px)
        except InputError as error:
            return error
        (target / IMAGES / f"{picture}.jpg").write_bytes(whole)
        for row, thumb in zip(rows, thumbs, strict=True):
            (target / THUMBS / f"{row}.jpg").write_bytes(thumb)
        return size

    def tasks() -> Iterator[Callable[[], _Outcome]]:
        for picture, rows in enumerate(together):
            try:
                task: Callable[[], _Outcome] = partial(write, picture, rows, images.original(rows[0]))
            except InputError as error:
                task = partial(_itself, error)
            yield task

    sizes: list[Size | None] = []
    missing: dict[str, str] = {}
    with Images(dataset.rows, dataset.about, fetches=fetch) as images:
        for rows, outcome in zip(together, in_threads(tasks()), strict=True):
            if isinstance(outcome, InputError):
                missing[dataset.rows[rows[0]].id] = outcome.message
            sizes.append(None if isinstance(outcome, InputError) else outcome)
            progress(len(sizes), len(together))
    return sizes, missing


def _itself(error: InputError) -> InputError:
    return error


def _rows_by_picture(dataset: Dataset) -> Iterator[list[int]]:
    picture = pictures_of(dataset.rows)
    order = np.argsort(picture, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(picture))[:-1]):
        yield rows.tolist()
