"""The names of a model in the Open Inference Protocol."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pixvec_server.errors import ModelNotFoundError
from pixvec_server.rpc.oip import views
from pixvec_server.rpc.oip.views import IMAGE, PIXELS, TEXT, View
from pixvec_server.types import State


class _Pipeline:
    """Serves the models of one dict, as the pipeline finds them."""

    def __init__(self, **engines: Any) -> None:
        self.engines = {name: SimpleNamespace(name=name, **vars(engine)) for name, engine in engines.items()}

    def find(self, name: str) -> Any:
        if name and name not in self.engines:
            raise ModelNotFoundError(f"no model is called {name!r}", field="model")
        return self.engines[name or next(iter(self.engines))]


def _engine(*, text: bool = False, prepared: bool = True, state: State = State.READY) -> SimpleNamespace:
    manifest = SimpleNamespace(text=object() if text else None)
    return SimpleNamespace(prepared=prepared, manifest=manifest, state=state)


def _found(pipeline: _Pipeline, name: str, version: str = "") -> tuple[str, View]:
    engine, view = views.find(pipeline, name, version)  # type: ignore[arg-type] # stands for a pipeline
    return engine.name, view


def test_a_model_has_a_name_for_each_kind_of_input() -> None:
    served = _Pipeline(a=_engine(), clip=_engine(text=True))
    assert _found(served, "a") == ("a", IMAGE)
    assert _found(served, "") == ("a", IMAGE)
    assert _found(served, "a_pixels", "1") == ("a", PIXELS)
    assert _found(served, "clip_text") == ("clip", TEXT)
    names = [engine.name + view.suffix for engine, view in views.every(served)]  # type: ignore[arg-type]
    assert names == ["a", "a_pixels", "clip", "clip_pixels", "clip_text"]


@pytest.mark.parametrize(
    "name", ["b", "b_pixels", "_pixels", "_text", "a_text", "a_pixels_pixels", "a_Pixels", "a_text_pixels"]
)
def test_an_unknown_name_is_named_in_full(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=repr(name)):
        _found(_Pipeline(a=_engine()), name)


def test_a_models_own_name_wins_over_a_view() -> None:
    served = _Pipeline(a=_engine(), a_pixels=_engine())
    assert _found(served, "a_pixels") == ("a_pixels", IMAGE)
    assert _found(served, "a_pixels_pixels") == ("a_pixels", PIXELS)


def test_a_text_model_that_is_still_loading_is_not_unknown() -> None:
    served = _Pipeline(clip=_engine(prepared=False, state=State.LOADING))
    assert _found(served, "clip_text") == ("clip", TEXT)


@pytest.mark.parametrize("version", ["0", "2", "-1", "01", "latest"])
def test_there_is_one_version(version: str) -> None:
    with pytest.raises(ModelNotFoundError, match="version 1 alone") as caught:
        _found(_Pipeline(a=_engine()), "a", version)
    assert caught.value.field == "version"


@pytest.mark.parametrize(
    ("state", "word", "reason"),
    [
        (State.READY, "READY", ""),
        (State.UNLOADED, "READY", "loaded at its next use"),
        (State.LOADING, "LOADING", "loading"),
        (State.FAILED, "UNAVAILABLE", "failed"),
    ],
)
def test_the_index_tells_a_models_state(state: State, word: str, reason: str) -> None:
    [engine] = _Pipeline(a=_engine(state=state)).engines.values()
    line = views.index(engine, PIXELS)  # type: ignore[arg-type] # stands for an engine
    assert (line.name, line.version, line.state, line.reason) == ("a_pixels", "1", word, reason)
