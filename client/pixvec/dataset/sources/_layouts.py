"""Which form of a dataset a folder has, judged by the names in it, and by a table's columns."""

from collections.abc import Iterator
from pathlib import Path

from pixvec._errors import InputError
from pixvec._image_files import files_under, holds, is_archive, is_image, why_hidden
from pixvec._omissions import Omissions

from ._coco import Coco
from ._folder import Folder
from ._parquet import Parquet, holds_images, why_not_parquet
from ._supervisely import Supervisely
from ._tar import Tar
from ._voc import Voc, folders_of_voc

_COCO_FILES = ("annotations/instances_*.json", "_annotations.coco.json")
_MAX_DEPTH, _MAX_NAMED = 4, 6


def layout_of(folder: Path) -> tuple[str, Path]:
    """Return the kind of a folder's dataset and the path to open it by: the folder, or what it holds.

    A form that an only subfolder has, as in VOCdevkit/VOC2012, is that of the folder. Raises InputError where
    the folder may be of two forms, or is of one that is not read.
    """
    for one in _only_subfolders(folder):
        if found := _annotated(one):
            return found
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


def _annotated(folder: Path) -> tuple[str, Path] | None:
    if (folder / "meta.json").is_file() and any(
        next(folder.glob(pattern), None) for pattern in ("*/img", "*/datasets")
    ):
        return Supervisely.kind, folder
    if folders_of_voc(folder):
        return Voc.kind, folder
    match sorted(file for pattern in _COCO_FILES for file in folder.glob(pattern)):
        case [only]:
            return Coco.kind, only
        case [*several] if several:
            named = ", ".join(str(file) for file in several[:_MAX_NAMED])
            raise InputError(
                f"{folder} has {len(several)} COCO files: give the one that is meant ({named}), or --kind "
                "folder to embed the images without their annotations"
            )
    if _is_yolo(folder):
        raise InputError(
            f"{folder} is laid out as YOLO's datasets are (images/ and labels/*.txt), whose labels are not "
            "read: convert it to COCO to embed its objects, or give --kind folder to embed its images alone"
        )
    return None


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
