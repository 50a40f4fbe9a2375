"""Reads the images and the labels out of a tar archive, within the limits of one that is sent."""

import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from pixvec._image_files import NO_SUFFIX, why_member_left_out, why_not_image
from pixvec._omissions import Omissions, printable
from pixvec._sources import (
    BLOCK,
    MOST_HEADER_BYTES,
    MOST_MEMBER_BYTES,
    Header,
    Unpacked,
    Unreadable,
    _content,
)

LABELS = ("cls", "json")
# As webdataset has it: the key ends before the first dot of a member's name without its folders.
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_MOST_LABEL_BYTES = 1 << 20
_MEMBER_BYTES = 1 << 10  # that a member takes however little it holds


class Member(NamedTuple):
    """A member of an archive, and its key.

    part, suffix: of what follows the key, in small letters, what is before its last dot and after it:
    `22.00.jpg` has the key `22`, the part `00` and the suffix `jpg`; the part of `22.jpg` is empty.
    """

    name: str
    key: str
    part: str
    suffix: str
    content: bytes | Unreadable

    @property
    def is_label(self) -> bool:
        """Whether it labels the images beside it."""
        return self.suffix in LABELS


def keys(archive: Path, omissions: Omissions) -> Iterator[list[Member]]:
    """Yield the images and labels of each key, and what has come of the last before an error is raised.

    Other members are counted in `omissions`. Raises whatever the parsers make of foreign bytes. A key that
    grows over the limit of a member is cut, between two parts where that is possible.
    """
    group: list[Member] = []
    held = 0
    try:
        for member in _members(archive, omissions):
            if group and _is_cut(group[-1], member, held):
                yield group
                group, held = [], 0
            group.append(member)
            held += _size(member)
    except Exception:
        yield group
        raise
    yield group


def _is_cut(last: Member, member: Member, held: int) -> bool:
    if member.key != last.key or held > 2 * MOST_MEMBER_BYTES:
        return True
    return held > MOST_MEMBER_BYTES and member.part != last.part


def _size(member: Member) -> int:
    content = len(member.content) if isinstance(member.content, bytes) else 0
    return content + _MEMBER_BYTES


def _members(archive: Path, omissions: Omissions) -> Iterator[Member]:
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
            if member.isdir():
                continue
            name = printable(member.name)
            if why := why_member_left_out(member.name, _why_not_taken):
                omissions.add("file", why, f"{archive.name}!{name}")
            elif found := _KEY.fullmatch(member.name):
                part, _, suffix = found[2].lower().rpartition(".")
                large = suffix in LABELS and member.size > _MOST_LABEL_BYTES
                why = f"{member.size} bytes, over the {_MOST_LABEL_BYTES} of a label"
                content = Unreadable(name, why) if large else _content(tar, member, name)
                yield Member(name, found[1], part, suffix, content)


def _why_not_taken(name: str) -> str | None:
    suffix = name.rpartition("/")[2].rpartition(".")[2].lower()
    if suffix in LABELS and _KEY.fullmatch(name):
        return None
    return why_not_image(name) if _KEY.fullmatch(name) else NO_SUFFIX
