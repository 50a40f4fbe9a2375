"""onnxruntime's I/O binding: batches through buffers that stay, and CUDA graphs at fixed addresses.

The same code runs on `cpu`, where the tests hold it against `session.run`, and on `cuda`.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnxruntime as ort

from pixvec_server.cuda import QUIET, Staging, size_for
from pixvec_server.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pixvec_server.backends.base import Batch
    from pixvec_server.cuda import Allocate
    from pixvec_server.types import F32

    Shapes: TypeAlias = Mapping[str, tuple[int, ...]]  # of one item, by the graph's own names

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"
_SAME = 1e-3  # of the largest number: a replay runs the kernels that a run does


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session computes, in onnxruntime's words."""

    device: str
    index: int = 0


class Lane:
    """One caller's way through the sessions, with host buffers of its own."""

    def __init__(self, sessions: Mapping[str, Any], place: Place, shapes: Shapes, allocate: Allocate) -> None:
        self._sessions = sessions
        self._place = place
        self._shapes = shapes
        self._allocate = allocate
        self._staging = Staging(allocate)
        self._options = run_options(_NO_GRAPH)
        self._captured: dict[tuple[str, tuple[str, ...]], dict[int, _Captured]] = {}
        self._numbers = itertools.count(1)

    def run(self, tower: str, batch: Batch, names: Sequence[str]) -> list[F32]:
        """Return the outputs named, (n, …) each, by a captured graph where one of them fits."""
        sizes = self._captured.get((tower, tuple(names)), {})
        size = size_for(len(batch), sizes)
        with QUIET.shared():
            return self._run(tower, batch, names) if size is None else sizes[size].run(batch)

    def capture(self, tower: str, batch: Batch, names: Sequence[str]) -> None:
        """Capture a graph for batches of this one's size. Raises BackendError when its replay differs."""
        sizes = self._captured.setdefault((tower, tuple(names)), {})
        with QUIET.alone():
            expected = self._run(tower, batch, names)
            outputs = {name: self._shapes[name] for name in names}
            graph = str(next(self._numbers))
            made = _Captured(self._sessions[tower], self._place, batch, outputs, self._allocate, graph=graph)
            for name, left, right in zip(names, expected, made.run(batch), strict=True):
                if not np.allclose(left, right, rtol=0, atol=_SAME * float(np.abs(left).max())):
                    raise BackendError(
                        f"model.cuda_graph = true: the graph captured for {len(batch)} items computes "
                        f"another {name} than the network; leave it out for this model"
                    )
        sizes[len(batch)] = made

    def _run(self, tower: str, batch: Batch, names: Sequence[str]) -> list[F32]:
        session, rows = self._sessions[tower], len(batch)
        given = self._staging.room("", batch.shape, batch.dtype)
        np.copyto(given, batch)
        values = [self._staging.room(name, (rows, *self._shapes[name]), np.float32) for name in names]
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, given)
        for name, value in zip(names, values, strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
        session.run_with_iobinding(binding, self._options)
        return [value.copy() for value in values]


class _Captured:
    """A session's run of one batch size at fixed addresses; onnxruntime captures it as it first runs."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - untyped
        place: Place,
        batch: Batch,
        outputs: Shapes,
        allocate: Allocate,
        *,
        graph: str,
    ) -> None:
        def on_device(shape: tuple[int, ...], dtype: Any) -> Any:  # noqa: ANN401 - as above
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, place.device, place.index)

        self._session = session
        self._host = Staging(allocate).room("", batch.shape, batch.dtype)
        self._given = on_device(batch.shape, batch.dtype.type)
        self._values = [on_device((len(batch), *shape), np.float32) for shape in outputs.values()]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._given)
        for name, value in zip(outputs, self._values, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._options = run_options(graph)

    def run(self, batch: Batch) -> list[F32]:
        """Run up to as many items as the graph has room for; what fills it up is computed and cut off."""
        self._host[: len(batch)] = batch
        self._given.update_inplace(self._host)
        self._session.run_with_iobinding(self._binding, self._options)
        return [np.array(value.numpy()[: len(batch)]) for value in self._values]


class OwnThread:
    """A lane on a thread of its own: onnxruntime replays a graph only on the thread that captured it."""

    def __init__(self, make: Callable[[], Lane]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cuda-graph")
        try:
            self._lane: Lane | None = self._thread.submit(make).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def run(self, tower: str, batch: Batch, names: Sequence[str]) -> list[F32]:
        """See `Lane.run`."""
        assert self._lane is not None
        return self._thread.submit(self._lane.run, tower, batch, names).result()

    def close(self) -> None:
        """End the thread and let the lane go."""
        self._lane = None
        self._thread.shutdown()


def run_options(graph: str = "") -> Any:  # noqa: ANN401 - untyped
    """Return the options of a run: the graph that it captures or replays, by number."""
    options = ort.RunOptions()
    # Without this, every output of the graph is computed for whichever one is asked for.
    options.only_execute_path_to_fetches = True
    if graph:
        options.add_run_config_entry(_GRAPH_ID, graph)
    return options
