"""Finds a model's bundle: a folder that was named, the cache, or one made on first use."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pixvec_server import bundle, catalog, log
from pixvec_server.errors import BundleError, ConfigError

_log = log.get("provision")
_children: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True, slots=True)
class Request:
    """One `--model`: a name, and the bundle's folder when one was given."""

    name: str
    folder: Path | None = None


def parse(text: str) -> Request:
    """Read NAME or NAME=PATH. Raises ConfigError or CatalogError before anything is loaded."""
    name, equals, path = text.partition("=")
    if not equals:
        return Request(catalog.find(name).name)
    if not path or not name:
        raise ConfigError(f"--model {text!r}: give NAME, or NAME=PATH of a bundle's folder")
    return Request(name, Path(path))


def cached(name: str, cache: Path) -> Path:
    """Return where the cache keeps a model's bundle, whether it is there or not."""
    return cache / "bundles" / bundle.FORMAT / name


def obtain(request: Request, cache: Path) -> bundle.Bundle:
    """Return the verified bundle, making it when it is neither given nor cached.

    Raises BundleError when it cannot be had: torch is missing, its files are altered, its name differs.
    """
    if request.folder is not None:
        found = bundle.load(request.folder)
        if found.manifest.name != request.name:
            raise BundleError(
                f"{request.folder} holds {found.manifest.name}, not {request.name}: serve it by its name"
            )
        return found
    folder = cached(request.name, cache)
    if not (folder / bundle.MANIFEST).is_file():
        _make(request.name, folder)
    return bundle.load(folder)


def _make(name: str, folder: Path) -> None:
    missing = [
        library for library in ("torch", "timm", "onnxscript") if importlib.util.find_spec(library) is None
    ]
    if missing:
        raise BundleError(
            f"no bundle of {name} at {folder}, and none can be made without {', '.join(missing)}: "
            f"pip install 'pixvec[torch]', or copy a bundle and serve --model {name}=PATH"
        )
    _log.info("making a bundle, once", model=name, folder=str(folder))
    # In a process of its own: the server keeps none of torch's 700 MB.
    command = [sys.executable, "-m", "pixvec_server", "export", name, "-o", str(folder)]
    # close_fds=False lets Python spawn without fork(), which a running gRPC server does not survive well.
    with subprocess.Popen(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, close_fds=False
    ) as child:
        _children.add(child)
        try:
            _, words = child.communicate()
        finally:
            _children.discard(child)
    if child.returncode != 0:
        raise BundleError(f"the bundle of {name} could not be made: {words.decode().strip()[-2000:]}")


def abandon() -> None:
    """End the processes that make bundles; what they had written is unfinished and not kept."""
    for child in list(_children):
        child.kill()
