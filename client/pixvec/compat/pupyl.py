"""pupyl's `embeddings.features`: nine networks by its names and numbers, and vectors of images from them.

>>> Characteristics.by_name("MEDIUMWEIGHT_QUICK_GOOD_PRECISION").model
'pupyl-densenet201'
>>> with Extractors(Characteristics.MINIMUMWEIGHT_FAST_SMALL_PRECISION) as extractor:   # doctest: +SKIP
...     extractor.extract("cat.jpg").shape
(1024,)

PixvecError
├── FileIsNotImage                   the file was read, and it is not an image
└── UnknownCharacteristics           no network goes by that name or number
    ├── UnknownCharacteristicsName
    └── UnknownCharacteristicsValue
"""

import enum
import os
from pathlib import Path
from typing import NoReturn, Self

import numpy as np

from pixvec._client import Client
from pixvec._errors import InputError, PixvecError, UndecodableError, UnsupportedFormatError
from pixvec._types import Array, Vectors

from . import Served, whole_file

# Number, preset of the catalogue, dimensions, side.
_NETWORKS = {
    1: ("pupyl-mobilenet", 1024, 224),
    2: ("pupyl-resnet50v2", 2048, 224),
    3: ("pupyl-resnet101v2", 2048, 224),
    4: ("pupyl-densenet169", 1664, 224),
    5: ("pupyl-densenet201", 1920, 224),
    6: ("pupyl-inceptionv3", 2048, 299),
    7: ("pupyl-xception", 2048, 299),
    8: ("pupyl-efficientnetv2m", 1280, 480),
    9: ("pupyl-efficientnetv2l", 1280, 480),
}


class FileIsNotImage(PixvecError):  # noqa: N818 - pupyl's own name, as are the three below
    """The file was read, and it is not an image of a format that the server decodes."""

    default_code = "INVALID_ARGUMENT"


class UnknownCharacteristics(PixvecError):  # noqa: N818
    """No network goes by that name or number; the message lists those that are known."""

    default_code = "INVALID_ARGUMENT"


class UnknownCharacteristicsName(UnknownCharacteristics):
    """No characteristic has that name."""


class UnknownCharacteristicsValue(UnknownCharacteristics):
    """No characteristic has that number."""


class Characteristics(enum.Enum):
    """A network by what it costs and what it gives: weight, speed, precision."""

    MINIMUMWEIGHT_FAST_SMALL_PRECISION = 1
    LIGHTWEIGHT_FAST_SMALL_PRECISION = 2
    LIGHTWEIGHT_FAST_SHORT_PRECISION = 3
    LIGHTWEIGHT_QUICK_SHORT_PRECISION = 4
    MEDIUMWEIGHT_QUICK_GOOD_PRECISION = 5
    MIDDLEWEIGHT_QUICK_GOOD_PRECISION = 6
    MIDDLEWEIGHT_SLOW_GOOD_PRECISION = 7
    HEAVYWEIGHT_SLOW_GOOD_PRECISION = 8
    HEAVYWEIGHT_SLOW_HUGE_PRECISION = 9

    @classmethod
    def by_name(cls, name: str) -> Self:
        """Return the characteristic of a name. Raises UnknownCharacteristicsName."""
        if not isinstance(name, str) or name not in cls.__members__:
            known = ", ".join(cls.__members__)
            raise UnknownCharacteristicsName(f"no characteristic is called {name!r}; known: {known}")
        return cls[name]

    @classmethod
    def by_value(cls, value: int) -> Self:
        """Return the characteristic of a number. Raises UnknownCharacteristicsValue."""
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value not in _NETWORKS:
            raise UnknownCharacteristicsValue(f"no characteristic has the number {value!r}: 1 to 9 are known")
        return cls(value)

    @property
    def model(self) -> str:
        """Name of the model in the server's catalogue."""
        return _NETWORKS[self.value][0]

    @property
    def dimensions(self) -> int:
        """Length of the vector."""
        return _NETWORKS[self.value][1]

    @property
    def side(self) -> int:
        """Side in pixels of the square that the network sees."""
        return _NETWORKS[self.value][2]


class Extractors:
    """Vectors of images by one of pupyl's networks, which a pixvec server runs.

    characteristics: the network; the server must serve its preset. extreme_mode: taken and not used: the
    server's memory is the server's affair. client: whose server is asked; None: see `pixvec.compat`.
    Raises UnknownCharacteristics for what is no characteristic.
    """

    def __init__(
        self,
        characteristics: Characteristics,
        extreme_mode: bool = True,
        client: Client | None = None,
    ) -> None:
        if not isinstance(characteristics, Characteristics):
            raise UnknownCharacteristics(
                f"characteristics = {characteristics!r}: pass a member of Characteristics, or "
                "Characteristics.by_name(...) or by_value(...) of it"
            )
        self.characteristics = characteristics
        self.extreme_mode = extreme_mode
        self._served = Served(characteristics.model, client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Free nothing: the network is in the server."""

    @property
    def output_shape(self) -> int:
        """Length of the vector, as the server has it."""
        return self._served.size

    def acceleration_discovery(self) -> str:
        """Return the device that the network runs on, such as "cpu" or "cuda:0", as the server has it."""
        return self._served.info.device

    def preprocessor(self, uri: str | os.PathLike[str]) -> NoReturn:
        """Refuse: the server prepares the pixels, and they never leave it. Raises NotImplementedError."""
        raise NotImplementedError(
            f"preprocessor({uri!r}): the server resizes and scales images itself, and the pixels "
            "stay there; extract(uri) gives the vector of the image as it is"
        )

    def extract(self, uri: str | os.PathLike[str]) -> Vectors:
        """Return the vector (D,) float32 of the image at a path or a file://, http:// or https:// URL.

        It is the maximum over the network's last map, not scaled to unit length. Raises FileIsNotImage, and
        InputError for what cannot be read or is no path.
        """
        if not isinstance(uri, str | os.PathLike):
            raise InputError(
                f"uri is a {type(uri).__name__}: pass a path or a URL, or the image to "
                f"pixvec.Client.embed(image, model={self._served.name!r}, normalize=False)"
            )
        try:
            return self._served.client.embed(uri, **self._served.wanted(normalize=False))
        except (UndecodableError, UnsupportedFormatError) as error:
            raise FileIsNotImage(
                f"{os.fspath(uri)}: {error.message}", reason=error.reason, request_id=error.request_id
            ) from error

    def extract_save(self, path: str | os.PathLike[str], uri: str | os.PathLike[str]) -> None:
        """Write the vector of an image to a file as `save` does, unless the file exists already.

        Raises as `extract` and `save` do.
        """
        if not (Path(path).exists() or _named(path).exists()):
            self.save(path, self.extract(uri))

    @staticmethod
    def save(path: str | os.PathLike[str], tensor: Array) -> None:
        """Write an array of numbers as numpy.save does, which puts .npy behind a name without it.

        The file appears when it is whole. Raises ValueError for an array of objects, OSError where the file
        cannot be written.
        """
        with whole_file(_named(path)) as file:
            np.save(file, np.asarray(tensor), allow_pickle=False)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Array:
        """Return the array that a file holds. Raises ValueError for one of objects, which could run code."""
        array: Array = np.load(path, allow_pickle=False)
        return array


def _named(path: str | os.PathLike[str]) -> Path:
    name = Path(path)
    return name if name.name.endswith(".npy") else name.with_name(f"{name.name}.npy")
