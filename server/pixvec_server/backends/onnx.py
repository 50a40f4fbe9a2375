"""onnxruntime on CPU or CUDA, by its own kernels or TensorRT's, in the graph's precision."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from pixvec_server.backends.base import example
from pixvec_server.backends.bound import Lane, OwnThread, Place, run_options
from pixvec_server.bundle import GRAPH_PREFIX
from pixvec_server.cuda import QUIET, Lanes, batch_sizes, pinned, runtime
from pixvec_server.errors import BackendError
from pixvec_server.probes import pictures
from pixvec_server.spec import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.manifest import Manifest
    from pixvec_server.types import F32

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# What the TensorRT provider is linked to: another number is another interface.
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
_WARNING = 2


class OnnxBackend:
    """One session for each tower, run from several threads; with CUDA graphs one for each instance too."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        self._bundle, self._placement, self._options = bundle, placement, options
        self._run_options = run_options()
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lanes: Lanes[Lane | OwnThread] | None = None
        if placement.device == "cpu":
            self._sessions = self._open()
            return
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        if options.cuda_graph:
            self._lanes = Lanes(OwnThread(self._captured_lane) for _ in range(options.instances))
        else:
            self._sessions = self._open()
            self._lanes = Lanes(self._lane(self._sessions) for _ in range(options.instances))

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        names = [GRAPH_PREFIX + name for name in outputs]
        if self._lanes is None:
            session = self._sessions[tower]
            values = session.run(names, {session.get_inputs()[0].name: batch}, self._run_options)
        else:
            with self._lanes.take() as lane:
                values = lane.run(tower, batch, names)
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        """See `Backend.close`."""
        with QUIET.shared():
            for lane in self._lanes.all if self._lanes is not None else ():
                if isinstance(lane, OwnThread):
                    lane.close()
            self._lanes = None
            self._sessions.clear()

    def _open(self) -> dict[str, ort.InferenceSession]:
        settings = ort.SessionOptions()
        settings.log_severity_level = _WARNING
        settings.intra_op_num_threads = max(1, self._options.threads // self._options.instances)
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with QUIET.shared():
            return {tower: self._session(tower, settings) for tower in self._bundle.manifest.towers}

    def _session(self, tower: str, settings: ort.SessionOptions) -> ort.InferenceSession:
        chosen = providers(self._bundle.manifest, self._placement, self._options, tower)
        session = ort.InferenceSession(
            self._bundle.graph(tower), settings, providers=chosen, enable_fallback=False
        )
        if (wanted := chosen[0][0]) not in session.get_providers():
            raise BackendError(
                f"onnxruntime could not use {wanted} on {self._placement.device}: "
                f"{missing_cuda() or 'see its log'}"
            )
        return session

    def _lane(self, sessions: Mapping[str, ort.InferenceSession]) -> Lane:
        index = self._placement.cuda_index
        allocate = partial(pinned, runtime(ort.cuda_version.partition(".")[0]), index)
        shapes = {GRAPH_PREFIX + name: out.shape for name, out in self._bundle.manifest.outputs.items()}
        return Lane(sessions, Place("cuda", index), shapes, allocate)

    def _captured_lane(self) -> Lane:
        manifest = self._bundle.manifest
        lane = self._lane(self._open())
        for tower in manifest.towers:
            for size in batch_sizes(self._options.max_batch):
                lane.capture(tower, _probe(manifest, tower, size), [GRAPH_PREFIX + EMBEDDING])
        return lane


def providers(
    manifest: Manifest, placement: Placement, options: BackendOptions, tower: str
) -> list[tuple[str, dict[str, str]]]:
    """Return onnxruntime's providers for a tower, the wanted one first, and their settings."""
    cpu = (_CPU, dict[str, str]())
    if placement.device == "cpu":
        return [cpu]
    index = str(placement.cuda_index)
    # fp32 means fp32: TF32 keeps 10 bits of mantissa.
    cuda = {"device_id": index, "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    if options.cuda_graph:
        cuda["enable_cuda_graph"] = "1"
    if not placement.tensorrt:
        return [(_CUDA, cuda), cpu]
    # One engine for every batch size: without a profile each new size is built anew, for minutes.
    row = "x".join(map(str, example(manifest, tower, 1).shape[1:]))
    name = "pixels" if tower == "image" else "tokens"
    sizes = {"min": 1, "opt": options.max_batch, "max": options.max_batch}
    tensorrt = {
        "device_id": index,
        "trt_fp16_enable": str(int(placement.precision == "fp16")),
        "trt_bf16_enable": str(int(placement.precision == "bf16")),
        **{f"trt_profile_{which}_shapes": f"{name}:{size}x{row}" for which, size in sizes.items()},
        **_engine_cache(manifest, placement, options),
    }
    return [(_TENSORRT, tensorrt), (_CUDA, cuda), cpu]


def missing_cuda() -> str:
    """Return what keeps onnxruntime off CUDA on this machine, or "" when nothing does."""
    if _CUDA not in ort.get_available_providers():
        return (
            f"the installed onnxruntime {ort.__version__} is a CPU build: "
            "pip uninstall onnxruntime && pip install 'pixvec[gpu]'"
        )
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver (libcuda.so.1) is not on this machine"
    return ""


def missing_tensorrt() -> str:
    """Return what keeps onnxruntime off TensorRT, or "" when nothing does; its libraries are loaded then."""
    if _TENSORRT not in ort.get_available_providers():
        return (
            f"the installed onnxruntime {ort.__version__} has no TensorRT provider: pip install 'pixvec[gpu]'"
        )
    found = importlib.util.find_spec("tensorrt_libs")
    folder = Path(found.origin).parent if found is not None and found.origin is not None else Path()
    for name in _TENSORRT_LIBRARIES:
        path = folder / name
        try:
            ctypes.CDLL(str(path) if path.is_file() else name, mode=ctypes.RTLD_GLOBAL)
        except OSError as exc:
            return f"{name} cannot be loaded ({exc}): pip install 'tensorrt-cu13-libs>=10.13.2,<11'"
    return ""


def _engine_cache(manifest: Manifest, placement: Placement, options: BackendOptions) -> dict[str, str]:
    """Keep engines by weights: onnxruntime names them by the graph's form alone."""
    if options.engines is None:
        return {}
    folder = options.engines / f"{manifest.weights_sha256[:16]}-{placement.precision}-{options.max_batch}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _probe(manifest: Manifest, tower: str, count: int) -> Batch:
    """Return a batch that an engine's answers can be compared on: noise, not nothing."""
    if tower == "text":
        return example(manifest, tower, count)
    return pictures(manifest.preprocess.height, manifest.preprocess.width, count)
