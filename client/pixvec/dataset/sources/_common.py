"""What the sources share: finding and stamping files, and saying where there is none."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.request import url2pathname

from pixvec._errors import InputError
from pixvec._inputs import ImageLike
from pixvec._sources import IMAGE_SUFFIXES, printable
from pixvec.dataset._pictures import Annotation, Picture, SourceOptions, bytes_stamp, file_stamp

NO_COLOURS: Mapping[str, str] = MappingProxyType({})
MISSING = "missing"
_URL = re.compile(r"(?i)https?:")


class UniqueIds:
    """Gives each name an id of its own: the second `a` is `a#2`."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}

    def __call__(self, given: str) -> str:
        """Return the id for a name."""
        given = name = printable(given)
        while name in self._times:
            self._times[given] += 1
            name = f"{given}#{self._times[given]}"
        self._times[name] = 1
        return name


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file is an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - asked of a million names


def files_under(root: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Return the sorted posix paths, relative to `root`, of the files below whose name is wanted.

    What is hidden is skipped. Links are followed, and a folder that is met twice is read once: loops end.
    Raises InputError for a folder that cannot be listed.
    """
    return sorted(_walk(root, wanted))


def holds(root: Path, wanted: Callable[[str], bool]) -> bool:
    """Tell whether `files_under` would find any, looking no further than the first."""
    return any(True for _ in _walk(root, wanted))


def file_picture(
    name: str,
    path: Path,
    options: SourceOptions,
    label: str | None = None,
    objects: tuple[Annotation, ...] = (),
) -> Picture:
    """Return the picture of a file, which need not be there."""
    path = Path(located(path))

    def read() -> ImageLike:
        try:
            mode = path.stat().st_mode
        except ValueError as error:
            # Each Python has its own words for the first.
            why = "a path cannot hold a null byte" if "\0" in str(path) else error
            raise OSError(f"{path}: {why}") from error
        if not stat.S_ISREG(mode):
            raise OSError(f"{path}: not a regular file")
        return path  # not a str: one that looks like a URL would be fetched

    return Picture(name, printable(str(path)), _stamp(path, strict=options.strict), read, label, objects)


def named_picture(
    name: str, given: str, folder: Path, options: SourceOptions, label: str | None = None
) -> Picture:
    """Return the picture of a path relative to `folder`, or of a URL, whose content is not stamped."""
    if _URL.match(given):
        return Picture(name, printable(given), bytes_stamp(printable(given).encode()), lambda: given, label)
    local = url2pathname("/" + given[7:].partition("/")[2]) if given[:7].lower() == "file://" else given
    return file_picture(name, folder / local, options, label)


def located(path: str | os.PathLike[str]) -> str:
    """Return where a file is, wherever the dataset is looked at from."""
    return os.path.abspath(path)  # noqa: PTH100 - links stay as they are, and `..` goes


def broken_picture(name: str, uri: str, why: str, stamp: str = MISSING) -> Picture:
    """Return a picture that says why it cannot be read."""

    def read() -> ImageLike:
        raise OSError(printable(why))

    return Picture(name, printable(uri), stamp, read)


def _stamp(path: Path, *, strict: bool) -> str:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return MISSING
    return file_stamp(path, strict=strict) if regular else MISSING  # a device has no end to hash


def _walk(root: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    _first_time(root, seen)
    for here, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        shown = (name for name in sorted(folders) if not name.startswith("."))
        folders[:] = [name for name in shown if _first_time(Path(here, name), seen)]
        prefix = Path(here).relative_to(root).as_posix()
        for name in files:
            if wanted(name) and not name.startswith("."):
                yield name if prefix == "." else f"{prefix}/{name}"


def _first_time(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return True
    before = len(seen)
    seen.add((status.st_dev, status.st_ino))
    return len(seen) > before


def _refuse(error: OSError) -> None:
    raise InputError(f"{printable(str(error.filename))}: {error.strerror}") from error
