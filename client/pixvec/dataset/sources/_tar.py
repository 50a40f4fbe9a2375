"""Images in tar archives, as WebDataset writes them: members of one key follow each other."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pixvec._errors import InputError
from pixvec._glob import matches
from pixvec._image_files import IMAGE_SUFFIXES, files_under, is_archive
from pixvec._inputs import ImageLike
from pixvec._omissions import Omissions, lines, printable
from pixvec._sources import Unreadable
from pixvec.dataset._pictures import Picture, SourceOptions, bytes_stamp, file_stamp

from ._common import MISSING, NO_COLOURS, UniqueIds, broken_picture, located
from ._foreign import label_text, tolerating
from ._tar_members import LABELS, Member, keys

_RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
BESIDE_ARCHIVES = "a table beside the archives, taken for their metadata: --kind parquet reads it instead"
NOT_AN_ARCHIVE = "it is not a tar archive"
_MOST_SHARDS = 1_000_000


class Tar:
    """The images of an archive, of those in a folder or of those that a pattern matches, in their own order.

    A key is what is before the first dot of a member's name. The label is the text of `key.cls`, else the
    "label" of `key.json`, where these stand beside `key.jpg`; of `key.left.jpg` it is that of `key.left.cls`
    or `key.left.json` first. Members that are neither are counted in `omissions`. A pattern may have ranges,
    as in `shard-{000..127}.tar`. Ids are `archive.tar!member`. Members are held while their pictures are,
    those of one key together, so a key of more than 64 MiB is cut in two; nothing is written to disk.
    """

    kind = "tar"
    colours = NO_COLOURS
    total: int | None = None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._given = given
        self._before = Omissions()
        self._archives = dict(_archives(given, self._before))
        self._options = options
        if not self._archives:
            raise InputError(f"{given}: no tar archive is there")
        self.omissions = self._before.copy()

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; where an archive breaks off, a picture that says so and stands for its rest.

        Raises InputError at the end when there was none.
        """
        found = False
        self.omissions = self._before.copy()
        for picture in self._found():
            found = True
            yield picture
        if not found:
            suffixes = " ".join(sorted(IMAGE_SUFFIXES))
            said = f"{self._given}: no image is in it; images are members KEY.SUFFIX, of {suffixes}"
            raise InputError("; ".join([said, *lines(self.omissions.all())]))

    def _found(self) -> Iterator[Picture]:
        unique = UniqueIds()
        for name, path in self._archives.items():
            try:
                for group in keys(path, self.omissions):
                    yield from self._pictures(group, name, path, unique)
                    self._count_labels_alone(group, name)
                    group.clear()  # or it would be held while the next one is read
            except Exception as error:  # noqa: BLE001 - whatever the parsers make of foreign bytes
                cause = getattr(error, "strerror", None) or error
                why = f"{path}: the archive cannot be read to its end: {cause}"
                stamp = file_stamp(path, strict=self._options.strict) if path.is_file() else MISSING
                yield broken_picture(unique(name), str(path), why, stamp)

    def _pictures(
        self, group: list[Member], archive: str, path: Path, unique: UniqueIds
    ) -> Iterator[Picture]:
        members = {(member.part, member.suffix): member for member in group if member.is_label}
        labels: dict[str, str | None] = {}
        for member in group:
            if member.is_label:
                continue
            label = _label_member(members, member.part)
            if label and label.name not in labels:
                labels[label.name] = self._label(label, archive)
            name, uri = unique(f"{archive}!{member.name}"), printable(f"{located(path)}!{member.name}")
            yield _picture(name, uri, member.content, labels[label.name] if label else None)

    def _label(self, member: Member, archive: str) -> str | None:
        """Return what a member has as a label; one that cannot be used is counted, and is None."""
        with tolerating(self.omissions, "label", f"{archive}!{member.name}"):
            content = member.content if isinstance(member.content, bytes) else member.content.read()
            if member.suffix == "cls":
                return label_text(content.decode().strip())
            value = json.loads(content)
            return label_text(value.get("label")) if isinstance(value, dict) else None
        return None

    def _count_labels_alone(self, group: list[Member], archive: str) -> None:
        parts = {member.part for member in group if not member.is_label}
        for member in group:
            if member.is_label and not (member.part in parts or (parts and not member.part)):
                self.omissions.add(
                    "label", "no image that it labels is beside it", f"{archive}!{member.name}"
                )


def _archives(given: str, omissions: Omissions) -> Iterator[tuple[str, Path]]:
    path = Path(given)
    if path.is_dir():
        yield from ((name, path / name) for name in files_under(path, omissions, _why_not_archive))
    elif path.exists():
        yield path.name, path
    else:
        unique = UniqueIds()
        yield from ((unique(Path(match).name), Path(match)) for match in _matches(given, omissions))


def _matches(pattern: str, omissions: Omissions) -> Iterator[str]:
    """Yield the files of a pattern; of one with a range also those that are not there, which say so."""
    names = _unfolded(pattern)
    for name in names:
        found = matches(name, omissions)
        yield from found or ([name] if len(names) > 1 else ())


def _unfolded(pattern: str) -> list[str]:
    """Return the names that WebDataset's notation of a range stands for, as in `shard-{000..127}.tar`."""
    if not (found := _RANGE.search(pattern)):
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    start, rest = pattern[: found.start()], _unfolded(pattern[found.end() :])
    if len(numbers) * len(rest) > _MOST_SHARDS:
        raise InputError(f"{pattern}: a range of more than {_MOST_SHARDS} archives: give fewer")
    return [f"{start}{number:0{len(first)}}{end}" for number in numbers for end in rest]


def _why_not_archive(name: str) -> str | None:
    if is_archive(name):
        return None
    return BESIDE_ARCHIVES if name.lower().endswith(".parquet") else NOT_AN_ARCHIVE


def _picture(name: str, uri: str, content: bytes | Unreadable, label: str | None) -> Picture:
    if isinstance(content, bytes):
        return Picture(name, uri, bytes_stamp(content), lambda: content, label)

    def read() -> ImageLike:
        return content.read()

    return Picture(name, uri, MISSING, read, label, is_broken=True)


def _label_member(members: Mapping[tuple[str, str], Member], part: str) -> Member | None:
    """Return the member that labels an image: that of its own part of the key first."""
    found = (members.get((one, suffix)) for one in (part, "") for suffix in LABELS)
    return next((member for member in found if member), None)
