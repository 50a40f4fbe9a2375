"""What is made of foreign data: an error that names the file and the entry, whatever is wrong with it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any

from pixvec._errors import InputError, PixvecError
from pixvec._sources import printable

PATH_COLUMNS = ("path", "file", "filename", "image", "uri")
LABEL_COLUMNS = ("label", "class", "target")


class BrokenError(InputError):
    """Foreign data is not what its form promises; the message names the file and the entry."""


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Make a BrokenError that begins with `where` of whatever foreign data raises, but of no PixvecError."""
    try:
        yield
    except (PixvecError, MemoryError):
        raise
    except KeyError as error:
        raise _broken(where, f"it has no {error}") from error
    except OSError as error:
        raise _broken(where, error.strerror or error) from error
    except Exception as error:  # whatever the parsers make of foreign bytes
        raise _broken(where, error) from error


def load_json(path: Path) -> Mapping[str, Any]:
    """Return the object that a JSON file holds; raises BrokenError."""
    with parsing(str(path)):
        held = json.loads(path.read_bytes())
        if not isinstance(held, dict):
            raise TypeError(f"it holds a {type(held).__name__}; it must hold an object, {{…}}")
        return held


def listed(held: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list that an object of JSON must hold; raises KeyError or TypeError."""
    found = held[name]
    if not isinstance(found, list):
        raise TypeError(f"its {name} is a {type(found).__name__}; it must be a list")
    return found


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name that foreign data gives; raises ValueError where it leads out of the folder.

    The name alone is judged: links are followed, as stores of files that are linked into place need.
    """
    pure = PurePath(name)
    if not name or pure.anchor or ".." in pure.parts:
        raise ValueError(f"the name {name!r} leads out of {folder}")
    return folder / pure


def label_text(value: object) -> str | None:
    """Return a label as text: None for none, 3 for 3.0; raises TypeError for what is no label.

    The numbers of numpy are numbers too.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or value == "" or value != value:  # noqa: PLR0124 - NaN, a table's empty cell
        return None
    if not isinstance(value, str | Real):
        raise TypeError(f"a label is a text or a number, not {type(value).__name__}")
    whole = isinstance(value, Real) and not isinstance(value, Integral) and float(value).is_integer()
    return printable(f"{value:.0f}" if whole else str(value))


def _broken(where: str, why: object) -> BrokenError:
    return BrokenError(printable(f"{where}: {why}"))
