"""Fixtures that cost seconds, once a session."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support import tiny
from support.optional import OptionalModule
from support.servers import CACHE, Server, serve

from pixvec_server import bundle, provision
from pixvec_server.cpu import processor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL = "efficientnet_lite0"
# CI tries the same inputs every time: what it finds is the change's. New ones are looked for at one's desk.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "here")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Let a module of tests do without the libraries of extras."""
    return OptionalModule.from_parent(parent, path=module_path)


def pytest_report_header() -> str:
    """Name the processor, which decides what is skipped."""
    return f"processor: {processor()}"


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
