"""Fixtures that cost seconds, once a session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support import tiny
from support.servers import CACHE, Server, serve

from pixvec_server import bundle, provision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "efficientnet_lite0"
# CI tries the same inputs every time: what it finds is the change's. New ones are looked for at one's desk.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "here")


@pytest.fixture(scope="session")
def default_bundle() -> bundle.Bundle:
    """The default model's bundle, made once and kept between sessions."""
    return provision.obtain(provision.parse(MODEL), CACHE)


@pytest.fixture(scope="session")
def server(default_bundle: bundle.Bundle) -> Iterator[Server]:
    """A server of the default model, shared: tests must leave it idle."""
    with serve() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model's bundle."""
    return tiny.write(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_server(tiny_bundle: Path) -> Iterator[Server]:
    """A server of the tiny model, shared: tests must leave it idle."""
    with serve("--model", f"tiny={tiny_bundle}") as running:
        yield running
