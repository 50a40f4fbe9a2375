"""Finds a model's bundle: a folder that was named, the cache, or one made on first use."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from pydantic import ValidationError

from pixvec_server import bundle, catalog, log
from pixvec_server.config import ModelSettings
from pixvec_server.errors import BundleError, ConfigError
from pixvec_server.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixvec_server.manifest import Precision

_KIND = re.compile(r"^(timm|open_clip|hf|file|wheel):")
_BAR = re.compile(r"\d+%\|")  # a line of a download's progress bar
_BAR_EVERY_S, _KEPT_LINES = 10.0, 30
# What a setting says of when a model is in memory, not of what it is.
_RESIDENCY = {"load", "idle_unload_s"}
_log = log.get("provision")
_children: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True, slots=True)
class Request:
    """One `--model`: its spec, or the bundle's folder when one was given; and its settings."""

    name: str
    spec: ModelSpec | None = None
    folder: Path | None = None
    settings: ModelSettings = field(default_factory=ModelSettings)


def parse(text: str, tables: Mapping[str, ModelSettings] | None = None) -> Request:
    """Read NAME, NAME=SOURCE or SOURCE, each with `?key=value&key=value`; `tables` are those of [models.*].

    SOURCE is KIND:WHERE (timm, open_clip, hf, file, wheel) or the path of a bundle's folder. Raises
    ConfigError or CatalogError before anything is loaded.
    """
    body, _, query = text.partition("?")
    name, _, source = body.partition("=")
    if _KIND.match(name):
        name, source = "", body
    if not body or body.startswith("=") or body.endswith("="):
        raise ConfigError(f"--model {text!r}: give NAME, NAME=SOURCE or SOURCE")
    settings = _settings(text, (tables or {}).get(name, ModelSettings()), query)
    source = source or settings.source or ""
    changes = settings.model_dump(exclude_none=True, exclude={"source", *_RESIDENCY})
    if source and not _KIND.match(source):
        return _of_folder(text, name, Path(source), settings, changes)
    spec = catalog.of_source(source, name) if source else catalog.find(name)
    if changes:
        spec = catalog.changed(spec, {"aliases": (), **changes}, text)
    return Request(spec.name, spec=spec, settings=settings)


def read_spec(text: str, tables: Mapping[str, ModelSettings], file: Path | None = None) -> ModelSpec:
    """Return the spec that a command was given, as `--model` would be, or in a file of JSON.

    Raises ConfigError when it names a bundle, which is made already.
    """
    if file is not None:
        return ModelSpec.model_validate_json(file.read_bytes())
    spec = parse(text, tables).spec if text else None
    if spec is None:
        raise ConfigError(f"{text!r} is no model to make a bundle of: give NAME, NAME=SOURCE or SOURCE")
    return spec


def cached(spec: ModelSpec, cache: Path, precision: Precision = "fp32") -> Path:
    """Return where the cache keeps a spec's bundle, whether it is there or not."""
    marks = [spec.digest(), *_stamps(spec), *([] if precision == "fp32" else [precision])]
    return cache / "bundles" / bundle.FORMAT / "-".join([spec.name, *marks])


def _stamps(spec: ModelSpec) -> list[str]:
    """Mark the files that a spec names by size and time: other weights, another bundle."""
    places = [spec.weights, spec.projection, spec.location if spec.kind == "file" else ""]
    found = [Path(place).stat() for place in places if place and Path(place).is_file()]
    return [hashlib.sha256(f"{s.st_size} {s.st_mtime_ns}".encode()).hexdigest()[:8] for s in found]


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
    assert request.spec is not None
    folder = cached(request.spec, cache)
    if not (folder / bundle.MANIFEST).is_file():
        _make(request.spec, folder)
    return bundle.load(folder)


def abandon() -> None:
    """End the processes that make bundles; what they had written is unfinished and not kept."""
    for child in list(_children):
        child.kill()


def _settings(text: str, table: ModelSettings, query: str) -> ModelSettings:
    given: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    if not given:
        return table
    if "towers" in given:
        given["towers"] = given["towers"].split(",")
    try:
        return ModelSettings(**{**table.model_dump(exclude_none=True), **given})
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(ModelSettings.model_fields)
        raise ConfigError(f"--model {text!r}: {key}: {first['msg']}; known settings: {known}") from exc


def _of_folder(
    text: str, name: str, folder: Path, settings: ModelSettings, changes: dict[str, Any]
) -> Request:
    if folder.suffix == ".onnx":
        raise ConfigError(f"--model {text!r}: for a graph give {name}=file:{folder}")
    if changes:
        raise ConfigError(
            f"--model {text!r}: {', '.join(changes)} cannot be changed of a bundle: give its source"
        )
    return Request(name, folder=folder, settings=settings)


def _make(spec: ModelSpec, folder: Path) -> None:
    _log.info("making a bundle, once", model=spec.name, source=spec.source, folder=str(folder))
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "spec.json"
        written.write_text(spec.model_dump_json(), encoding="utf-8")
        code, words = _run("export", "--spec", str(written), "-o", str(folder))
    if code != 0:
        reason = words.splitlines()[-1].removeprefix("pixvec-server: ") if words else f"exit status {code}"
        raise BundleError(f"no bundle of {spec.name} at {folder}, and none could be made: {reason}")


def _run(*words: str) -> tuple[int, str]:
    """Run our own command in a process of its own, so that the server keeps none of torch's 700 MB."""
    command = [sys.executable, "-m", "pixvec_server", *words]
    # close_fds=False lets Python spawn without fork(), which a running gRPC server does not survive well.
    with subprocess.Popen(  # noqa: S603 - our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        close_fds=False,
        text=True,
    ) as child:
        _children.add(child)
        try:
            assert child.stderr is not None
            said = _tell(child.stderr)
        finally:
            _children.discard(child)
    return child.returncode, said


def _tell(lines: IO[str]) -> str:
    """Log what the process says as it says it, a progress bar now and then; return its last lines."""
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    bar_at = 0.0
    for raw in lines:
        line = raw.strip()
        if not line:
            continue
        if _BAR.search(line):
            if time.monotonic() < bar_at + _BAR_EVERY_S:
                continue
            bar_at = time.monotonic()
        else:
            kept.append(line)
        _log.info("making", says=line)
    return "\n".join(kept)[-2000:]
