"""Which images a command line names, read lazily: files, folders, globs, URLs, archives and lists of them."""

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Self, cast

from ._errors import InputError
from ._glob import matches
from ._image_files import files_under, is_archive, why_member_left_out
from ._omissions import Omissions, lines, printable
from ._urls import abbreviated

MOST_MEMBER_BYTES = 64 << 20
# Between two members' contents; tarfile alone would read a header of any size into memory.
MOST_HEADER_BYTES = 1 << 20
BLOCK = 64 << 10
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://|data:")
# Of Linux, in bytes; what is longer is not a path.
_MAX_PATH = 4095
PACKED: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_FOREIGN_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"Rar!\x1a\x07": "RAR",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Unreadable(io.BytesIO):
    """Stands for an image that cannot be read: whoever reads it is told why."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__()
        self._name, self._why = name, why

    def read(self, _size: int | None = -1, /) -> bytes:
        """Raise OSError with the reason."""
        raise OSError(self._why)

    def __repr__(self) -> str:
        return self._name


class _File(str):
    """The path of a file that is there: whatever its name, it is no URL."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its name as it is printed and stored, and what the client is given."""

    name: str
    image: str | bytes | Path | Unreadable


@dataclass(frozen=True, slots=True)
class Found:
    """The images of a command line, in order; `total` is None where only reading them all would tell.

    omissions: what was left out so far; complete once `items` is at its end.
    """

    items: Iterator[Item]
    total: int | None
    omissions: Omissions


def find(given: Sequence[str], stdin: Iterable[str]) -> Found:
    """Return the images that the words of a command line stand for; raises InputError when there is none."""
    omissions = Omissions()
    paths: Iterable[str | Item] = expand(given, stdin, omissions)
    total = None
    if "-" not in given:
        paths = list(paths)
        archives = any(isinstance(path, str) and is_archive(path) for path in paths)
        total = None if archives else len(paths)
    found = items(paths, omissions)
    first = next(found, None)
    if first is None:
        raise InputError("; ".join([f"no images in {' '.join(given)}", *lines(omissions.all())]))
    return Found(chain([first], found), total, omissions)


def expand(given: Iterable[str], stdin: Iterable[str], omissions: Omissions) -> Iterator[str | Item]:
    """Yield the paths and URLs that words stand for: folders and globs sorted, `-` for `stdin` as it comes.

    What is none of these is yielded as it is: its reading says what is wrong with it. An Item stands for a
    file of a folder that must not be opened. Raises InputError for an empty word.
    """
    for name in given:
        if not name:
            raise InputError("the name of an image is empty: name a file, a folder, a URL or an archive")
        if name == "-":
            yield from _listed(stdin)
        elif _URL.match(name) or _is(Path.is_file, name):
            yield _named(name)
        elif _is(Path.is_dir, name):
            folder = Path(name)
            yield from (_found(str(folder / file)) for file in files_under(folder, omissions))
        else:
            yield from _matches(name, omissions)


def _listed(lines: Iterable[str]) -> Iterator[str | Item]:
    """Yield what a list names, a path or URL a line; a byte order mark before the first is not part of it."""
    for number, line in enumerate(lines):
        name = (line.removeprefix("\ufeff") if number == 0 else line).strip()
        if "\0" in name:
            why = "a list with null bytes: write a name a line, as find does without -print0"
            yield Item(abbreviated(name), Unreadable(name, why))
        elif name:
            yield _named(name)


def _named(name: str) -> str:
    """Return a word as the file that it names, where it is not written as a URL."""
    return _File(name) if not _URL.match(name) and _is(Path.is_file, name) else name


def items(paths: Iterable[str | Item], omissions: Omissions) -> Iterator[Item]:
    """Yield what paths and URLs hold: an archive its images, everything else itself."""
    for path in paths:
        if isinstance(path, Item):
            yield path
        elif is_archive(path):
            yield from _members(path, omissions)
        else:
            yield Item(_name(path), Path(path) if isinstance(path, _File) else path)


def _name(path: str) -> str:
    """Return the name of a path or URL as it is printed and stored: without the credentials of a URL."""
    if isinstance(path, _File):
        return printable(path)
    return abbreviated(path) if _URL.match(path) or len(path) > _MAX_PATH else printable(path)


def _is(test: Callable[[Path], bool], name: str) -> bool:
    try:
        return test(Path(name))
    except (OSError, ValueError):  # as when the name is longer than the system's limit
        return False


def _matches(name: str, omissions: Omissions) -> Iterator[str | Item]:
    """Yield the files that a pattern matches, and count the folders, which are not entered.

    What matches nothing is yielded as it is.
    """
    found = matches(name, omissions) if glob.has_magic(name) else []
    if not found:
        yield name
        return
    for match in found:
        if not Path(match).is_dir():
            yield _found(match)
        elif "**" not in name:
            omissions.add("folder", "a pattern matches it: name the folder itself, or use **", match)


def _found(name: str) -> str | Item:
    """Return a file that a folder or a pattern led to; a pipe or a device is not opened, and fails."""
    try:
        regular = stat.S_ISREG(os.stat(name).st_mode)  # noqa: PTH116 - called for a million files
    except OSError:
        return name  # reading it says why
    return _File(name) if regular else Item(printable(name), Unreadable(name, "not a regular file"))


def _members(archive: str, omissions: Omissions) -> Iterator[Item]:
    """Yield an archive's images in its order; where it breaks off, an item that says so and stands for it."""
    name = _name(archive)
    if "://" in archive and not isinstance(archive, _File):
        yield Item(name, Unreadable(name, "an archive is read from a file, not from a URL"))
        return
    try:
        with Path(archive).open("rb") as file, Unpacked(file) as stream:
            yield from _images(name, stream, omissions)
    except Exception as error:  # noqa: BLE001 - whatever the parsers make of foreign bytes
        why = getattr(error, "strerror", None) or f"the archive cannot be read to its end: {error}"
        yield Item(name, Unreadable(name, why))


def _images(archive: str, stream: "Unpacked", omissions: Omissions) -> Iterator[Item]:
    with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=BLOCK, tarinfo=Header) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # it keeps every header it has seen
            stream.limit = tar.offset + MOST_HEADER_BYTES
            if member.isdir():
                continue
            name = f"{archive}!{printable(member.name)}"
            if why := why_member_left_out(member.name):
                omissions.add("file", why, name)
            else:
                yield Item(name, _content(tar, member, name))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes | Unreadable:
    if not member.isreg():
        return Unreadable(name, "a link or a device in an archive, which is not followed")
    if member.size > MOST_MEMBER_BYTES:
        return Unreadable(name, f"{member.size} bytes, over the {MOST_MEMBER_BYTES} of an archive's member")
    file = tar.extractfile(member)
    return file.read() if file else b""


class Header(tarfile.TarInfo):
    """A header of which tarfile makes an error, where it would take a broken one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the end mark
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it has no end mark, as when it was cut off") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class Unpacked:
    """The bytes of a file, unpacked as its first ones say, up to `limit`; then tarfile.ReadError."""

    def __init__(self, file: io.BufferedReader) -> None:
        start = file.peek(6)
        if kind := next((kind for magic, kind in _FOREIGN_ARCHIVES.items() if start.startswith(magic)), None):
            raise tarfile.ReadError(
                f"it is a {kind} archive in spite of its name: unpack it, or make it a tar"
            )
        opens = (open_ for magic, open_ in PACKED.items() if start.startswith(magic))
        unpack = next(opens, None)
        self._stream = cast("io.BufferedReader", unpack(file) if unpack else file)  # or with the same methods
        self._read = 0
        self.limit = MOST_HEADER_BYTES

    def read(self, size: int) -> bytes:
        if self._read >= self.limit:
            raise tarfile.ReadError(f"a header of more than {MOST_HEADER_BYTES} bytes")
        block = self._stream.read1(size)
        self._read += len(block)
        return block

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
