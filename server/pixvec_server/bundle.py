"""A bundle: a folder with `bundle.json` and the files that it names, each with its SHA-256.

The image graph's input is `pixels`: uint8 (n, height, width, 3) RGB. Its outputs are float32 and carry the
prefix `out_`. Mean, standard deviation, layout and pooling are inside the graph; unit length and cutting
are the caller's options and come after it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pixvec_server.errors import BundleError
from pixvec_server.graphfile import names_other_files

MANIFEST = "bundle.json"
FORMAT = "v1"  # names the cache's folder; moves with Manifest.format
GRAPH_PREFIX = "out_"
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreprocessRecord(_Frozen):
    """What happens to an image before the graph; see `preprocess.PreprocessSpec`."""

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mode: Literal["short_side_crop", "squash"] = "short_side_crop"
    crop: float = Field(1.0, gt=0, le=1)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"

    @model_validator(mode="after")
    def _crop_is_square(self) -> Self:
        if self.mode == "short_side_crop" and self.height != self.width:
            raise ValueError("short_side_crop needs height = width: take squash")
        return self


class OutputRecord(_Frozen):
    """One output: the shape of one item, its space, the sizes that it may be cut to (the full size first)."""

    space: str = Field(min_length=1)
    shape: tuple[int, ...] = Field(min_length=1)
    dimensions: tuple[int, ...] = ()
    normalized: bool = False
    int8_scales: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.dimensions and (self.dimensions[0] != self.shape[0] or len(self.shape) != 1):
            raise ValueError("dimensions must begin with the full size of a vector")
        if self.int8_scales and len(self.int8_scales) != len(self.dimensions):
            raise ValueError("int8_scales must be as many as dimensions")
        return self


class FileRecord(_Frozen):
    """One file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Frozen):
    """The contents of bundle.json."""

    format: Literal[1] = 1
    name: str = Field(pattern=NAME)
    aliases: tuple[str, ...] = ()
    source: str
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the canonical fp32 tensors")
    licence: str
    preprocess: PreprocessRecord
    outputs: dict[str, OutputRecord] = Field(min_length=1)
    graph: str = "image.onnx"
    parity: float | None = Field(None, description="worst cosine of the graph to its source, over the probes")
    files: dict[str, FileRecord] = Field(min_length=1)
    made_with: dict[str, str] = {}

    @model_validator(mode="after")
    def _has_what_is_served(self) -> Self:
        if "embedding" not in self.outputs:
            raise ValueError("outputs must hold `embedding`")
        return self


class Bundle:
    """A bundle whose files have been read once and found to be what the manifest says."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def read_graph(self) -> bytes:
        """Return the image graph, verified as it is read. Raises BundleError."""
        name = self.manifest.graph
        data = (self.folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"{self.folder / name} has changed since the check: make the bundle again")
        if names_other_files(data):
            raise BundleError(f"{self.folder / name} keeps weights in other files, which is not allowed")
        return data


def load(folder: Path) -> Bundle:
    """Read a bundle and verify every file. Raises BundleError that names the file at fault."""
    manifest = _manifest(folder)
    if manifest.graph not in manifest.files:
        raise BundleError(f"{folder / MANIFEST}: the graph {manifest.graph} is not among its files")
    for name, record in manifest.files.items():
        _verify(folder, name, record)
    return Bundle(folder, manifest)


def save(folder: Path, manifest: Manifest) -> None:
    """Write bundle.json into a folder that holds the manifest's files."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def record(path: Path) -> FileRecord:
    """Measure a file for the manifest."""
    return FileRecord(sha256=_sha256(path), bytes=path.stat().st_size)


def space_id(weights_sha256: str, output: str, meaning: PreprocessRecord) -> str:
    """Name what may be compared: a hash of the weights, the output and the preprocessing's meaning.

    Never of the graph's bytes: another precision or a newer exporter stays in the same space.
    """
    words = json.dumps([weights_sha256, output, meaning.model_dump(mode="json")], sort_keys=True)
    return "s1-" + hashlib.sha256(words.encode()).hexdigest()[:24]


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: {folder} is no bundle") from None
    except OSError as exc:
        raise BundleError(f"{path}: {exc.strerror}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contents"
        raise BundleError(f"{path}: {where}: {first['msg']}") from exc


def _verify(folder: Path, name: str, expected: FileRecord) -> None:
    pure = PurePosixPath(name)
    path = folder / name
    if pure.is_absolute() or len(pure.parts) != 1 or name in (".", "..") or path.is_symlink():
        raise BundleError(f"{folder / MANIFEST}: {name!r} is not a plain file inside the bundle")
    if not path.is_file():
        raise BundleError(f"{path} is missing: make the bundle again")
    if path.stat().st_size != expected.bytes or _sha256(path) != expected.sha256:
        raise BundleError(
            f"{path} is not the file that {MANIFEST} describes (SHA-256 differs): make the bundle again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
