"""OpenVINO on a CPU, in fp32 or, where the processor multiplies it, bf16."""

from __future__ import annotations

import importlib
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pixvec_server.bundle import GRAPH_PREFIX

# With this package in reach, importing openvino reports the fact to a web analytics service.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None makes its import fail
ov: Any = importlib.import_module("openvino")

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixvec_server.backends.base import BackendOptions, Batch, Placement
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32

_Part: TypeAlias = tuple[str, tuple[str, ...]]  # a tower and the outputs that are asked of it
# A process's first inference is alone with what OpenVINO's bindings set up with Python's help: a second
# thread would wait for that with the interpreter's lock in hand, and both for good.
_first, _ready = threading.Lock(), threading.Event()


class OpenVinoBackend:
    """One compiled graph for each set of outputs: OpenVINO computes every output that a graph has."""

    def __init__(self, bundle: Bundle, placement: Placement, options: BackendOptions) -> None:
        self._core = ov.Core()
        self._models = {tower: self._core.read_model(bundle.graph(tower)) for tower in bundle.manifest.towers}
        for model in self._models.values():
            _fold_biases(model)
        # The precision is always said: left alone, OpenVINO takes bf16 where the processor has it. Where it
        # has not, graphs stored in bf16 are computed in fp32, which is enough to check them.
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if placement.precision == "bf16" and cpu_has_bf16() else "f32",
            "INFERENCE_NUM_THREADS": options.threads,
            # More batches than streams: the next one stands ready when a stream is free.
            "NUM_STREAMS": min(options.instances, options.threads),
        }
        self._instances = options.instances
        self._idle: dict[_Part, SimpleQueue[Any]] = {}
        self._compiling = threading.Lock()

    def run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        """See `Backend.run`."""
        if _ready.is_set():
            return self._run(tower, batch, outputs)
        with _first:
            values = self._run(tower, batch, outputs)
            _ready.set()
        return values

    def _run(self, tower: str, batch: Batch, outputs: Sequence[str]) -> Mapping[str, F32]:
        names = tuple(sorted(outputs))
        idle = self._idle.get((tower, names)) or self._requests((tower, names))
        request = idle.get()
        try:
            request.infer([batch], share_inputs=True)
            return {name: np.array(request.get_output_tensor(i).data) for i, name in enumerate(names)}
        finally:
            idle.put(request)

    def close(self) -> None:
        """See `Backend.close`."""
        self._idle.clear()

    def _requests(self, part: _Part) -> SimpleQueue[Any]:
        with self._compiling:
            if part not in self._idle:
                # All of them before the first is used: to make one while another infers ends the process.
                compiled, idle = self._compile(part), SimpleQueue[Any]()
                for _ in range(self._instances):
                    idle.put(compiled.create_infer_request())
                self._idle[part] = idle
            return self._idle[part]

    def _compile(self, part: _Part) -> Any:  # noqa: ANN401 - openvino ships no types that mypy can follow
        tower, names = part
        model = self._models[tower]
        results = [model.output(GRAPH_PREFIX + name) for name in names]
        nodes = [output.get_node().input_value(0) for output in results]
        cut = ov.Model(nodes, model.get_parameters(), "part")
        return self._core.compile_model(cut, "CPU", self._settings)


def cpu_has_bf16() -> bool:
    """Tell whether OpenVINO multiplies bf16 in hardware here."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _fold_biases(model: Any) -> None:  # noqa: ANN401 - as above
    """Make constants of biases that are reshaped at run time: they keep OpenVINO from fusing the first."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Add":
            continue
        left, right = (node.input_value(i).get_node() for i in (0, 1))
        if "Convolution" not in left.get_type_name() or right.get_type_name() != "Reshape":
            continue
        bias, shape = right.input_value(0).get_node(), right.get_output_partial_shape(0)
        if bias.get_type_name() == "Constant" and shape.is_static:
            values = np.array(bias.data).reshape(shape.to_shape())
            node.input(1).replace_source_output(ov.opset13.constant(values).output(0))
