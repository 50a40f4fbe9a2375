"""What is made of foreign data: an error that names the file and the entry, whatever is wrong with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from pixvec._errors import InputError
from pixvec._sources import printable

PATH_COLUMNS = ("path", "file", "filename", "image", "uri")
LABEL_COLUMNS = ("label", "class", "target")


class BrokenError(InputError):
    """Foreign data is not what its form promises; the message names the file and the entry."""


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Make a BrokenError that begins with `where` of whatever foreign data raises."""
    try:
        yield
    except KeyError as error:
        raise _broken(where, f"it has no {error}") from error
    except OSError as error:
        raise _broken(where, error.strerror or error) from error
    except (ArithmeticError, AttributeError, IndexError, RecursionError, TypeError, ValueError) as error:
        raise _broken(where, error) from error


def load_json(path: Path) -> Any:  # noqa: ANN401 - what it holds is for the caller to find out
    """Return what a JSON file holds; raises BrokenError."""
    with parsing(str(path)):
        return json.loads(path.read_bytes())


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name that foreign data gives; raises ValueError where it leads out of the folder.

    The name alone is judged: links are followed, as stores of files that are linked into place need.
    """
    pure = PurePath(name)
    if not name or pure.anchor or ".." in pure.parts:
        raise ValueError(f"the name {name!r} leads out of {folder}")
    return folder / pure


def label_text(value: object) -> str | None:
    """Return a label as text: None for none, 3 for 3.0; raises TypeError for what is no label."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or value == "" or value != value:  # noqa: PLR0124 - NaN, a table's empty cell
        return None
    if not isinstance(value, str | int | float):
        raise TypeError(f"a label is a text or a number, not {type(value).__name__}")
    return printable(str(int(value) if isinstance(value, float) and value.is_integer() else value))


def _broken(where: str, why: object) -> BrokenError:
    return BrokenError(printable(f"{where}: {why}"))
