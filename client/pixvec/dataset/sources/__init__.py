"""Reads images and what is known of them from the forms in which datasets are kept."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from pixvec._errors import InputError
from pixvec._image_files import is_archive
from pixvec.dataset._pictures import Source, SourceOptions

from ._coco import Coco
from ._csv import Csv
from ._folder import Folder
from ._foreign import parsing
from ._layouts import layout_of
from ._mapping import InMemory, Labelled
from ._npy import Npy
from ._parquet import Parquet
from ._supervisely import Supervisely
from ._tar import Tar
from ._voc import Voc

__all__ = ["KINDS", "Labelled", "open_source"]

_Opens: TypeAlias = Callable[[str, SourceOptions], Source]
_BY_KIND: Mapping[str, _Opens] = {
    source.kind: source for source in (Folder, Csv, Npy, Coco, Voc, Tar, Parquet, Supervisely)
}
KINDS = (*_BY_KIND, InMemory.kind)
_BY_SUFFIX = {
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".ndjson"), Csv.kind),
    ".npy": Npy.kind,
    ".json": Coco.kind,
    ".parquet": Parquet.kind,
}
_WITH_SPLITS = (Supervisely.kind, Voc.kind)
_DEFAULTS = SourceOptions()


def open_source(
    given: str | os.PathLike[str] | Mapping[str, Labelled], options: SourceOptions = _DEFAULTS
) -> Source:
    """Return the source of images that a path stands for, or a mapping of keys to images.

    The kind is `options.kind`, else found out: by a file's suffix; of a folder by what is in it. Two npy
    files are given as "data.npy,labels.npy", several archives as a folder or a pattern that ends in .tar.
    Raises InputError for what is not there, of no known kind, without images or not readable as its kind.
    """
    if options.kind and options.kind not in KINDS:
        raise InputError(f"kind is {options.kind!r}; it must be one of {', '.join(KINDS)}")
    if isinstance(given, Mapping):
        if options.kind not in {"", InMemory.kind}:
            raise InputError(
                f"kind is {options.kind!r}, but a mapping was given: give a path, or leave kind out"
            )
        _check_splits(InMemory.kind, options)
        return InMemory(given, options)
    if options.kind == InMemory.kind:
        raise InputError(f"kind is 'mapping', but {given!r} is a path: give a mapping, or leave kind out")
    name = os.fspath(given)
    if not name:
        raise InputError("the path of the source is empty: name a folder or a file")
    with parsing(name):
        kind, name = (options.kind, name) if options.kind else _kind(name)
    _check_splits(kind, options)
    return _BY_KIND[kind](name, options)


def _kind(name: str) -> tuple[str, str]:
    """Return the kind that a path is of, and the path to open."""
    path = Path(name)
    if path.is_dir():
        kind, found = layout_of(path)
        return kind, name if found == path else str(found)
    if is_archive(name):
        return Tar.kind, name
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix], name
    if not path.exists():
        raise InputError(f"{name}: there is no such file or folder")
    raise InputError(
        f"{name}: a source is a folder, a file that ends in {' '.join(_BY_SUFFIX)} or a tar archive; "
        f"options.kind says which of {', '.join(KINDS)} it is"
    )


def _check_splits(kind: str, options: SourceOptions) -> None:
    if options.splits and kind not in _WITH_SPLITS:
        raise InputError(
            f"splits is {', '.join(options.splits)}, but a source of kind {kind} has none: leave it out; "
            f"those of kind {' and '.join(_WITH_SPLITS)} have"
        )
