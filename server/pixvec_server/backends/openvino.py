"""OpenVINO on a CPU, in fp32 or, where the processor multiplies it, bf16."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from pixvec_server.bundle import GRAPH_PREFIX

# With this package in reach, importing openvino reports the fact to a web analytics service.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None makes its import fail
ov: Any = importlib.import_module("openvino")

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32, U8

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend:
    """One compiled graph for each set of outputs: OpenVINO computes every output that a graph has."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        self._core = ov.Core()
        self._model = self._core.read_model(bundle.read_graph())
        self._size: tuple[int, int] = (bundle.manifest.preprocess.height, bundle.manifest.preprocess.width)
        # The precision is always said: left alone, OpenVINO takes bf16 where the processor has it.
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[placement.precision],
            "INFERENCE_NUM_THREADS": options.threads,
            "NUM_STREAMS": options.instances,
        }
        self._compiled: dict[tuple[str, ...], Any] = {}
        self._compiling = threading.Lock()
        self._local = threading.local()

    def run(self, batch: U8, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        names = tuple(sorted(outputs))
        request = self._request(names)
        request.infer({"pixels": batch}, share_inputs=True)
        return {name: np.array(request.get_tensor(GRAPH_PREFIX + name).data) for name in names}

    def warm_up(self, batch_sizes: Sequence[int], outputs: Sequence[str]) -> None:
        """See `Backend.warm_up`."""
        for size in batch_sizes:
            self.run(np.zeros((size, *self._size, 3), np.uint8), outputs)

    def close(self) -> None:
        """See `Backend.close`."""
        self._local = threading.local()
        self._compiled.clear()

    def _request(self, names: tuple[str, ...]) -> Any:  # noqa: ANN401 - openvino ships no types that mypy can follow
        requests: dict[tuple[str, ...], Any] = self._local.__dict__.setdefault("requests", {})
        if names not in requests:
            requests[names] = self._graph(names).create_infer_request()
        return requests[names]

    def _graph(self, names: tuple[str, ...]) -> Any:  # noqa: ANN401 - as above
        with self._compiling:
            if names not in self._compiled:
                results = [self._model.output(GRAPH_PREFIX + name) for name in names]
                nodes = [output.get_node().input_value(0) for output in results]
                part = ov.Model(nodes, self._model.get_parameters(), "part")
                self._compiled[names] = self._core.compile_model(part, "CPU", self._settings)
            return self._compiled[names]


def cpu_has_bf16() -> bool:
    """Tell whether OpenVINO multiplies bf16 in hardware here."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
