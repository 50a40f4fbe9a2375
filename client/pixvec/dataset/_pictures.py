"""What a source of images yields, whatever form it has on disk."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from pixvec._inputs import ImageLike

Box: TypeAlias = tuple[int, int, int, int]
Outline: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Annotation:
    """An object that a source marks in an image.

    id: unique within its image. box: left, top, right, bottom in pixels of the upright image, right and
    bottom exclusive. area: of the shape itself, in pixels; 0 where nothing of it is in the image. outline:
    the shape's corners (x, y), for drawing; empty where the box is the shape.
    """

    id: str
    label: str
    box: Box
    area: float
    outline: Outline = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a source.

    id: unique within the source and the same in every run. uri: where a person finds it. stamp: changes with
    the content. read: gives what the client embeds; raises OSError or PixvecError when it cannot. is_broken:
    whether the source knows that `read` will raise.
    """

    id: str
    uri: str
    stamp: str
    read: Callable[[], ImageLike]
    label: str | None = None
    objects: tuple[Annotation, ...] = ()
    is_broken: bool = False


@runtime_checkable
class Source(Protocol):
    """Images in an order that is the same in every run.

    kind: its name in `--json` and dataset.json. colours: "#rrggbb" by class, where the source has them.
    total: how many pictures there are, where that is known without reading them all. A source that leaves
    something out counts it in an attribute `omissions`, an Omissions, which is complete once all pictures
    have been yielded.
    """

    kind: str
    colours: Mapping[str, str]
    total: int | None

    def pictures(self) -> Iterator[Picture]:
        """Yield each image once; what cannot be read is yielded too, and says why when it is read."""
        ...


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is read.

    strict: stamp files by SHA-256 of their content, not by size and modification time. kind: of a source
    whose form its name does not tell; empty: found out. path_column, label_column: of a csv or parquet file,
    by name or index; None: by the file's kind. label_column is also a Supervisely project's tag that gives
    the class of an image. height, width, channels: of flat rows of an npy file. splits: names of a
    Supervisely project's datasets, or of Pascal VOC's lists in ImageSets/Main, to take; empty: all.
    """

    strict: bool = False
    kind: str = ""
    path_column: str | None = None
    label_column: str | None = None
    height: int | None = None
    width: int | None = None
    channels: int = 3
    splits: tuple[str, ...] = field(default=())


def file_stamp(path: Path, *, strict: bool) -> str:
    """Return what changes with a file's content; "missing" where there is none."""
    try:
        if strict:
            with path.open("rb") as file:
                return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"


def bytes_stamp(data: bytes | memoryview) -> str:
    """Return what changes with bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
