"""Which form of a dataset a folder has, judged by the names in it, and by a table's columns."""

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pixvec._errors import InputError
from pixvec._image_files import files_under, holds, is_archive, is_image, why_hidden
from pixvec._omissions import Omissions

from ._coco import Coco
from ._folder import Folder
from ._foreign import parsing
from ._parquet import Parquet, holds_images, why_not_parquet
from ._supervisely import Supervisely
from ._tar import Tar
from ._voc import Voc, folders_of_voc

_COCO_FILES = ("annotations/instances_*.json", "_annotations.coco.json")
# Files of any other name are looked into where they are few: many are the sidecars of images.
_OTHER_JSON = ("*.json", "annotations/*.json")
_MAX_OTHER_JSON = 16
_COCO_LISTS = [re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"bbox")]
_MAX_DEPTH, _MAX_DEPTH_OF_SEVERAL, _MAX_NAMED = 4, 2, 6


class _Form(NamedTuple):
    """An annotated dataset: its kind, the path to open it by, and the folder that holds it."""

    kind: str
    path: Path
    root: Path


def layout_of(folder: Path) -> tuple[str, Path]:
    """Return the kind of a folder's dataset and the path to open it by: the folder, or what it holds.

    A form that an only subfolder has, as in VOCdevkit/VOC2012, is that of the folder, and so is that of a
    folder below it that holds all images. Raises InputError where the folder may be of two forms, holds
    several annotated datasets, or is of a form that is not read.
    """
    inner = folder
    for inner in _only_subfolders(folder):
        if found := _annotated(inner):
            return found.kind, found.path
    if found := _annotated_below(inner):
        return found.kind, found.path
    if holds(folder, is_image):
        return Folder.kind, folder
    return _of_tables_and_archives(folder), folder


def _only_subfolders(folder: Path) -> Iterator[Path]:
    """Yield a folder, and the one in it as long as there is nothing else."""
    for _ in range(_MAX_DEPTH):
        yield folder
        visible = [child for child in folder.iterdir() if why_hidden(child.name) is None]
        if len(visible) != 1 or not visible[0].is_dir():
            return
        folder = visible[0]


def _annotated(folder: Path) -> _Form | None:
    forms = _forms(folder)
    if len(forms) > 1:
        raise _ambiguous(folder, f"{len(forms)} COCO files", forms)
    if forms:
        return forms[0]
    if _is_yolo(folder):
        raise InputError(
            f"{folder} is laid out as YOLO's datasets are (images/ and labels/*.txt), whose labels are not "
            "read: convert it to COCO to embed its objects, or give --kind folder to embed its images alone"
        )
    return None


def _annotated_below(folder: Path) -> _Form | None:
    """Return the annotated dataset of a folder below that holds all images; raises where it does not."""
    found = sorted(_forms_below(folder, _MAX_DEPTH_OF_SEVERAL), key=lambda form: len(form.path.parts))
    forms = list({form.path.resolve(): form for form in reversed(found)}.values())[::-1]
    match forms:
        case []:
            return None
        case [only]:
            prefix = f"{only.root.relative_to(folder).as_posix()}/"
            if all(name.startswith(prefix) for name in files_under(folder, Omissions())):
                return only
            raise _ambiguous(folder, "images beside an annotated dataset", forms)
    raise _ambiguous(folder, f"{len(forms)} annotated datasets", forms)


def _forms_below(folder: Path, depth: int) -> Iterator[_Form]:
    _, names, _ = next(
        os.walk(folder), ("", [], [])
    )  # a folder that cannot be listed: files_under refuses it
    for child in (folder / name for name in sorted(names) if why_hidden(name) is None):
        if forms := _forms(child):
            yield from forms
        elif depth > 1:
            yield from _forms_below(child, depth - 1)


def _forms(folder: Path) -> list[_Form]:
    """Return the annotated datasets that a folder itself is: several only where it has several COCO files."""
    if (folder / "meta.json").is_file() and any(
        next(folder.glob(pattern), None) for pattern in ("*/img", "*/datasets")
    ):
        return [_Form(Supervisely.kind, folder, folder)]
    if folders_of_voc(folder):
        return [_Form(Voc.kind, folder, folder)]
    files = sorted(file for pattern in _COCO_FILES for file in folder.glob(pattern))
    return [_Form(Coco.kind, file, folder) for file in files or _other_coco_files(folder)]


def _other_coco_files(folder: Path) -> list[Path]:
    for pattern in _OTHER_JSON:
        found = sorted(folder.glob(pattern))
        if len(found) <= _MAX_OTHER_JSON and (files := [file for file in found if _is_coco(file)]):
            return files
    return []


def _is_coco(file: Path) -> bool:
    """Tell whether a JSON file seems to hold COCO's lists of images and of annotations with boxes."""
    with parsing(str(file)):
        if not file.is_file() or not file.stat().st_size:
            return False
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
            return all(one.search(held) for one in _COCO_LISTS)


def _ambiguous(folder: Path, what: str, forms: list[_Form]) -> InputError:
    named = ", ".join(str(form.path) for form in forms[:_MAX_NAMED])
    more = ", …" if len(forms) > _MAX_NAMED else ""
    return InputError(
        f"{folder} has {what}: give the one that is meant ({named}{more}), or --kind folder to embed the "
        "images without their annotations"
    )


def _is_yolo(folder: Path) -> bool:
    parts = [folder, *(child for child in folder.iterdir() if child.is_dir())]
    return any(
        (part / "images").is_dir() and (part / "labels").is_dir() and holds(part / "labels", _is_text)
        for part in parts
    )


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _of_tables_and_archives(folder: Path) -> str:
    tables = files_under(folder, Omissions(), why_not_parquet)
    if not holds(folder, is_archive):
        return Parquet.kind if tables else Folder.kind
    if not tables or not holds_images(folder / tables[0]):
        return Tar.kind  # tables beside archives, such as img2dataset's, hold URLs and captions
    raise InputError(
        f"{folder} has tar archives and parquet files with images: say by --kind tar or --kind parquet which "
        "are meant"
    )
