"""Reads the images and the labels out of a tar archive, within the limits of one that is sent."""

import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from pixvec._sources import (
    BLOCK,
    MOST_HEADER_BYTES,
    MOST_MEMBER_BYTES,
    Header,
    Unpacked,
    Unreadable,
    _content,
    printable,
)

from ._common import is_image

LABELS = ("cls", "json")
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_MOST_LABEL_BYTES = 1 << 20
_MEMBER_BYTES = 1 << 10  # that a member takes however little it holds


class Member(NamedTuple):
    """A member of an archive: name is key.extension, the extension here in small letters."""

    name: str
    key: str
    extension: str
    content: bytes | Unreadable


def keys(archive: Path) -> Iterator[list[Member]]:
    """Yield the images and labels of each key, and what has come of the last before an error is raised.

    Raises whatever the parsers make of foreign bytes. A key that grows over the limit of a member is cut.
    """
    group: list[Member] = []
    held = 0
    try:
        for member in _members(archive):
            if group and (member.key != group[0].key or held > MOST_MEMBER_BYTES):
                yield group
                group, held = [], 0
            group.append(member)
            held += _size(member)
    except Exception:
        yield group
        raise
    yield group


def _size(member: Member) -> int:
    content = len(member.content) if isinstance(member.content, bytes) else 0
    return content + _MEMBER_BYTES


def _members(archive: Path) -> Iterator[Member]:
    """Yield the images and labels of an archive, within the limits of one that is given to the client."""
    if not stat.S_ISREG(archive.stat().st_mode):
        raise OSError("it is not a regular file")  # a pipe in a folder of archives would be waited for
    with (
        archive.open("rb") as file,
        Unpacked(file) as stream,
        tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=BLOCK, tarinfo=Header) as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # it keeps every header it has seen
            stream.limit = tar.offset + MOST_HEADER_BYTES
            parts = _KEY.fullmatch(member.name)
            extension = parts[2].lower() if parts else ""
            if parts and not member.isdir() and (is_image(member.name) or extension in LABELS):
                name = printable(member.name)
                large = extension in LABELS and member.size > _MOST_LABEL_BYTES
                why = f"{member.size} bytes, over the {_MOST_LABEL_BYTES} of a label"
                content = Unreadable(name, why) if large else _content(tar, member, name)
                yield Member(name, parts[1], extension, content)
