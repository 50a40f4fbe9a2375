"""Which failed imports skip a module of tests, and which fail it."""

from __future__ import annotations

import pytest
from support import optional


@pytest.mark.parametrize("name", ["torch", "torch.nn", "sklearn.datasets"])
def test_a_missing_library_of_an_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda _name: None)
    assert optional.missing_library(ModuleNotFoundError("", name=name)) == name.partition(".")[0]


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("", name="pixvec_server.nothing"),
        ModuleNotFoundError("", name="numpy"),
        ImportError("cannot import name", name="pixvec"),
        ImportError("without a name"),
        ValueError("torch"),
        None,
    ],
)
def test_any_other_error_fails_the_module(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda _name: None)
    assert optional.missing_library(error) == ""


def test_a_library_that_is_there_but_broken_fails_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "OPTIONAL", frozenset({"pytest"}))
    assert optional.missing_library(ImportError("cannot import name", name="pytest.nothing")) == ""
