"""The rows of a dataset: an image, or an object in one, and what came of it."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from pixvec._types import Array

from ._pictures import Box, Outline

Instances = Literal["images", "objects", "both"]
Status = Literal["ok", "failed", "empty"]
# Objects below, and crops, are too small to mean anything; in square pixels, as the annotation tools have it.
LEAST_AREA = 9
# What another try cannot mend as long as the content stays.
LASTING = frozenset({"UNDECODABLE", "UNSUPPORTED_FORMAT", "TOO_LARGE", "BAD_OPTION", "NON_FINITE"})


class Key(NamedTuple):
    """What a row is of: an image by its id, and in it an object by its own, or the image itself."""

    id: str
    object: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `vector`, float32 (D,), is None unless status is "ok".

    status: "empty" is an image without an object that could be taken. box: as annotated, not expanded.
    made: names all that decides the numbers beside the content. reason, error: of a failed one.
    """

    id: str
    uri: str
    stamp: str
    made: str
    object: str | None = None
    label: str | None = None
    box: Box | None = None
    outline: Outline = ()
    status: Status = "ok"
    reason: str = ""
    error: str = ""
    build: str = ""
    vector: Array | None = None

    @property
    def key(self) -> Key:
        """What the row is of."""
        return Key(self.id, self.object)

    @property
    def settled(self) -> bool:
        """Whether the same content would come to the same."""
        return self.status != "failed" or self.reason in LASTING

    def about(self) -> Self:
        """Return the row without its vector, which may be large."""
        return replace(self, vector=None)


def made_by(recipe: dict[str, Any], region: Box | None) -> str:
    """Name what decides a vector's numbers beside the content: the recipe, and the region that was taken."""
    told = json.dumps([recipe, region], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
