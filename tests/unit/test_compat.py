"""pupyl's names lead to pupyl's networks."""

from __future__ import annotations

import pytest

from pixvec import PixvecError
from pixvec.compat.pupyl import (
    Characteristics,
    UnknownCharacteristics,
    UnknownCharacteristicsName,
    UnknownCharacteristicsValue,
)
from pixvec_server import catalog

# As pupyl's documentation has them: number, name, vector, side.
PUPYL = [
    (1, "MINIMUMWEIGHT_FAST_SMALL_PRECISION", 1024, 224),
    (2, "LIGHTWEIGHT_FAST_SMALL_PRECISION", 2048, 224),
    (3, "LIGHTWEIGHT_FAST_SHORT_PRECISION", 2048, 224),
    (4, "LIGHTWEIGHT_QUICK_SHORT_PRECISION", 1664, 224),
    (5, "MEDIUMWEIGHT_QUICK_GOOD_PRECISION", 1920, 224),
    (6, "MIDDLEWEIGHT_QUICK_GOOD_PRECISION", 2048, 299),
    (7, "MIDDLEWEIGHT_SLOW_GOOD_PRECISION", 2048, 299),
    (8, "HEAVYWEIGHT_SLOW_GOOD_PRECISION", 1280, 480),
    (9, "HEAVYWEIGHT_SLOW_HUGE_PRECISION", 1280, 480),
]


@pytest.mark.parametrize(("value", "name", "dimensions", "side"), PUPYL)
def test_name_and_number_lead_to_the_same_network(value: int, name: str, dimensions: int, side: int) -> None:
    found = Characteristics.by_value(value)
    assert found is Characteristics.by_name(name) is Characteristics[name]
    assert (found.value, found.name, found.dimensions, found.side) == (value, name, dimensions, side)


def test_there_are_nine() -> None:
    assert len(Characteristics) == len(PUPYL) == len({one.model for one in Characteristics})


@pytest.mark.parametrize("one", Characteristics)
def test_the_server_knows_each(one: Characteristics) -> None:
    preset = catalog.presets()[one.model]
    assert preset.preprocess is not None
    assert (preset.outputs["embedding"], preset.preprocess.height) == (one.dimensions, one.side)
    assert {catalog.find(one.name).name, catalog.find(f"pupyl-{one.value}").name} == {one.model}


@pytest.mark.parametrize("name", ["", "HEAVYWEIGHT", "heavyweight_slow_huge_precision", "name"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownCharacteristicsName, match="known: MINIMUMWEIGHT_FAST_SMALL_PRECISION, "):
        Characteristics.by_name(name)


@pytest.mark.parametrize("value", [0, 10, -1])
def test_an_unknown_number_is_refused(value: int) -> None:
    with pytest.raises(UnknownCharacteristicsValue, match="1 to 9 are known") as caught:
        Characteristics.by_value(value)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_one_except_catches_them_all() -> None:
    assert issubclass(UnknownCharacteristicsName, UnknownCharacteristics)
    assert issubclass(UnknownCharacteristicsValue, UnknownCharacteristics)
    assert issubclass(UnknownCharacteristics, PixvecError)
