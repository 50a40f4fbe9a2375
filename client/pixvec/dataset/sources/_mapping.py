"""Images that a program holds."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from pixvec._errors import InputError, PixvecError
from pixvec._inputs import ImageLike, to_input
from pixvec.dataset._pictures import Picture, SourceOptions, bytes_stamp

from ._common import NO_COLOURS, UniqueIds, broken_picture, named_picture
from ._foreign import label_text, parsing

Labelled: TypeAlias = "ImageLike | tuple[ImageLike, str | None]"


class InMemory:
    """The images of a mapping in its order: key -> image, or key -> (image, label); ids are the keys as text.

    An image is whatever the client takes. A file object is read when the source is made.
    """

    kind = "mapping"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: Mapping[str, Labelled], options: SourceOptions) -> None:
        if not given:
            raise InputError("the mapping holds no images; give key: image")
        self._images = [(str(key), *_split(key, value)) for key, value in given.items()]
        self._options = options
        self.total = len(self._images)

    def pictures(self) -> Iterator[Picture]:
        """Yield each image; one that the client would refuse says so."""
        unique = UniqueIds()
        for key, image, label in self._images:
            yield self._picture(unique(key), image, label)

    def _picture(self, name: str, image: ImageLike, label: str | None) -> Picture:
        if isinstance(image, str | os.PathLike) and not str(image).lower().startswith("data:"):
            return named_picture(name, os.fsdecode(image), Path(), self._options, label)
        try:
            stamp = bytes_stamp(to_input(image).SerializeToString(deterministic=True))
        except PixvecError as error:
            return broken_picture(name, name, error.message)
        return Picture(name, name, stamp, lambda: image, label)


def _split(key: str, value: Labelled) -> tuple[ImageLike, str | None]:
    where = f"images[{key!r}]"
    if isinstance(value, tuple) and len(value) != 2:
        raise InputError(f"{where}: a tuple is (image, label), not of {len(value)}")
    image, label = value if isinstance(value, tuple) else (value, None)
    with parsing(where):
        text = label_text(label)
        if callable(read := getattr(image, "read", None)):
            image = read()
    return image, text
