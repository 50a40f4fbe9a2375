"""What is made of foreign data: an error that names the file and the entry, whatever is wrong with it."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any

from pixvec._errors import InputError, PixvecError
from pixvec._omissions import Omissions, printable

PATH_COLUMNS = (
    *("path", "file", "filename", "image", "uri", "file_name", "filepath", "file_path", "image_path"),
    *("imagepath", "image_file", "image_filename", "image_name", "img", "img_path", "url", "image_url"),
)
LABEL_COLUMNS = ("label", "class", "target", "class_name", "label_name", "category")


class BrokenError(InputError):
    """Foreign data is not what its form promises; the message names the file and the entry."""


class OddError(Exception):
    """An entry of foreign data cannot be used, while the data around it can.

    reason: the same text for all entries that cannot be used for it. detail: what this one holds.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@contextmanager
def tolerating(omissions: Omissions, what: str, where: str) -> Iterator[None]:
    """Count an entry of foreign data as left out where it raises anything but an error of the caller's."""
    try:
        yield
    except OddError as error:
        omissions.add(what, error.reason, f"{where}: {error.detail}" if error.detail else where)
    except BrokenError as error:
        omissions.add(what, "it cannot be read", error.message)
    except (PixvecError, MemoryError):
        raise
    except KeyError as error:
        omissions.add(what, f"it has no {error}", where)
    except Exception as error:  # noqa: BLE001 - whatever the parsers make of foreign bytes
        omissions.add(what, "it is malformed", f"{where}: {error}")


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
    if not name:
        raise ValueError("the name is empty")
    if pure.anchor or ".." in pure.parts:
        raise ValueError(f"the name {short(name)} leads out of {folder}")
    return folder / pure


def short(value: object) -> str:
    """Return a value as text of bounded length, for an error."""
    return reprlib.repr(value)


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
