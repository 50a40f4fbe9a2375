"""What `pixvec-server tune` found on this machine, and how `serve` obeys it.

The cache keeps one file for each bundle, `tuned/NAME-HASH.json`, with one entry for each machine, so that
unlike nodes may share a cache. An entry holds for the machine, the libraries and the pixvec that it was
measured with; anything else is ignored, and the log says why. A setting of the configuration wins over it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field, ValidationError

from pixvec_server import __version__, log
from pixvec_server.backends.base import Kind  # noqa: TC001 - pydantic reads the annotations
from pixvec_server.backends.select import choose
from pixvec_server.cpu import available_cpus, processor
from pixvec_server.errors import ConfigError, SetupError
from pixvec_server.manifest import Precision  # noqa: TC001 - as above
from pixvec_server.spec import NAME, Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixvec_server.backends.base import Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.config import Config, ModelSection
    from pixvec_server.manifest import Manifest

Goal: TypeAlias = Literal["balanced", "latency", "throughput"]
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch")
_LONGEST_NAME = 128
_LARGEST = 1 << 24  # bytes
_log = log.get("tuned")


class Machine(Frozen):
    """What figures are true of: the processor, how many of them, and the device's name or `cpu`."""

    cpu: str
    processors: int = Field(ge=1)
    device: str


class Fidelity(Frozen):
    """How near vectors are to those of the model's default, over `count` pictures."""

    count: int = Field(ge=1)
    cosine_mean: float
    cosine_min: float
    overlap_at_10: float
    same_nearest: float


class Setting(Frozen):
    """One way to run a model, what it gave, and whether it keeps the default's bar."""

    backend: Kind
    precision: Precision
    instances: int = Field(ge=1, le=16)
    max_batch: int = Field(ge=1, le=1024)
    threads: int = Field(ge=1)
    latency_ms: float = Field(ge=0, description="of a lone image, from the file to the vector")
    images_per_s: float = Field(ge=0, description="of the bare path, saturated")
    fidelity: Fidelity
    faithful: bool

    def __str__(self) -> str:
        """Name the setting, without its figures."""
        batches = "batch" if self.instances == 1 else "batches"
        return f"{self.backend} {self.precision}, {self.instances} {batches} of {self.max_batch} in flight"


class Entry(Frozen):
    """What one machine measured: what `auto` takes there, and the best of each backend and precision.

    `settings` begins with the best. `given` and `seeded` count the pictures that fidelity was measured with;
    `spread` is how many times the best round is as fast as the worst.
    """

    machine: Machine
    versions: dict[str, str]
    when: str
    goal: Goal
    given: int = Field(ge=0)
    seeded: int = Field(ge=0)
    spread: float = Field(ge=1)
    auto: Setting
    settings: tuple[Setting, ...] = Field(min_length=1)


class Tuned(Frozen):
    """The contents of the file."""

    format: Literal[1] = 1
    model: str = Field(pattern=NAME)
    entries: tuple[Entry, ...] = ()


def path(cache: Path, manifest: Manifest) -> Path:
    """Return where a bundle's file lies, wherever the bundle itself does."""
    files = [manifest.files[manifest.graph].sha256, manifest.weights_sha256]
    digest = hashlib.sha256(" ".join(files).encode()).hexdigest()[:12]
    return cache / "tuned" / f"{manifest.name}-{digest}.json"


def machine(device: str) -> Machine:
    """Name this machine; `device` is that of a placement: cpu, cuda or cuda:INDEX."""
    family, _, index = device.partition(":")
    name = device if family == "cpu" else _cuda_name(int(index or 0))
    return Machine(cpu=processor().name, processors=available_cpus(), device=name)


def versions() -> dict[str, str]:
    """Return pixvec's version and those of the engines' libraries that are installed."""
    found = {"pixvec": __version__}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def read(file: Path) -> Tuned:
    """Read a file of this module's. Raises ConfigError that says what is wrong with it."""
    try:
        if file.stat().st_size > _LARGEST:
            raise ConfigError(f"{file} is larger than {_LARGEST >> 20} MiB")
        return Tuned.model_validate_json(file.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{file}: {exc.strerror}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "contents"
        raise ConfigError(f"{file}: {where}: {first['msg']}") from exc


def write(file: Path, model: str, entry: Entry) -> None:
    """Put an entry in place of the machine's last one, leaving other machines'; whole or not at all.

    A file that cannot be read is replaced. Raises ConfigError when the folder cannot be written to.
    """
    try:
        others = [old for old in read(file).entries if old.machine != entry.machine]
    except ConfigError:
        others = []
    text = Tuned(model=model, entries=(*others, entry)).model_dump_json(indent=2)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text + "\n", encoding="utf-8")
        scratch.replace(file)
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}") from exc


def matching(found: Tuned, here: Machine, now: Mapping[str, str]) -> Entry:
    """Return the entry of this machine and these versions. Raises ConfigError that says what differs."""
    entry = next((entry for entry in found.entries if entry.machine == here), None)
    if entry is None:
        theirs = "; ".join(_words(entry.machine) for entry in found.entries) or "no machine"
        raise ConfigError(f"tuned on {theirs}; this is {_words(here)}")
    names = sorted({*entry.versions, *now})
    differ = [name for name in names if entry.versions.get(name) != now.get(name)]
    if differ:
        shown = (
            f"{name} {entry.versions.get(name, 'absent')}, now {now.get(name, 'absent')}" for name in differ
        )
        raise ConfigError(f"tuned with {'; '.join(shown)}")
    return entry


def wanted(entry: Entry, backend: str, precision: str, stored: Precision) -> Setting:
    """Return the setting for a configured backend and precision, either of which may be `auto`.

    Below the default's bar nothing is returned that was not asked for by name. Raises ConfigError.
    """
    if backend == precision == "auto":
        return entry.auto
    need = stored if precision == "auto" else precision
    for setting in entry.settings:
        named = backend == setting.backend or need != stored
        if setting.precision == need and backend in ("auto", setting.backend) and (named or setting.faithful):
            return setting
    raise ConfigError(f"backend {backend} in {need} was not measured, or is not faithful")


def place(config: Config, bundle: Bundle, cache: Path) -> Placement:
    """Return where and how a bundle runs: as configured, as tuned on this machine, else as `choose` says.

    Raises BackendError as `choose` does.
    """
    section, manifest = config.model, bundle.manifest
    stored, file = manifest.precision, path(cache, manifest)
    plain = choose(section.backend, section.device, section.precision, stored=stored)
    if ":" in section.backend or not file.is_file():
        return plain
    try:
        entry = matching(read(file), machine(plain.device), versions())
        setting = wanted(entry, section.backend, section.precision, stored)
        _fits(section, setting)
        tuned = choose(setting.backend, plain.device, setting.precision, stored=stored)
    except SetupError as exc:
        mend = f"pixvec-server tune {manifest.name}"
        _log.warning("tuned settings are ignored", model=manifest.name, because=str(exc), mend=mend)
        return plain
    return replace(
        tuned,
        why=_why(entry, setting, config),
        instances=setting.instances,
        max_batch=setting.max_batch,
    )


def _fits(section: ModelSection, setting: Setting) -> None:
    if section.threads not in (0, setting.threads):
        raise ConfigError(f"tuned with {setting.threads} threads; model.threads = {section.threads}")
    if section.cuda_graph or section.tensorrt:
        raise ConfigError("tuned without model.cuda_graph and model.tensorrt")


def _why(entry: Entry, setting: Setting, config: Config) -> str:
    configured = {
        "model.backend": config.model.backend != "auto",
        "model.precision": config.model.precision != "auto",
        "batch.instances": config.batch.instances,
        "batch.max_size": config.batch.max_size,
    }
    names = ", ".join(name for name, is_set in configured.items() if is_set)
    return (
        f"tuned here on {entry.when[:10]} for {entry.goal}: {setting}: {setting.latency_ms:.1f} ms alone, "
        f"{setting.images_per_s:.0f} images/s, overlap@10 {setting.fidelity.overlap_at_10:.3f}"
        f"{f'; {names} as configured' if names else ''}"
    )


def _words(machine: Machine) -> str:
    return f"{machine.processors} x {machine.cpu}, {machine.device}"


def _cuda_name(index: int) -> str:
    """Ask the driver, without any engine's library, for a device's name."""
    unknown = f"cuda:{index}"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return unknown
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_LONGEST_NAME)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, _LONGEST_NAME, device)
    )
    return unknown if failed else name.value.decode(errors="replace")
