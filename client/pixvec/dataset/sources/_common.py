"""What the sources share: stamping files, and saying where there is none."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.request import url2pathname

from pixvec._inputs import ImageLike
from pixvec._omissions import printable
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

    stamp = _stamp(path, strict=options.strict)
    return Picture(name, printable(str(path)), stamp, read, label, objects, is_broken=stamp == MISSING)


def named_picture(
    name: str,
    given: str,
    folder: Path,
    options: SourceOptions,
    label: str | None = None,
    *,
    objects: tuple[Annotation, ...] = (),
) -> Picture:
    """Return the picture of a path relative to `folder`, or of a URL, whose content is not stamped."""
    if _URL.match(given):
        stamp = bytes_stamp(printable(given).encode())
        return Picture(name, printable(given), stamp, lambda: given, label, objects)
    local = url2pathname("/" + given[7:].partition("/")[2]) if given[:7].lower() == "file://" else given
    return file_picture(name, _existing(folder / local), options, label, objects)


def _existing(path: Path) -> Path:
    r"""Return a path, or the one that its backslashes mean on Windows where only that is there."""
    other = Path(str(path).replace("\\", "/"))
    try:
        return other if other != path and not path.exists() and other.exists() else path
    except (OSError, ValueError):  # no file can have that name: its reading says so
        return path


def located(path: str | os.PathLike[str]) -> str:
    """Return where a file is, wherever the dataset is looked at from."""
    return os.path.abspath(path)  # noqa: PTH100 - links stay as they are, and `..` goes


def broken_picture(
    name: str, uri: str, why: str, stamp: str = MISSING, objects: tuple[Annotation, ...] = ()
) -> Picture:
    """Return a picture that says why it cannot be read. Each of its objects is a failed row."""

    def read() -> ImageLike:
        raise OSError(printable(why))

    return Picture(name, printable(uri), stamp, read, objects=objects, is_broken=True)


def _stamp(path: Path, *, strict: bool) -> str:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return MISSING
    return file_stamp(path, strict=strict) if regular else MISSING  # a device has no end to hash
