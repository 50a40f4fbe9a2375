"""Fits a PCA to a model's vectors of a collection's own images, as one more output of its bundle."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixvec_server import bundle, vectors
from pixvec_server.errors import BundleError, ConfigError
from pixvec_server.manifest import Derived, OutputRecord
from pixvec_server.offline import Offline, as_served

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pixvec_server.manifest import Manifest
    from pixvec_server.types import F32

_UNTRAINED = "s1-untrained"
# A direction whose share of the standard deviation is below this is rounding.
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Fit:
    """Mean (n,) and components (dimensions, n), float32; the share of the variance that they keep."""

    mean: F32
    components: F32
    explained: float

    def project(self, values: F32) -> F32:
        """Turn rows (m, n), as they are served, into (m, dimensions) of unit length."""
        return np.stack([vectors.unit(self.components @ (row - self.mean)) for row in values])


@dataclass(frozen=True, slots=True)
class _Addition:
    """An output to be: its name, what it is fitted to, and that one's vectors (m, n) as they are served."""

    name: str
    of: str
    fit: Fit
    served: F32

    @property
    def file(self) -> str:
        """Name of the file of mean and components."""
        return f"{self.name}.npz"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of fitting a bundle: the output, how many images made it, and of those that failed why."""

    output: str
    count: int
    explained: float
    failed: dict[Path, str]


def fit(values: F32, dim: int) -> Fit:
    """Fit a PCA to rows (m, n): by SVD, centred, in float64.

    The sign of a component is the one that makes its largest value positive. Raises ConfigError when there
    are fewer than `dim` directions in the rows.
    """
    if len(values) < dim + 1:
        raise ConfigError(f"--dim {dim} needs at least {dim + 1} images, {len(values)} were embedded")
    if dim > values.shape[1]:
        raise ConfigError(f"--dim {dim}: the vectors have {values.shape[1]} numbers")
    wide = values.astype(np.float64)
    mean = wide.mean(0)
    _, spread, axes = np.linalg.svd(wide - mean, full_matrices=False)
    found = int((spread > _NOTHING * max(float(spread[0]), _NOTHING)).sum())
    if found < dim:
        raise ConfigError(
            f"--dim {dim}: the vectors of these {len(values)} images spread in {found} directions only: "
            "give more, and different ones"
        )
    components = axes[:dim]
    largest = components[np.arange(dim), np.abs(components).argmax(1)]
    components = components * np.sign(largest)[:, None]
    explained = float((spread[:dim] ** 2).sum() / (spread**2).sum())
    return Fit(mean.astype(np.float32), components.astype(np.float32), min(explained, 1.0))


def fit_bundle(
    made: bundle.Bundle,
    files: Sequence[Path],
    dim: int,
    *,
    of: str,
    folder: Path | None = None,
    on_done: Callable[[int], None] = lambda _count: None,
) -> Outcome:
    """Embed files with a bundle and add the output `pca-DIM` to it, or to a copy of it in a new `folder`.

    Files that cannot be embedded are left out and named. Raises ConfigError for an output or a number of
    images that allows no PCA, BundleError when the bundle cannot be written.
    """
    name = f"pca-{dim}"
    record = _source(made.manifest, of, name)
    if folder is not None and folder.exists():
        raise ConfigError(f"-o {folder}: is there already: choose a new folder")
    if len(files) < dim + 1:
        raise ConfigError(f"--dim {dim} needs at least {dim + 1} images, {len(files)} were given")
    with Offline(made) as ours:
        done = ours.embed_images(files, (of,), on_done)
    values, rows = done.values[of], np.array(done.rows, int)
    finite = np.isfinite(values).all(1)
    failed = {files[i]: why for i, why in done.failed.items()}
    failed |= {files[i]: "the model answered NaN or infinity" for i in rows[~finite]}
    served = as_served(values[finite], record)
    addition = _Addition(name, of, fit(served, dim), served)
    try:
        if folder is None:
            _add(made.folder, made.manifest, addition)
        else:
            _copy(made, folder, addition)
    except OSError as exc:
        raise BundleError(f"{folder or made.folder} cannot be written: {exc.strerror}") from exc
    return Outcome(name, len(served), addition.fit.explained, failed)


def _source(manifest: Manifest, of: str, name: str) -> OutputRecord:
    """Return the output that is fitted. Raises ConfigError when that cannot be."""
    record = manifest.outputs.get(of)
    plain = [key for key, held in manifest.outputs.items() if len(held.shape) == 1 and held.derived is None]
    if record is None or of not in plain:
        raise ConfigError(f"--output {of}: {manifest.name} has {', '.join(plain)} to fit a PCA to")
    if name in manifest.outputs:
        raise ConfigError(
            f"{manifest.name} has an output {name} already, and its vectors may be in use: choose another "
            "--dim, or make the bundle again"
        )
    return record


def _add(folder: Path, manifest: Manifest, addition: _Addition) -> None:
    """Write the components beside the graph, then bundle.json, which makes them part of the bundle."""
    scratch, file = folder / f".{addition.file}", folder / addition.file
    with scratch.open("wb") as sink:
        np.savez(sink, mean=addition.fit.mean, components=addition.fit.components)
    scratch.replace(file)
    whole = {
        **manifest.model_dump(),
        "outputs": {**manifest.outputs, addition.name: _output(manifest, addition)},
        "files": {**manifest.files, addition.file: bundle.record(file)},
    }
    bundle.save(folder, type(manifest).model_validate(whole))


def _copy(made: bundle.Bundle, folder: Path, addition: _Addition) -> None:
    """Write a bundle with the output into a new folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        scratch = Path(place) / folder.name  # of its own, with the permissions of any other folder
        scratch.mkdir()
        for file in made.manifest.files:
            shutil.copyfile(made.folder / file, scratch / file)
        _add(scratch, made.manifest, addition)
        scratch.rename(folder)


def _output(manifest: Manifest, addition: _Addition) -> OutputRecord:
    source, found = manifest.outputs[addition.of], addition.fit
    digest = hashlib.sha256(found.mean.astype("<f4").tobytes() + found.components.astype("<f4").tobytes())
    # The source's space stands for its own recipe; the components say the rest.
    space = bundle.space_id(
        manifest.weights_sha256,
        f"{source.space}/{addition.name}/{digest.hexdigest()}",
        manifest.preprocess,
        trained=not source.space.startswith(_UNTRAINED),
    )
    size = len(found.components)
    return OutputRecord(
        space=space,
        shape=(size,),
        dimensions=(size,),
        normalized=True,
        int8_scales=(vectors.int8_scale(found.project(addition.served), size, normalized=True),),
        derived=Derived(of=addition.of, file=addition.file, explained=found.explained),
    )
