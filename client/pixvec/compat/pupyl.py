"""pupyl's characteristics: the nine networks by the names and numbers that pupyl gave them.

>>> Characteristics.by_name("MEDIUMWEIGHT_QUICK_GOOD_PRECISION").model
'pupyl-densenet201'

PixvecError
└── UnknownCharacteristics           no network goes by that name or number
    ├── UnknownCharacteristicsName
    └── UnknownCharacteristicsValue
"""

import enum
from typing import Self

from pixvec._errors import PixvecError

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


class UnknownCharacteristics(PixvecError):  # noqa: N818 - pupyl's own name, as are the two below
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
        if name not in cls.__members__:
            known = ", ".join(cls.__members__)
            raise UnknownCharacteristicsName(f"no characteristic is called {name!r}; known: {known}")
        return cls[name]

    @classmethod
    def by_value(cls, value: int) -> Self:
        """Return the characteristic of a number. Raises UnknownCharacteristicsValue."""
        if value not in _NETWORKS:
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
