"""Makes a bundle from a spec: whole and checked, or not at all."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pixvec_server import bundle
from pixvec_server.errors import BundleError, ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixvec_server.manifest import Manifest, Precision
    from pixvec_server.spec import ModelSpec

_TORCH_LIBRARIES = ("torch", "timm", "onnxscript")


def export(
    spec: ModelSpec,
    folder: Path,
    say: Callable[[str], None] = lambda _text: None,
    *,
    precision: Precision = "fp32",
) -> bundle.Bundle:
    """Write a bundle into `folder`, whole or not at all. Returns it loaded and verified.

    EfficientNet-Lite and graphs in ONNX need no torch. Raises ExportError when the graph does not agree with
    its reference, BundleError when the source is missing, is not what the architecture expects, or needs a
    library that is not installed.
    """
    if spec.weights == "none":
        say(f"{spec.name}: RANDOM WEIGHTS: its vectors mean nothing")
    elif not spec.trained:
        say(f"{spec.name}: the projection to {spec.projection} is RANDOM: train one, or expect noise")
    with _scratch(folder) as scratch:
        bundle.save(scratch, _write(spec, scratch, say, precision))
        _put(scratch, folder)
    return bundle.load(folder)


def _write(spec: ModelSpec, scratch: Path, say: Callable[[str], None], precision: Precision) -> Manifest:
    """Write a bundle's files with what its source needs; each library is loaded here, when it is needed."""
    if importlib.util.find_spec("onnx") is None:
        raise BundleError(f"{spec.name}: a bundle cannot be made without onnx: pip install 'pixvec[server]'")
    from pixvec_server import foreign, lite_export  # noqa: PLC0415 - see above

    if foreign.is_graph(spec):
        say(f"{spec.name}: wrapping {spec.location}")
        return foreign.wrap(spec, scratch)
    if precision == "fp32" and lite_export.is_supported(spec):
        return lite_export.write(spec, scratch, say)
    missing = [library for library in _TORCH_LIBRARIES if importlib.util.find_spec(library) is None]
    if missing:
        raise BundleError(
            f"{spec.name}: a bundle of {spec.source} cannot be made without {', '.join(missing)}: "
            f"pip install 'pixvec[torch]', or copy a finished bundle and serve --model {spec.name}=PATH"
        )
    from pixvec_server import torch_export  # noqa: PLC0415 - see above

    return torch_export.write(spec, scratch, say, precision)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder beside the bundle's, gone at the end unless it was moved into place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        scratch.chmod(0o755)  # a server runs as another user than the one who made its bundle
    except OSError as exc:
        raise BundleError(f"{folder}: {exc.strerror}") from exc
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(scratch: Path, folder: Path) -> None:
    """Move a finished bundle into place; another process's equal bundle may already be there."""
    try:
        scratch.rename(folder)
    except OSError as exc:
        if not (folder / bundle.MANIFEST).is_file():
            raise ExportError(
                f"{folder} is in the way: {exc.strerror}; remove it or choose another -o"
            ) from exc
