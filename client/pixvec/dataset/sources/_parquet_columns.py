"""Which columns of a Parquet file hold the image, its label and its id, and what the label's numbers mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixvec._errors import InputError
from pixvec._image_files import IMAGE_SUFFIXES
from pixvec.dataset._pictures import SourceOptions

from ._foreign import LABEL_COLUMNS, PATH_COLUMNS, OddError, label_text, parsing

_SUFFIXES = tuple(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
# Of the image's bytes: the usual names, and the suffixes, after which WebDataset's members are named.
_BYTES_COLUMNS = ("image_bytes", "img_bytes", "image_data", "bytes", "content", "data", *_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Columns:
    """by_role: the columns of the image, the label and the id, by these words; the last two may be missing.

    classes: names of the label's numbers from 0; empty: it has none.
    """

    by_role: Mapping[str, str]
    classes: Sequence[object]

    def label(self, value: object) -> str | None:
        """Return a row's label; raises OddError or TypeError for what is none."""
        if not self.classes or not isinstance(value, int):
            return label_text(value)
        if value == -1:  # as Hugging Face has it for rows without a label
            return None
        if not 0 <= value < len(self.classes):
            known = f"the names of classes are {len(self.classes)}, from 0"
            raise OddError("it is the number of no class", f"{value}; {known}")
        return label_text(self.classes[value])


def columns_of(schema: Any, options: SourceOptions, path: Path) -> Columns:  # noqa: ANN401 - pyarrow has no types
    """Return the columns that the options name, else that Hugging Face's metadata or the usual names tell.

    Raises InputError where there is none for the image, or more than one.
    """
    names: list[str] = schema.names
    features = _features(schema, path)
    image = (
        _named("path_column", options.path_column, names, path)
        or _first(name for name in names if features.get(name, {}).get("_type") == "Image")
        or _of_bytes(schema, path)
        or _usual(PATH_COLUMNS, names)
        or _first(field.name for field in schema if holds_bytes(field.type))
    )
    if image is None:
        raise InputError(f"{path}: which of its columns {names} holds the image? Give path_column")
    classes: dict[str | None, Sequence[object]] = {
        name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"
    }
    label = (
        _named("label_column", options.label_column, names, path)
        or _usual(LABEL_COLUMNS, names)
        or (next(iter(classes)) if len(classes) == 1 else None)
    )
    found = {"image": image, "label": label, "id": _usual(("id",), names)}
    by_role = {role: column for role, column in found.items() if column is not None}
    for role, column in by_role.items():
        if (times := names.count(column)) > 1:
            raise InputError(
                f"{path}: {times} of its columns are named {column!r}, which is its {role}'s: rename"
            )
    return Columns(by_role, classes.get(label, ()))


def _features(schema: Any, path: Path) -> dict[str, dict[str, Any]]:  # noqa: ANN401
    """Return what Hugging Face's datasets say of the columns."""
    with parsing(f"{path}: its metadata 'huggingface'"):
        held = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = held.get("info", {}).get("features") or {}
        return {
            name: feature
            for name, feature in features.items()
            if isinstance(feature, dict) and name in schema.names and _sound(feature)
        }


def _sound(feature: dict[str, Any]) -> bool:
    return feature.get("_type") != "ClassLabel" or isinstance(feature.get("names"), list)


def _of_bytes(schema: Any, path: Path) -> str | None:  # noqa: ANN401
    """Return the column of bytes that holds the image. Raises InputError where several may.

    Bytes of a fixed size are no image: they are a hash or a vector.
    """
    names = [field.name for field in schema if holds_bytes(field.type) and not _is_fixed(field.type)]
    usual = _usual((*PATH_COLUMNS, *_BYTES_COLUMNS), names)
    if usual is None and len(names) > 1:
        raise InputError(
            f"{path}: which of its columns {', '.join(names)} holds the image? Give path_column "
            "(--path-column)"
        )
    return usual or _first(names)


def _is_fixed(kind: Any) -> bool:  # noqa: ANN401
    from pyarrow import types  # noqa: PLC0415 - only this kind needs it

    return bool(types.is_fixed_size_binary(kind))


def _first(names: Any) -> str | None:  # noqa: ANN401
    return next(iter(names), None)


def _named(option: str, given: str | None, names: Sequence[str], path: Path) -> str | None:
    if given is None or given in names:
        return given
    if given.isdecimal() and int(given) < len(names):
        return names[int(given)]
    raise InputError(f"{path}: {option} is {given!r}, and its columns are {', '.join(names)}")


def _usual(usual: Sequence[str], names: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def holds_bytes(kind: Any) -> bool:  # noqa: ANN401
    """Tell whether a column of that type holds bytes, by themselves or in a struct."""
    from pyarrow import types  # noqa: PLC0415 - only this kind needs it

    if types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    if types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)
