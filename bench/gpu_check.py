"""Proves, without a GPU, that all but the driver is there for onnxruntime's CUDA provider: `make gpu-check`.

Unpacks the onnxruntime-gpu wheel beside the project (it owns the module `onnxruntime`, and is never installed
into .venv), follows what its providers say that they need, library by library, through the NVIDIA wheels that
torch brought into .venv, and looks every symbol up. Exits with 1 when anything but the driver is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

DRIVER = "libcuda.so.1"
# Opened by name at run time, so that no header lists them: cuDNN, and nvrtc, which compiles kernels.
OPENED = {"cuda": ("libcudnn.so.9", "libnvrtc.so.13"), "tensorrt": ()}
HOST = "libonnxruntime_providers_shared.so"  # onnxruntime loads it before any provider
SYSTEM = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64")


@dataclass
class Library:
    """One shared object: what it needs, defines and leaves to others; symbols as (name, version)."""

    path: Path
    needed: list[str]
    defined: set[tuple[str, str]]
    wanted: set[tuple[str, str]]


@dataclass
class Closure:
    """All that one provider needs, found or not."""

    found: dict[str, Library] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # library -> who needs it
    unresolved: set[str] = field(default_factory=set)


class Shelf:
    """Where libraries lie: wheels' folders first, then the system's."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._files = {path.name: path for path in sorted(site.glob("**/*.so*")) if path.is_file()}
        self._owners = {
            str(file): f"{dist.metadata['Name']} {dist.version}"
            for dist in importlib.metadata.distributions(path=[str(site)])
            for file in dist.files or ()
            if ".so" in file.name
        }

    def find(self, name: str) -> Path | None:
        """Return a library's path."""
        places = [self._files.get(name), *(Path(folder) / name for folder in SYSTEM)]
        return next((path for path in places if path is not None and path.exists()), None)

    def owner(self, path: Path) -> str:
        """Return the wheel that brought a library, or `system`."""
        if not path.is_relative_to(self._site):
            return "system" if str(path).startswith(SYSTEM) else "onnxruntime-gpu"
        return self._owners.get(str(path.relative_to(self._site)), "?")


def read(path: Path) -> Library:
    """Read a shared object's dynamic section."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        dynamic = elf.get_section_by_name(".dynamic")
        needed = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
        defined, wanted = _symbols(elf)
    return Library(path, needed, defined, wanted)


def _symbols(elf: Any) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:  # noqa: ANN401 - untyped
    table, versions = elf.get_section_by_name(".dynsym"), elf.get_section_by_name(".gnu.version")
    names = _version_names(elf)
    defined, wanted = set(), set()
    for i, symbol in enumerate(table.iter_symbols()):
        index = versions.get_symbol(i).entry["ndx"] if versions is not None else 1
        version = names.get(index & 0x7FFF, "") if isinstance(index, int) else ""
        if symbol["st_shndx"] != "SHN_UNDEF":
            defined |= {(symbol.name, version), (symbol.name, "")}
        elif symbol["st_info"]["bind"] == "STB_GLOBAL" and symbol.name:
            wanted.add((symbol.name, version))
    return defined, wanted


def _version_names(elf: Any) -> dict[int, str]:  # noqa: ANN401 - untyped
    names: dict[int, str] = {}
    if (section := elf.get_section_by_name(".gnu.version_r")) is not None:
        for _, parts in section.iter_versions():
            names |= {part["vna_other"]: part.name for part in parts}
    if (section := elf.get_section_by_name(".gnu.version_d")) is not None:
        for version, parts in section.iter_versions():
            names[version["vd_ndx"]] = next(iter(parts)).name
    return names


def follow(start: Path, opened: tuple[str, ...], shelf: Shelf) -> Closure:
    """Follow what a provider needs, and what those need, and look up every symbol of all of them."""
    closure = Closure()
    queue: list[tuple[str, Path | None, str]] = [(start.name, start, "")]
    for name in opened:
        path = shelf.find(name)
        # cuDNN's parts and nvrtc's builtins lie beside them, and are opened by name as well.
        parts = path.parent.glob(f"{name.partition('.')[0]}*.so.*") if path is not None else ()
        queue += [(name, path, f"{start.name}, at run time"), *((part.name, part, name) for part in parts)]
    if (host := start.with_name(HOST)).exists():
        queue.append((HOST, host, ""))
    while queue:
        name, path, by = queue.pop(0)
        if name in closure.found or name in closure.missing:
            continue
        if path is None:
            closure.missing[name] = by
            continue
        library = closure.found[name] = read(path)
        queue += [(needed, shelf.find(needed), name) for needed in library.needed]
    defined = set().union(*(library.defined for library in closure.found.values()))
    for name, library in closure.found.items():
        lost = {symbol for symbol in library.wanted - defined if not _of_driver(symbol[0], library)}
        closure.unresolved |= {f"{name}: {'@'.join(filter(None, symbol))}" for symbol in lost}
    return closure


def _of_driver(symbol: str, library: Library) -> bool:
    """Tell whether a symbol is the driver's: cuXxx, of a library that is linked to it."""
    return DRIVER in library.needed and symbol.startswith("cu") and symbol[2:3].isupper()


def required(wheel: Path, extras: tuple[str, ...], site: Path) -> set[str]:
    """Return the distributions that pip installs with a wheel, those of `site` being what it finds."""
    (metadata,) = importlib.metadata.distributions(path=[str(wheel)], name="onnxruntime-gpu")
    installed = {_plain(d.metadata["Name"]): d for d in importlib.metadata.distributions(path=[str(site)])}
    found: set[str] = set()
    queue = [(metadata, extras)]
    while queue:
        dist, wanted = queue.pop()
        for line in dist.requires or ():
            requirement, _, marker = line.partition(";")
            if "extra" in marker and not any(f'"{extra}"' in marker for extra in wanted):
                continue
            name = _plain(requirement.split("[")[0].split("~")[0].split("=")[0].split(">")[0].split("<")[0])
            if name not in found:
                found.add(name)
                inner = requirement.partition("[")[2].partition("]")[0]
                extra = tuple(part.strip() for part in inner.split(","))
                queue += [(installed[name], extra)] if name in installed else []
    return found


def _plain(name: str) -> str:
    return name.strip().strip("!").lower().replace("_", "-")


def report(title: str, closure: Closure, shelf: Shelf, brought: set[str]) -> bool:
    """Print a table; tell whether all but the driver is there."""
    print(f"\n{title}")
    for name, library in closure.found.items():
        owner = shelf.owner(library.path)
        if owner.startswith("nvidia") and _plain(owner.split()[0]) not in brought:
            owner += ", which onnxruntime-gpu[cuda,cudnn] does not bring"
        print(f"  {name:44} {owner}")
    for name, needed_by in closure.missing.items():
        word = "the host's driver, not looked for" if name == DRIVER else "MISSING"
        print(f"  {name:44} {word} (needed by {needed_by})")
    for line in sorted(closure.unresolved)[:20]:
        print(f"  unresolved symbol: {line}")
    wanted = sum(len(library.wanted) for library in closure.found.values())
    lost = len(closure.unresolved)
    print(f"  {len(closure.found)} libraries, {wanted} symbols looked up, {lost} unresolved")
    return set(closure.missing) <= {DRIVER} and not closure.unresolved


def opens(provider: Path, closure: Closure) -> str:
    """Let the dynamic linker itself load what was found, then the provider, in a process of its own."""
    found = [str(library.path) for name, library in closure.found.items() if name != provider.name]
    program = (
        "import ctypes, sys\n"
        "left = sys.argv[2:]\n"
        "for _ in range(len(left)):\n"  # in the order in which they can be loaded
        "    again = []\n"
        "    for path in left:\n"
        "        try: ctypes.CDLL(path, ctypes.RTLD_GLOBAL)\n"
        "        except OSError: again.append(path)\n"
        "    left = again\n"
        "print('left out:', *left) if left else None\n"
        "try: ctypes.CDLL(sys.argv[1]); print('loaded')\n"
        "except OSError as exc: print(exc)\n"
    )
    nvidia = [path for path in found if not path.startswith(SYSTEM)]
    run = subprocess.run(
        [sys.executable, "-c", program, str(provider), *nvidia], capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or run.stderr.strip() or f"ended with {run.returncode}"


def driver() -> str:
    """Tell whether this machine has the driver."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return "not here"
    return "here"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="the onnxruntime-gpu wheel")
    parser.add_argument("site", type=Path, help="the site-packages that hold the NVIDIA wheels")
    given = parser.parse_args()
    unpacked = given.wheel.parent / given.wheel.stem
    if not unpacked.exists():
        zipfile.ZipFile(given.wheel).extractall(unpacked)
    shelf = Shelf(given.site.resolve())
    brought = required(unpacked, ("cuda", "cudnn"), given.site)
    capi = unpacked.resolve() / "onnxruntime" / "capi"
    print(f"{given.wheel.name}; driver {driver()}")
    whole = {}
    for kind, title in (("cuda", "CUDA provider"), ("tensorrt", "TensorRT provider (optional)")):
        provider = capi / f"libonnxruntime_providers_{kind}.so"
        closure = follow(provider, OPENED[kind], shelf)
        whole[kind] = report(title, closure, shelf, brought)
        print(f"  the dynamic linker says: {opens(provider, closure)}".replace(str(capi), "…"))
    print(f"\nCUDA: {'all but the driver is there' if whole['cuda'] else 'NOT WHOLE'}", end="; ")
    print(f"TensorRT: {'all but the driver is there' if whole['tensorrt'] else 'not installed'}")
    return 0 if whole["cuda"] else 1


if __name__ == "__main__":
    sys.exit(main())
