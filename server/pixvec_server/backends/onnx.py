"""onnxruntime on CPU or CUDA, in fp32."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import onnxruntime as ort

from pixvec_server.bundle import GRAPH_PREFIX
from pixvec_server.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32

_CUDA = "CUDAExecutionProvider"
_WARNING = 2


class OnnxBackend:
    """One session for each tower; onnxruntime runs it from several threads at a time."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        self._cuda = placement.device.startswith("cuda")
        self._index = placement.cuda_index
        settings = ort.SessionOptions()
        settings.log_severity_level = _WARNING
        settings.intra_op_num_threads = max(1, options.threads // options.instances)
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {
            tower: ort.InferenceSession(
                bundle.graph(tower), settings, providers=self._providers(), enable_fallback=False
            )
            for tower in bundle.manifest.towers
        }
        if self._cuda and any(_CUDA not in session.get_providers() for session in self._sessions.values()):
            raise BackendError(
                f"onnxruntime could not use {placement.device}: {missing_cuda() or 'see its log'}"
            )
        # Without this, every output of the graph is computed for whichever one is asked for.
        self._run_options = ort.RunOptions()
        self._run_options.only_execute_path_to_fetches = True

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        session, names = self._sessions[tower], [GRAPH_PREFIX + name for name in outputs]
        if self._cuda:
            values = self._run_bound(session, batch, names)
        else:
            values = session.run(names, {session.get_inputs()[0].name: batch}, self._run_options)
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        """See `Backend.close`."""
        self._sessions.clear()

    def _providers(self) -> list[tuple[str, dict[str, str]]]:
        if not self._cuda:
            return [("CPUExecutionProvider", {})]
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        # fp32 means fp32: TF32 keeps 10 bits of mantissa.
        cuda = {"device_id": str(self._index), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        return [(_CUDA, cuda), ("CPUExecutionProvider", {})]

    def _run_bound(self, session: ort.InferenceSession, batch: Batch, names: Sequence[str]) -> list[F32]:
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, batch)
        for name in names:
            binding.bind_output(name, "cuda", self._index)
        session.run_with_iobinding(binding, self._run_options)
        values: list[F32] = binding.copy_outputs_to_cpu()
        return values


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
