"""A Supervisely project: a folder with a meta.json and a folder for each dataset."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pixvec._errors import InputError
from pixvec._image_files import NOT_AN_IMAGE, files_under
from pixvec._omissions import Omissions, lines, printable
from pixvec.dataset._pictures import Picture, SourceOptions

from ._common import UniqueIds, file_picture
from ._foreign import listed, load_json, parsing
from ._supervisely_objects import read_annotation

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


class Supervisely:
    """The images of a project's datasets with their tags, rectangles, polygons, bitmaps and lines.

    Corners are pixels that belong to the object, as in Supervisely: the box's right and bottom are one more.
    A line's area is its length, as of a line one pixel wide; a bitmap's is the number of its pixels; a
    polygon's is without its holes. Other geometries, and what cannot be used of an annotation, are left out
    and counted in `omissions`; the image stays. An image's class is the value, or the name, of the tag that
    `label_column` names, else its only tag without a value. The ids are `dataset/image`; `splits` names
    datasets, which are taken with those nested in them.
    """

    kind = "supervisely"
    colours: Mapping[str, str]
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        self._root, self._options, self._before = Path(given), options, Omissions()
        self._meta()
        datasets = dict(_datasets(self._root, "", set()))
        chosen = [name for name in datasets if not options.splits or _within(name, options.splits)]
        unknown = [split for split in options.splits if not any(_within(name, [split]) for name in datasets)]
        if unknown:
            raise InputError(
                f"{given}: no dataset {', '.join(unknown)}; it has {', '.join(datasets) or 'none'}"
            )
        self._images = [
            (dataset, datasets[dataset], image)
            for dataset in chosen
            for image in files_under(datasets[dataset] / "img", self._before)
        ]
        if not self._images:
            said = f"{given}: no images in the img folder of a dataset: {', '.join(chosen) or 'none'}"
            raise InputError("; ".join([said, *lines(self._before.all())]))
        self._count_annotations_without_image([(name, datasets[name]) for name in chosen])
        self.total = len(self._images)
        self.omissions = self._before.copy()

    def pictures(self) -> Iterator[Picture]:
        """Yield each image."""
        unique = UniqueIds()
        self.omissions = self._before.copy()
        for dataset, folder, image in self._images:
            name, path = unique(f"{dataset}/{image}"), folder / "img" / image
            annotation, tag = folder / "ann" / f"{image}.json", self._options.label_column
            label, objects = read_annotation(annotation, self._shapes, tag, self.omissions)
            yield file_picture(name, path, self._options, label, objects)

    def _count_annotations_without_image(self, datasets: Iterable[tuple[str, Path]]) -> None:
        known = {(dataset, f"{image}.json") for dataset, _, image in self._images}
        for dataset, folder in datasets:
            if not (folder / "ann").is_dir():
                continue
            for name in files_under(folder / "ann", Omissions(), _why_not_json):
                if (dataset, name) not in known:
                    example = f"{dataset}/ann/{name}"
                    self._before.add("annotation file", "it has no image of its name", example)

    def _meta(self) -> None:
        file = self._root / "meta.json"
        meta = load_json(file)
        with parsing(str(file)):
            classes = {printable(str(entry["title"])): entry for entry in listed(meta, "classes")}
            tags = {printable(str(entry["name"])): entry for entry in meta.get("tags") or ()}
            self._shapes = {title: entry.get("shape") for title, entry in classes.items()}
            colours = {title: str(entry.get("color")) for title, entry in (tags | classes).items()}
        self.colours = {title: text.lower() for title, text in colours.items() if _COLOUR.fullmatch(text)}
        tag = self._options.label_column
        if tag is not None and tag not in tags:
            raise InputError(f"{file}: label_column is {tag!r}, and its tags are {', '.join(tags) or 'none'}")


def _why_not_json(name: str) -> str | None:
    return None if name.endswith(".json") else NOT_AN_IMAGE


def _datasets(folder: Path, prefix: str, seen: set[Path]) -> Iterator[tuple[str, Path]]:
    """Yield names and folders of the datasets in a folder, each with those nested in it."""
    with parsing(str(folder)):
        children = sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    for child in children:
        if (real := child.resolve()) in seen:
            continue
        seen.add(real)
        name = f"{prefix}{child.name}"
        if (child / "img").is_dir():
            yield name, child
        if (child / "datasets").is_dir():
            yield from _datasets(child / "datasets", f"{name}/", seen)


def _within(dataset: str, splits: Sequence[str]) -> bool:
    return any(f"{dataset}/".startswith(f"{split}/") for split in splits)
