"""Embeds what is new or changed in a source, and keeps the rest."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from pixvec._client import Client
from pixvec._errors import (
    AuthenticationError,
    DeadlineError,
    InputError,
    ModelNotFoundError,
    OverloadedError,
    PixvecError,
    SpaceMismatchError,
    UnavailableError,
)
from pixvec._inputs import ImageLike
from pixvec._omissions import LeftOut, Omissions, lines
from pixvec._rows import without_path
from pixvec._sources import Unreadable
from pixvec._types import Embedded, Embedding, OutputInfo, Region, RegionLike, Target
from pixvec._version import __version__

from ._pictures import Annotation, Box, Picture, Source
from ._rows import LEAST_AREA, Instances, Key, Row, made_by
from ._store import Known, Place, Store

# A part is written when it has as many vectors, or is as old: what a killed run loses at most.
PART_ROWS, PART_S = 512, 30.0
# What the next image would meet too, after all the tries that the client's timeout has room for.
_OF_THE_SERVER = (
    UnavailableError,
    DeadlineError,
    OverloadedError,
    AuthenticationError,
    ModelNotFoundError,
    SpaceMismatchError,
)


# An image, what it held, and what was made of it: the same, whatever an annotation is called.
_Content: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """What is made of a source.

    instances: whole images, their annotated objects, or both. expand_px: objects' boxes grow by so many
    pixels on all sides (negative: shrink). force: compute everything again. allow_build_drift: keep vectors
    of the same space that another build of it made. batch_size: images of one request, at most.
    """

    model: str = ""
    output: str = ""
    dimensions: int | None = None
    normalize: bool | None = None
    instances: Instances = "images"
    expand_px: int = 0
    force: bool = False
    allow_build_drift: bool = False
    batch_size: int = 32


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run came to, in rows: `total` of the dataset now, of which `failed` have no vector.

    embedded: computed by this run. reused: kept from before. removed: of images and objects that are gone.
    skipped: objects too small to be taken, which have no row. left_out: files, annotations and other parts of
    the source that were not used, by reason, the most numerous first.
    """

    total: int
    embedded: int
    reused: int
    removed: int
    failed: int
    skipped: int
    left_out: tuple[LeftOut, ...] = ()


@dataclass(slots=True)
class _Entry:
    """A row of the dataset to be: settled, or waiting for its vector."""

    row: Row
    place: Place | None = None
    region: Box | None = None
    area: float | None = None


class EmbedRun:
    """One run over a source into a store; `progress` is told the pictures done, and their number if known."""

    def __init__(
        self,
        client: Client,
        source: Source,
        store: Store,
        settings: EmbedSettings,
        progress: Callable[[int, int | None], object] = lambda _done, _total: None,
    ) -> None:
        self._client, self._source, self._store = client, source, store
        self._settings, self._progress = settings, progress
        self._entries: list[_Entry] = []
        self._unwritten: list[_Entry] = []
        self._part_begun = time.monotonic()
        self._omissions = Omissions()
        self._skipped = self._embedded = self._reused = self._done = 0

    def run(self) -> Counts:
        """Bring the store up to date with the source. Raises InputError and what the client raises.

        Interrupted, or left by its server, it keeps what was computed: the next run goes on from there.
        """
        with self._store.locked():
            before = self._store.known()
            self._prepare(before)
            try:
                self._embed({} if self._settings.force else _by_content(before))
            finally:
                self._write_part()
            return self._finish(before)

    def _prepare(self, before: dict[Key, Known]) -> None:
        """Ask the server what it will make, and refuse to mix it with what another build made."""
        settings = self._settings
        info = self._client.model(settings.model)
        output = info.output(settings.output)
        if output is None:
            known = ", ".join(one.name for one in info.outputs)
            raise ModelNotFoundError(f"output = {settings.output!r}: {info.name} has {known}")
        if len(output.shape) != 1:
            raise InputError(
                f"output = {output.name!r} is a map of {list(output.shape)}: take one of vectors"
            )
        normalize = output.normalized if settings.normalize is None else settings.normalize
        self._target = Target(info.name, output.name, settings.dimensions, normalize, space=output.space)
        size = settings.dimensions or output.shape[0]
        self._recipe: dict[str, Any] = {"space": output.space, "size": size, "normalize": normalize}
        self._size, self._made_whole = size, made_by(self._recipe, None)
        self._build = _build_of(info.build, output)
        self._limit = self._client.limits().regions or 1
        others = {known.row.build for known in before.values() if known.row.status == "ok"} - {self._build}
        if others and not (settings.force or settings.allow_build_drift):
            raise InputError(
                f"the dataset was made by {', '.join(sorted(others))}, and the server is {self._build}: "
                "--allow-build-drift keeps what is there if its space is the same, --force computes all anew"
            )

    def _embed(self, known: dict[_Content, Known]) -> None:
        """Ask for what is not known, a few requests ahead of what has been answered."""
        asked: deque[tuple[list[_Entry], bool]] = deque()
        regions: deque[list[RegionLike]] = deque()

        def images() -> Iterator[ImageLike]:
            for picture, missing, last in self._missing(known):
                asked.append((missing, last))
                regions.append([_region(entry) for entry in missing])
                yield _readable(picture)

        def boxes() -> Iterator[list[RegionLike]]:
            while regions:
                yield regions.popleft()

        outcomes = self._client.embed_iter_full(
            images(), regions=boxes(), targets=[self._target], batch_size=self._settings.batch_size
        )
        with closing(outcomes):
            for outcome in outcomes:
                entries, last = asked.popleft()
                self._take(entries, outcome)
                if last:
                    self._tell()

    def _missing(self, known: dict[_Content, Known]) -> Iterator[tuple[Picture, list[_Entry], bool]]:
        """Yield each picture with the rows that it must be sent for, no more at a time than a request may.

        The last value tells whether these are the last of its rows.
        """
        for picture in self._source.pictures():
            entries = self._entries_of(picture)
            self._entries += entries
            missing = [entry for entry in entries if not self._settled(entry, known)]
            for start in range(0, len(missing), self._limit):
                end = start + self._limit
                yield picture, missing[start:end], end >= len(missing)
            if not missing:
                self._tell()

    def _entries_of(self, picture: Picture) -> list[_Entry]:
        """Return the rows of a picture, at least one."""
        settings = self._settings
        self._count_without_extent(picture)
        entries = [self._entry(picture, None)] if settings.instances != "objects" else []
        if settings.instances != "images":
            taken = [
                entry for entry in (self._entry(picture, one) for one in picture.objects) if _large(entry)
            ]
            self._skipped += len(picture.objects) - len(taken)
            entries += taken
        return entries or [self._without_objects(picture)]

    def _without_objects(self, picture: Picture) -> _Entry:
        """Return the one row of a picture of which no object is taken; reading a broken one will fail."""
        entry = self._entry(picture, None)
        return entry if picture.is_broken else _Entry(replace(entry.row, status="empty"))

    def _count_without_extent(self, picture: Picture) -> None:
        for marked in picture.objects:
            left, top, right, bottom = marked.box
            if right <= left or bottom <= top:
                name = f"{picture.id}, object {marked.id}"
                self._omissions.add("annotation", "its box covers nothing of its image", name)

    def _entry(self, picture: Picture, marked: Annotation | None) -> _Entry:
        region = None if marked is None else _expanded(marked.box, self._settings.expand_px)
        row = Row(
            id=picture.id,
            uri=picture.uri,
            stamp=picture.stamp,
            made=self._made_whole if region is None else made_by(self._recipe, region),
            object=marked.id if marked else None,
            label=marked.label if marked else picture.label,
            box=marked.box if marked else None,
            outline=marked.outline if marked else (),
        )
        return _Entry(row, region=region, area=marked.area if marked else None)

    def _settled(self, entry: _Entry, known: dict[_Content, Known]) -> bool:
        """Tell whether a row needs no vector, or has it from before; what is annotated may have changed."""
        if entry.row.status == "empty":
            return True
        before = known.get(_content(entry.row))
        if before is None:
            return False
        old = before.row
        entry.row = replace(entry.row, status=old.status, reason=old.reason, error=old.error, build=old.build)
        entry.place = before.place
        self._reused += 1
        return True

    def _take(self, entries: list[_Entry], outcome: Embedded | PixvecError) -> None:
        if isinstance(outcome, _OF_THE_SERVER):
            outcome.index = None
            raise outcome
        for i, entry in enumerate(entries):
            answer = outcome if isinstance(outcome, PixvecError) else outcome.embeddings[i][0]
            entry.row = _answered(entry.row, answer)
            self._embedded += entry.row.status == "ok"
        self._unwritten += entries
        if len(self._unwritten) >= PART_ROWS or time.monotonic() - self._part_begun > PART_S:
            self._write_part()

    def _write_part(self) -> None:
        if self._unwritten:
            places = self._store.add_part([entry.row for entry in self._unwritten], self._size)
            for entry, place in zip(self._unwritten, places, strict=True):
                entry.row, entry.place = entry.row.about(), place
            self._unwritten.clear()
        self._part_begun = time.monotonic()

    def _finish(self, before: dict[Key, Known]) -> Counts:
        left_out = self._left_out()
        gone = set(before) - {entry.row.key for entry in self._entries}
        counts = Counts(
            total=len(self._entries),
            embedded=self._embedded,
            reused=self._reused,
            removed=len(gone),
            failed=sum(entry.row.status == "failed" for entry in self._entries),
            skipped=self._skipped,
            left_out=left_out,
        )
        rows = [(entry.row, entry.place) for entry in self._entries]
        about = self._about(counts)
        same = rows == [(known.row, known.place) for known in before.values()]
        if not same or self._store.unfinished or _lasting(about) != _lasting(self._store.about()):
            self._store.finish(rows, about, self._size)
        return counts

    def _left_out(self) -> tuple[LeftOut, ...]:
        """Return what was left out. Raises InputError where objects are asked for and none can be taken."""
        omissions: Omissions = getattr(self._source, "omissions", Omissions()).copy()
        omissions.add_all(self._omissions.all())
        left_out = omissions.all()
        if self._settings.instances == "objects" and all(one.row.object is None for one in self._entries):
            broken = sum(entry.row.status == "failed" for entry in self._entries)
            counts = {
                f"{self._skipped} are smaller than {LEAST_AREA} square pixels or outside of their image": (
                    self._skipped
                ),
                f"{broken} of its {len(self._entries)} images cannot be read": broken,
            }
            said = (
                f"instances is objects, and this source of kind {self._source.kind} has none that can be "
                "embedded: give one with annotations, or embed the images"
            )
            causes = (text for text, count in counts.items() if count)
            raise InputError("; ".join([said, *causes, *lines(left_out)]))
        return left_out

    def _about(self, counts: Counts) -> dict[str, Any]:
        builds = sorted({entry.row.build for entry in self._entries if entry.row.build})
        return {
            "origin": {
                "model": self._target.model,
                "output": self._target.output,
                "space": self._recipe["space"],
                "builds": builds,
                "normalized": self._recipe["normalize"],
                "dimensions": self._size,
            },
            "options": {"instances": self._settings.instances, "expand_px": self._settings.expand_px},
            "source": {"kind": self._source.kind},
            "colours": dict(self._source.colours),
            "counts": asdict(counts),
            "pixvec": __version__,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _tell(self) -> None:
        self._done += 1
        self._progress(self._done, self._source.total)


def _content(row: Row) -> _Content:
    return row.id, row.stamp, row.made


def _by_content(known: dict[Key, Known]) -> dict[_Content, Known]:
    """Return what need not be computed again, even if its object has another name by now."""
    return {_content(one.row): one for one in known.values() if one.row.settled and one.row.status != "empty"}


def _lasting(about: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataset tells of itself beside this run."""
    return {key: about.get(key) for key in ("origin", "options", "source", "colours")}


def _build_of(build: str, output: OutputInfo) -> str:
    """Return a model's build as it is named for one of its outputs, whose space comes first in it."""
    return f"{output.space}/{build.partition('/')[2]}"


def _expanded(box: Box, px: int) -> Box:
    left, top, right, bottom = box
    return left - px, top - px, right + px, bottom + px


def _large(entry: _Entry) -> bool:
    """Tell whether both the shape that was annotated and the crop are large enough to mean anything."""
    assert entry.region is not None
    assert entry.area is not None
    left, top, right, bottom = entry.region
    return entry.area >= LEAST_AREA and max(0, right - left) * max(0, bottom - top) >= LEAST_AREA


def _region(entry: _Entry) -> Region:
    return Region(whole=True) if entry.region is None else Region(*entry.region)


def _readable(picture: Picture) -> ImageLike:
    try:
        return picture.read()
    except OSError as error:
        return Unreadable(picture.id, error.strerror or without_path(error, picture.id, picture.uri))
    except PixvecError as error:
        return Unreadable(picture.id, without_path(error, picture.id, picture.uri))


def _answered(row: Row, answer: Embedding | PixvecError) -> Row:
    if isinstance(answer, Embedding) and answer.values is not None:
        build = answer.origin.build if answer.origin else ""
        return replace(row, vector=answer.dequantized(), build=build)
    error = answer.error if isinstance(answer, Embedding) else answer
    reason = getattr(error, "reason", "")
    return replace(row, status="failed", reason=reason, error=without_path(error, row.id, row.uri))
