"""A bundle: a folder with `bundle.json` and the files that it names, each with its SHA-256.

The image graph's input is `pixels`: uint8 (n, height, width, 3) RGB; a text graph's is `tokens`: int64
(n, context). Outputs are float32 and carry the prefix `out_`. Mean, standard deviation, layout, pooling and
projection are inside the graph; unit length and cutting are the caller's options and come after it.
Weights past what one ONNX file can hold lie beside it, in files that the manifest lists too.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from pixvec_server.errors import BundleError
from pixvec_server.graphfile import externals
from pixvec_server.manifest import Derived, FileRecord, Manifest

if TYPE_CHECKING:
    from pixvec_server.spec import Preprocess
    from pixvec_server.types import F32

MANIFEST = "bundle.json"
FORMAT = "v2"  # names the cache's folder; moves with Manifest.format
GRAPH_PREFIX = "out_"
_LONGEST_NAME, _LARGEST_MANIFEST = 255, 1 << 24  # bytes


class Bundle:
    """A bundle whose files have been read once and found to be what the manifest says."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def graph(self, tower: str = "image") -> bytes | Path:
        """Return a tower's graph, verified as it is read: its bytes, or its path when weights lie beside it.

        Raises BundleError when the file has changed, or points at one that is not the bundle's own.
        """
        name = self.manifest.graph_of(tower)
        data = self.read(name)
        try:
            pointers = externals(data)
        except ValueError as exc:
            raise BundleError(f"{self.folder / name}: {exc}") from exc
        for location in {pointer.location for pointer in pointers}:
            end = max(p.offset + p.length for p in pointers if p.location == location)
            if confined(self.folder, location, end) != self.manifest.files.get(location):
                raise BundleError(
                    f"{self.folder / name} keeps weights in {location}, which is not the file that "
                    f"{MANIFEST} describes"
                )
        return self.folder / name if pointers else data

    def read(self, name: str) -> bytes:
        """Return a small file, verified as it is read. Raises BundleError when it has changed."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError as exc:
            raise BundleError(f"{self.folder / name}: {exc.strerror}: it was there at the check") from exc
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"{self.folder / name} has changed since the check: make the bundle again")
        return data

    def components(self, derived: Derived) -> tuple[F32, F32]:
        """Return a derived output's mean (n,) and components (dimensions, n). Raises BundleError."""
        path, of = self.folder / derived.file, self.manifest.outputs[derived.of]
        sizes = [out.shape for out in self.manifest.outputs.values() if out.derived == derived]
        try:
            with np.load(io.BytesIO(self.read(derived.file)), allow_pickle=False) as held:
                mean, components = held["mean"], held["components"]
        except BundleError:
            raise
        except Exception as exc:  # numpy raises anything on hostile bytes
            raise BundleError(f"{path} is no npz of mean and components") from exc
        if mean.shape != of.shape or components.shape != (*sizes[0], *of.shape):
            raise BundleError(f"{path} does not fit vectors of {list(of.shape)}")
        if any(a.dtype != np.float32 or not np.isfinite(a).all() for a in (mean, components)):
            raise BundleError(f"{path} must hold finite float32 numbers")
        return mean, components


def confined(folder: Path, location: str, end: int) -> FileRecord:
    """Measure a file of weights that a graph points at, which must lie in `folder` itself.

    Raises BundleError for a path that leads elsewhere, a link of either kind, or a read past the end.
    """
    path = folder / location
    if not _is_plain(location) or path.is_symlink() or not path.is_file():
        raise BundleError(f"a graph in {folder} keeps weights in {location!r}: not a plain file beside it")
    # A second name for the file would let another folder change it under our feet.
    if path.stat().st_nlink != 1:
        raise BundleError(f"{path} is a hard link: weights must be a file of one name")
    if end > path.stat().st_size:
        raise BundleError(f"a graph in {folder} reads {location} past its end")
    return record(path)


def load(folder: Path) -> Bundle:
    """Read a bundle and verify every file. Raises BundleError that names the file at fault."""
    manifest = _manifest(folder)
    for name, expected in manifest.files.items():
        _verify(folder, name, expected)
    return Bundle(folder, manifest)


def open_verified(folder: Path) -> Bundle:
    """Open a bundle whose files another process of ours has verified; what is read of it, is again.

    Raises BundleError when its manifest cannot be read.
    """
    return Bundle(folder, _manifest(folder))


def save(folder: Path, manifest: Manifest) -> None:
    """Write bundle.json, whole or not at all, into a folder that holds the manifest's files."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2)
    scratch = folder / f".{MANIFEST}"
    scratch.write_text(text + "\n", encoding="utf-8")
    scratch.replace(folder / MANIFEST)


def record(path: Path) -> FileRecord:
    """Measure a file for the manifest."""
    return FileRecord(sha256=_sha256(path), bytes=path.stat().st_size)


def space_id(weights_sha256: str, recipe: str, meaning: Preprocess, *, trained: bool = True) -> str:
    """Name what may be compared: a hash of the weights, the vector's recipe and the preprocessing's meaning.

    Never of the graph's bytes: another precision or a newer exporter stays in the same space.
    """
    words = json.dumps([weights_sha256, recipe, meaning.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(words.encode()).hexdigest()[:24]
    return f"s1-{digest}" if trained else f"s1-untrained-{digest}"


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if path.exists() and (not path.is_file() or path.stat().st_size > _LARGEST_MANIFEST):
        raise BundleError(f"{path} is no plain file of at most {_LARGEST_MANIFEST >> 20} MiB")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: {folder} is no bundle") from None
    except OSError as exc:
        raise BundleError(f"{path}: {exc.strerror}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contents"
        raise BundleError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from exc


def _verify(folder: Path, name: str, expected: FileRecord) -> None:
    path = folder / name
    if not _is_plain(name) or path.is_symlink():
        raise BundleError(f"{folder / MANIFEST}: {name!r} is not a plain file inside the bundle")
    if not path.is_file():
        raise BundleError(f"{path} is missing: make the bundle again")
    if path.stat().st_size != expected.bytes or _sha256(path) != expected.sha256:
        raise BundleError(
            f"{path} is not the file that {MANIFEST} describes (SHA-256 differs): make the bundle again"
        )


def _is_plain(name: str) -> bool:
    short = len(name.encode(errors="replace")) <= _LONGEST_NAME
    return short and PurePosixPath(name).parts == (name,) and name not in ("..", "/") and "\0" not in name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
