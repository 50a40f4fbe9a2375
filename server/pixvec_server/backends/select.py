"""Which engine runs a model: what was asked for, or what `auto` weighs.

The order of `auto` on a CPU is that of measured fp32 speed (docs/performance.md); CUDA prefers onnxruntime,
which needs no torch. `auto` never trades fidelity: its precision is fp32.

bf16 on a CPU needs a processor that computes it. OpenVINO says for itself whether it does; for torch the
processor's features decide, and torch emulates bf16 elsewhere when `--backend torch` asks for it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from pixvec_server.backends.base import Kind, Placement
from pixvec_server.config import is_baseline_cpu
from pixvec_server.cpu import processor
from pixvec_server.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from pixvec_server.backends.base import BackendFactory
    from pixvec_server.manifest import Manifest, Precision

_MODULES: dict[Kind, tuple[str, str, str]] = {
    "onnx": ("onnxruntime", "OnnxBackend", "pixvec[cpu]' or 'pixvec[gpu]"),
    "openvino": ("openvino", "OpenVinoBackend", "pixvec[cpu]"),
    "torch": ("torch", "TorchBackend", "pixvec[torch]"),
}
_PREFERENCE: dict[str, tuple[Kind, ...]] = {"cpu": ("openvino", "onnx", "torch"), "cuda": ("onnx", "torch")}

# Engines whose threads are their own, and the largest bundle that is loaded twice.
_THREADED, _SPARE_BYTES = ("openvino", "onnx"), 256 << 20


def installed(kind: Kind) -> bool:
    """Tell whether a backend's library is here, without importing it."""
    return importlib.util.find_spec(_MODULES[kind][0]) is not None


def factory(kind: str) -> BackendFactory:
    """Import a backend and return its class. Raises BackendError when `module:Class` cannot be imported."""
    if ":" in kind:
        return _foreign(kind)
    known = cast("Kind", kind)
    return cast("BackendFactory", getattr(_module(known), _MODULES[known][1]))


def choose(
    backend: str,
    device: str,
    precision: str,
    *,
    stored: Precision = "fp32",
    present: Callable[[Kind], bool] = installed,
) -> Placement:
    """Return where a model runs, given the precision that its graph is stored in.

    Raises BackendError that names what is missing and the mend.
    """
    wanted: Precision = stored if precision == "auto" else cast("Precision", precision)
    if stored not in ("fp32", wanted):
        raise BackendError(f"precision {wanted} was asked for, the bundle is {stored}: export it in fp32")
    family, reason = _family(device, backend, present)
    place = device if device not in ("auto", "cuda") else {"cpu": "cpu", "cuda": "cuda:0"}[family]
    if ":" in backend:
        return Placement(backend, place, wanted, f"backend {backend} asked for, which is not ours; {reason}")
    lacks_bf16 = wanted == "bf16" and family == "cpu" and not computes_bf16(present)
    if lacks_bf16 and (backend != "torch" or stored == "bf16"):
        raise BackendError(_without_bf16(stored, present))
    if backend != "auto":
        kind = cast("Kind", backend)
        _require(kind, present)
        if missing := _obstacle(kind, family, wanted, stored):
            raise BackendError(f"backend {kind} cannot run {wanted} on {place}: {missing}")
        return Placement(kind, place, wanted, f"backend {kind} asked for; {reason}", emulated=lacks_bf16)
    refused: list[str] = []
    for kind in _PREFERENCE[family]:
        obstacle = _obstacle(kind, family, wanted, stored) if present(kind) else "not installed"
        if not obstacle:
            why = f"auto: the first of {' > '.join(_PREFERENCE[family])} that runs {wanted} on {family}"
            passed = f" (passed over: {'; '.join(refused)})" if refused else ""
            return Placement(kind, place, wanted, f"{why}{passed}; {reason}")
        refused.append(f"{kind}: {obstacle}")
    raise BackendError(f"no backend runs {wanted} on {place}: {'; '.join(refused)}")


def computes_bf16(present: Callable[[Kind], bool] = installed) -> bool:
    """Tell whether this processor computes bf16, by its features or by what OpenVINO reports."""
    return processor().has_bf16 or (present("openvino") and _openvino_has_bf16())


def accelerated(place: Placement, *, cuda_graph: bool, tensorrt: bool) -> Placement:
    """Return where a model runs with what its settings add to CUDA.

    Raises BackendError for a setting that the place cannot have, with the mend.
    """
    on_cuda = place.device != "cpu"
    if cuda_graph and not (on_cuda and place.kind in ("onnx", "torch")):
        raise BackendError(
            f"model.cuda_graph = true, and the model runs on {place.kind}, {place.device}: CUDA graphs are "
            "for onnx and torch with device cuda; leave it out"
        )
    if not tensorrt:
        return place
    if not (on_cuda and place.kind == "onnx"):
        raise BackendError(
            f"model.tensorrt = true, and the model runs on {place.kind}, {place.device}: TensorRT is for "
            "onnx with device cuda; leave it out"
        )
    if missing := str(_module("onnx").missing_tensorrt()):
        raise BackendError(f"model.tensorrt = true: {missing}")
    return replace(place, tensorrt=True, why=f"{place.why}; TensorRT asked for")


def has_lone(place: Placement, manifest: Manifest) -> bool:
    """Tell whether a batch that is alone on a CPU gets an engine of its own beside those that share it.

    Not in torch, whose threads are all the process's; nor of a bundle that is too large to be loaded twice.
    """
    size = sum(file.bytes for file in manifest.files.values())
    return place.device == "cpu" and place.kind in _THREADED and size <= _SPARE_BYTES


def _family(device: str, backend: str, present: Callable[[Kind], bool]) -> tuple[str, str]:
    if device != "auto":
        return device.partition(":")[0], f"device {device} asked for"
    if ":" in backend:
        return "cpu", "auto: the CPU, for a backend that is not ours"
    if not _driver():
        return "cpu", "auto: no NVIDIA driver (libcuda.so.1) here"
    kinds = _PREFERENCE["cuda"] if backend == "auto" else (cast("Kind", backend),)
    usable = [kind for kind in kinds if present(kind) and not _no_cuda(kind)]
    if usable:
        return "cuda", f"auto: {usable[0]} can use CUDA here"
    return "cpu", "auto: no installed backend can use CUDA here"


def _openvino_has_bf16() -> bool:
    return not is_baseline_cpu() and bool(_module("openvino").cpu_has_bf16())


def _without_bf16(stored: Precision, present: Callable[[Kind], bool]) -> str:
    here = processor()
    lacks = "has no" if here.features is not None else "is not known to have"
    problem = f"the processor, {here.name}, {lacks} bf16 arithmetic (AVX-512 BF16, AMX BF16 or Arm BF16)"
    elsewhere = "a processor with bf16, or device cuda"
    if stored == "bf16":
        return f"a bundle stored in bf16 cannot run here: {problem}; export it in fp32, or use {elsewhere}"
    emulation = "; backend torch emulates bf16 here, slowly" if present("torch") else ""
    return f"precision bf16 cannot run here: {problem}; use precision fp32, {elsewhere}{emulation}"


def _obstacle(kind: Kind, family: str, precision: Precision, stored: Precision) -> str:
    if family == "cuda" and (missing := _no_cuda(kind)):
        return missing
    return {"onnx": _onnx_obstacle, "openvino": _openvino_obstacle, "torch": _torch_obstacle}[kind](
        family, precision, stored
    )


def _onnx_obstacle(family: str, precision: Precision, stored: Precision) -> str:
    if precision != stored:
        other = ", or take openvino or torch" if precision == "bf16" else ""
        return f"it runs a graph as stored, in {stored}; export it in {precision}{other}"
    if stored == "bf16" and family == "cpu":
        return "its CPU engine has no bf16 arithmetic; take openvino, or export it in fp32"
    return ""


def _openvino_obstacle(_family: str, precision: Precision, stored: Precision) -> str:
    if precision == "fp16" and stored != "fp16":
        return "on a CPU it computes fp32 and bf16, and reads a bundle exported in fp16"
    if precision == "bf16" and not _openvino_has_bf16():
        instead = "take torch" if stored == "fp32" else "export it in fp32"
        return f"it computes no bf16 on this processor; {instead}"
    return ""


def _torch_obstacle(family: str, precision: Precision, stored: Precision) -> str:
    if stored != "fp32":
        return f"it builds the model from its source in fp32, the bundle is {stored}"
    if precision == "fp16" and family == "cpu":
        return f"fp16 on a CPU is slower than fp32; take {'bf16' if processor().has_bf16 else 'fp32'}"
    return ""


def _no_cuda(kind: Kind) -> str:
    if kind == "openvino":
        return "OpenVINO runs on the CPU here; take onnx or torch for CUDA"
    return str(_module(kind).missing_cuda())


def _driver() -> bool:
    # Asked first: to ask torch costs 5 s and 700 MB, on machines that mostly have no device.
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _require(kind: Kind, present: Callable[[Kind], bool]) -> None:
    if not present(kind):
        library, _, extra = _MODULES[kind]
        raise BackendError(f"backend {kind} needs {library}, which is not installed: pip install '{extra}'")


def _foreign(kind: str) -> BackendFactory:
    module, _, name = kind.partition(":")
    try:
        return cast("BackendFactory", getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as exc:
        raise BackendError(f"model.backend = {kind!r}: {exc}; it must be MODULE:CLASS on PYTHONPATH") from exc


def _module(kind: Kind) -> ModuleType:
    return importlib.import_module(f"pixvec_server.backends.{kind}")
