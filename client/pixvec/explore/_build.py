"""Writes the page as a folder that opens from disk, with no network and nothing else at hand."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array
from pixvec.dataset import Dataset

from ._images import Images, Size
from ._page import DATA, PAGE, SCRIPT, as_script, data_of, page_files, pictures_of

THUMBS, IMAGES = "thumbs", "images"


@dataclass(frozen=True, slots=True)
class Built:
    """A page on disk; missing: ids of the images that could not be read, which it shows none of."""

    page: Path
    missing: tuple[str, ...]


def build(
    dataset: Dataset,
    projections: Mapping[str, Array],
    columns: Mapping[str, Array],
    folder: str | os.PathLike[str],
    *,
    image_px: int = 640,
    thumb_px: int = 128,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Built:
    """Write the page into a folder, which is made, or held such a page before.

    projections, columns: see `pixvec.explore`. image_px, thumb_px: longest sides of the copies of images and
    of their thumbnails, which are what takes the space. progress: is told how many images are done, of how
    many. Raises InputError.
    """
    for name, px in (("image_px", image_px), ("thumb_px", thumb_px)):
        if px < 1:
            raise InputError(f"{name} = {px}: it is a length in pixels, from 1 up")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise InputError(f"folder = {target}: a file has that name, take another one")
    if target.is_dir() and any(target.iterdir()) and not (target / SCRIPT).exists():
        raise InputError(f"folder = {target}: it holds something else than a page, take an empty one")
    files, data = page_files(), data_of(dataset, projections, columns)
    for name in (THUMBS, IMAGES):
        (target / name).mkdir(parents=True, exist_ok=True)
        for old in (target / name).glob("*.jpg"):
            old.unlink()
    for name, content in files.items():
        (target / name).write_bytes(content)
    sizes, missing = _write_images(dataset, target, image_px, thumb_px, progress)
    script = as_script(data | {"served": False, "search": False, "sizes": sizes})
    (target / DATA).write_bytes(script)
    return Built(target / PAGE, missing)


def _write_images(
    dataset: Dataset, target: Path, image_px: int, thumb_px: int, progress: Callable[[int, int], object]
) -> tuple[list[Size | None], tuple[str, ...]]:
    """Write a copy of each image and each row's thumbnail; return the images' sizes, and what is missing."""
    images = Images(dataset.rows)

    def write(picture: int, rows: list[int]) -> Size | None:
        try:
            size, whole, thumbs = images.export(rows, image_px, thumb_px)
        except InputError:
            return None
        (target / IMAGES / f"{picture}.jpg").write_bytes(whole)
        for row, thumb in zip(rows, thumbs, strict=True):
            (target / THUMBS / f"{row}.jpg").write_bytes(thumb)
        return size

    together = list(_rows_by_picture(dataset))
    sizes: list[Size | None] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for size in pool.map(write, range(len(together)), together):
            sizes.append(size)
            progress(len(sizes), len(together))
    missing = (rows[0] for rows, size in zip(together, sizes, strict=True) if size is None)
    return sizes, tuple(dataset.rows[row].id for row in missing)


def _rows_by_picture(dataset: Dataset) -> Iterator[list[int]]:
    picture = pictures_of(dataset.rows)
    order = np.argsort(picture, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(picture))[:-1]):
        yield rows.tolist()
