"""What points can be coloured by: a few named and coloured groups, whatever the column holds."""

import colorsys
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixvec._errors import InputError
from pixvec._types import Array

from ._bokeh import palette

# A renderer each: beyond this many the page crawls, and nobody tells the colours apart.
MOST_GROUPS = 250
OTHER, NONE, OTHER_COLOUR = "Other", "none", "#9a9a9a"
UNLABELLED, UNLABELLED_COLOUR = "Image", "#222222"
# Of a score the high end is of interest: the last of these groups holds one row in a hundred.
_QUANTILES = (0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)
_MOST_SINGLE_SCORES = 12
# Lightnesses and saturations to choose from; in Oklab, what is lighter is not seen on white.
_LIGHTEST = 0.85
_LEVELS = ((0.25, 0.4, 0.55, 0.68), (0.4, 0.7, 1.0))
# Colours nearer than this are taken for each other.
_NEAR = 0.1
_TO_CONES = np.array(
    [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
)
_FROM_CONES = np.array(
    [
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ]
)
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, slots=True)
class Group:
    """An entry of the legend."""

    name: str
    colour: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the dataset, and the groups that it puts rows into.

    group: (N,) int32, into groups. names and codes, (N,) int32, are a category's values, and values, (N,)
    float32, those of a score; the other ones are empty.
    """

    name: str
    groups: list[Group]
    group: Array
    names: list[str]
    codes: Array
    values: Array


def class_column(labels: Sequence[str | None], colours: Mapping[str, str]) -> Column:
    """Return the column of classes; rows without one are whole images among objects, or not labelled."""
    return _categories("class", list(labels), colours, Group(UNLABELLED, UNLABELLED_COLOUR))


def column_of(name: str, values: Array) -> Column:
    """Return a column of what the caller computed, (N,): of texts, None is none.

    Raises InputError for what is no such array.
    """
    none = Group(NONE, OTHER_COLOUR)
    if values.dtype.kind == "f":
        return _scores(name, values.astype(np.float32))
    if values.dtype.kind in "biu":
        return _categories(name, [str(value) for value in values.tolist()], {}, none)
    if values.dtype.kind in "OUT":
        texts = [None if value is None else str(value) for value in values.tolist()]
        return _categories(name, texts, {}, none)
    raise InputError(f"columns[{name!r}] is of {values.dtype}: pass texts, whole numbers, booleans or floats")


def _categories(name: str, values: list[str | None], colours: Mapping[str, str], absent: Group) -> Column:
    """Return the column of these values; those that are None are of the group `absent`."""
    counts = Counter(values)
    ordered = sorted(counts, key=lambda value: (value is not None, _natural(value or "")))
    code = {value: i for i, value in enumerate(ordered)}
    kept = set(ordered)
    if len(ordered) > MOST_GROUPS:
        kept = {value for value, _ in counts.most_common(MOST_GROUPS - 1)}
    shown = [value for value in ordered if value in kept]
    place = {value: i for i, value in enumerate(shown)}
    groups = _coloured(shown, colours, absent)
    if len(kept) < len(ordered):
        groups.append(Group(OTHER, OTHER_COLOUR))
    return Column(
        name,
        groups,
        group=np.array([place.get(value, len(shown)) for value in values], np.int32),
        names=[absent.name if value is None else value for value in ordered],
        codes=np.array([code[value] for value in values], np.int32),
        values=np.empty(0, np.float32),
    )


def _coloured(values: list[str | None], colours: Mapping[str, str], absent: Group) -> list[Group]:
    given = {value: str(colours.get(value, "")) for value in values if value is not None}
    taken = {value: colour for value, colour in given.items() if _COLOUR.fullmatch(colour)}
    own = iter(distinct_colours(len(given) - len(taken), list(taken.values())))
    return [absent if value is None else Group(value, taken.get(value) or next(own)) for value in values]


def distinct_colours(count: int, taken: Sequence[str] = ()) -> list[str]:
    """Return colours as far from each other, and from those taken, as that many can be.

    A known palette comes first, as far as it is not taken; each further one is the farthest from all before.
    """
    named = [one for one in palette("Category10") if _distances([one], taken).min(initial=1) > _NEAR]
    found = named[:count]
    mixed = [_hex(hls) for hls in itertools.product(np.arange(0, 1, 1 / 36), *_LEVELS)]
    candidates = _oklab(mixed)
    least = _distances(mixed, [*taken, *found, "#ffffff", UNLABELLED_COLOUR, OTHER_COLOUR]).min(axis=1)
    least[candidates[:, 0] > _LIGHTEST] = -1
    while len(found) < count:
        farthest = int(least.argmax())
        found.append(mixed[farthest])
        least = np.minimum(least, np.linalg.norm(candidates - candidates[farthest], axis=1))
    return found


def _hex(hls: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(*hls))


def _distances(colours: Sequence[str], others: Sequence[str]) -> Array:
    """Return how different colours look, (colours, others); black and white are 1 apart."""
    distances: Array = np.linalg.norm(_oklab(colours)[:, None] - _oklab(others)[None], axis=2)
    return distances


def _oklab(colours: Sequence[str]) -> Array:
    """Return colours in Oklab, (N, 3), whose distances are those that are seen (Ottosson 2020)."""
    parts = np.array([[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in colours]).reshape(-1, 3) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    seen: Array = np.cbrt(linear @ _TO_CONES.T) @ _FROM_CONES.T
    return seen


def _scores(name: str, values: Array) -> Column:
    known = values[np.isfinite(values)]
    singles = np.unique(known)
    if len(singles) <= _MOST_SINGLE_SCORES:
        group, names = np.searchsorted(singles, values), [_number(value) for value in singles]
    else:
        edges = np.unique(np.quantile(known, _QUANTILES))
        group = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        names = [f"{_number(a)} to {_number(b)}" for a, b in itertools.pairwise(edges)]
    shades = palette("Viridis256")
    steps = np.linspace(len(shades) - 1, 0, max(2, len(names))).astype(int)  # dark is high
    groups = [Group(told, shades[steps[i]]) for i, told in enumerate(names)]
    if len(known) < len(values):
        groups.append(Group("none", OTHER_COLOUR))
    group = np.where(np.isfinite(values), group, len(names)).astype(np.int32)
    return Column(name, groups, group, names=[], codes=np.empty(0, np.int32), values=values)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that puts class9 before class10, and -1 before 0."""
    parts = re.split(r"(^-?[0-9]{1,18}|[0-9]{1,18})", text.lower())
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part]
