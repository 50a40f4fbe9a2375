"""What of the CUDA path needs no device: sizes, buffers, lanes, quiet; and I/O binding on the CPU."""

from __future__ import annotations

import ctypes
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pixvec_server import bundle, cuda
from pixvec_server.backends import bound, onnx
from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.errors import BackendError
from pixvec_server.probes import pictures

ort = pytest.importorskip("onnxruntime")
WAIT_S = 10.0
EMBEDDING, LOGITS = (bundle.GRAPH_PREFIX + name for name in ("embedding", "logits"))


def _plain(size: int) -> Any:
    return np.zeros(size, np.uint8)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (24, (1, 2, 4, 8, 16, 24))]
)
def test_sizes_double_up_to_the_largest(most: int, sizes: tuple[int, ...]) -> None:
    assert cuda.batch_sizes(most) == sizes


def test_a_batch_goes_into_the_smallest_size_that_holds_it() -> None:
    sizes = cuda.batch_sizes(24)
    assert [cuda.size_for(n, sizes) for n in (1, 3, 8, 9, 17, 24, 25)] == [1, 4, 8, 16, 24, 24, None]


def test_a_buffer_stays_and_grows_only_when_it_must() -> None:
    made: list[int] = []

    def allocate(size: int) -> Any:
        made.append(size)
        return _plain(size)

    staging = cuda.Staging(allocate)
    first = staging.room("a", (3, 5), np.float32)
    assert first.shape == (3, 5)
    assert first.dtype == np.float32
    first[:] = 7
    again = staging.room("a", (16,), np.float32)
    assert np.shares_memory(first, again)
    assert (again[:15] == 7).all()
    assert not np.shares_memory(first, staging.room("b", (3, 5), np.float32))
    assert not np.shares_memory(first, staging.room("a", (17,), np.float32))
    assert made == [64, 64, 128]


class FakeRuntime:
    """cudaSetDevice, cudaHostAlloc and cudaFreeHost over ordinary memory."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.device = -1
        self.memory = (ctypes.c_uint8 * 100)()
        self.freed: list[int | None] = []

    def cudaSetDevice(self, index: Any) -> int:  # noqa: N802 - CUDA's names
        self.device = index.value
        return 0

    def cudaHostAlloc(self, pointer: Any, size: Any, flags: Any) -> int:  # noqa: N802 - as above
        assert (size.value, flags.value) == (100, 1)
        if not self.code:
            pointer._obj.value = ctypes.addressof(self.memory)
        return self.code

    def cudaFreeHost(self, pointer: Any) -> int:  # noqa: N802 - as above
        self.freed.append(pointer.value)
        return 0


def test_page_locked_memory_is_freed_with_the_last_array_over_it() -> None:
    library = FakeRuntime()
    array = cuda.pinned(library, 1, 100)
    view: Any = array[:8].view(np.float32)
    view[:] = 1
    del array
    gc.collect()
    assert library.device == 1
    assert library.freed == []
    assert bytes(library.memory[:4]) == np.float32(1).tobytes()
    del view
    gc.collect()
    assert library.freed == [ctypes.addressof(library.memory)]


def test_page_locked_memory_that_cannot_be_had_is_an_error_with_cudas_number() -> None:
    with pytest.raises(BackendError, match="100 bytes of page-locked memory for cuda:0: CUDA error 2"):
        cuda.pinned(FakeRuntime(code=2), 0, 100)


def test_a_runtime_that_is_not_here_is_an_error_with_the_mend() -> None:
    with pytest.raises(BackendError, match=r"libcudart\.so\.99.*pixvec\[gpu\]"):
        cuda.runtime("99")


def test_a_lane_has_one_user_at_a_time_and_comes_back_after_an_error() -> None:
    lanes = cuda.Lanes(["a", "b"])
    with lanes.take() as first, lanes.take() as second:
        assert {first, second} == {"a", "b"}
    with pytest.raises(ValueError, match="mine"), lanes.take():
        raise ValueError("mine")
    with lanes.take() as first, lanes.take() as second:
        assert {first, second} == {"a", "b"}


def test_a_capture_waits_for_runs_and_runs_wait_for_a_capture() -> None:
    quiet = cuda.Quiet()
    told: list[str] = []
    asked, captured = threading.Event(), threading.Event()

    def capture() -> None:
        asked.set()
        with quiet.alone():
            told.append("captured")
            captured.set()

    def run() -> None:
        with quiet.shared():
            told.append("ran")

    with quiet.shared(), quiet.shared():
        thread = threading.Thread(target=capture)
        thread.start()
        assert asked.wait(WAIT_S)
        assert not captured.wait(0.05)
        told.append("first runs end")
    thread.join(WAIT_S)
    with quiet.alone():
        late = threading.Thread(target=run)
        late.start()
        late.join(0.05)
        told.append("capture ends")
    late.join(WAIT_S)
    assert told == ["first runs end", "captured", "capture ends", "ran"]


@pytest.fixture(scope="module")
def session(default_bundle: bundle.Bundle) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(default_bundle.graph(), settings, providers=["CPUExecutionProvider"])


@pytest.fixture
def lane(session: Any, default_bundle: bundle.Bundle) -> bound.Lane:
    shapes = {bundle.GRAPH_PREFIX + name: out.shape for name, out in default_bundle.manifest.outputs.items()}
    return bound.Lane({"image": session}, bound.Place("cpu"), shapes, _plain)


def _expected(session: Any, images: Any, names: list[str]) -> list[Any]:
    values: list[Any] = session.run(names, {"pixels": images}, bound.run_options())
    return values


def test_a_bound_run_equals_a_plain_one_bit_for_bit(lane: bound.Lane, session: Any) -> None:
    images = pictures(224, 224, 5)
    kept = []
    for count in (5, 1, 3, 5):
        got = lane.run("image", images[-count:], [EMBEDDING, LOGITS])
        kept.append((got, _expected(session, images[-count:], [EMBEDDING, LOGITS])))
    # Compared at the end: what was handed out must not change with later batches.
    for got, expected in kept:
        for left, right in zip(got, expected, strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_run_at_fixed_addresses_pads_and_cuts(lane: bound.Lane, session: Any) -> None:
    images = pictures(224, 224, 5)
    for size in (1, 2, 4):
        lane.capture("image", images[:size], [EMBEDDING])
    kept = [(n, lane.run("image", images[:n], [EMBEDDING])[0]) for n in (4, 3, 1, 2, 5)]
    for count, got in kept:
        (expected,) = _expected(session, images[:count], [EMBEDDING])
        assert got.shape == expected.shape
        # A padded batch is another batch: its kernels may sum in another order.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    (full,) = _expected(session, images[:4], [EMBEDDING])
    np.testing.assert_array_equal(kept[0][1], full)


def test_what_was_not_captured_runs_as_it_is(lane: bound.Lane, session: Any) -> None:
    images = pictures(224, 224, 2)
    lane.capture("image", images, [EMBEDDING])
    (got,) = lane.run("image", images, [LOGITS])
    np.testing.assert_array_equal(got, _expected(session, images, [LOGITS])[0])


def test_a_graph_that_computes_something_else_is_refused(
    lane: bound.Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bound._Captured.run
    monkeypatch.setattr(bound._Captured, "run", lambda self, batch: [v + 1 for v in right(self, batch)])
    with pytest.raises(BackendError, match=r"model\.cuda_graph = true.*2 items.*embedding"):
        lane.capture("image", pictures(224, 224, 2), [EMBEDDING])


def test_a_lane_of_its_own_thread_is_made_and_run_there(lane: bound.Lane, session: Any) -> None:
    seen: list[int] = []

    class Spy(bound.Lane):
        def run(self, tower: str, batch: Any, names: Any) -> Any:
            seen.append(threading.get_ident())
            return lane.run(tower, batch, names)

    def make() -> bound.Lane:
        seen.append(threading.get_ident())
        return Spy({"image": session}, bound.Place("cpu"), {}, _plain)

    own = bound.OwnThread(make)
    images = pictures(224, 224, 1)
    (got,) = own.run("image", images, [EMBEDDING])
    own.close()
    np.testing.assert_array_equal(got, _expected(session, images, [EMBEDDING])[0])
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()


def test_a_lane_that_cannot_be_made_leaves_no_thread() -> None:
    def fail() -> bound.Lane:
        raise BackendError("no graph")

    before = threading.active_count()
    with pytest.raises(BackendError, match="no graph"):
        bound.OwnThread(fail)
    assert threading.active_count() == before


@pytest.mark.parametrize("graph", [False, True])
def test_the_backend_drives_its_lanes_from_many_threads(
    graph: bool, default_bundle: bundle.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA path whole, with the CPU where the device would be."""
    monkeypatch.setattr(onnx, "providers", lambda *_: [("CPUExecutionProvider", {})])
    monkeypatch.setattr(onnx, "runtime", lambda _: None)
    monkeypatch.setattr(onnx, "pinned", lambda *given: _plain(given[-1]))
    monkeypatch.setattr(onnx, "Place", lambda *_: bound.Place("cpu"))
    before = threading.active_count()
    options = BackendOptions(2, 2, max_batch=3, cuda_graph=graph)
    backend = onnx.OnnxBackend(default_bundle, _place(), options)
    plain = onnx.OnnxBackend(default_bundle, _place(device="cpu"), options)
    images = pictures(224, 224, 5)
    expected = [plain.run("image", images[:n], ("embedding", "logits")) for n in range(1, 6)]
    with ThreadPoolExecutor(4) as threads:
        runs = [
            (n, names, threads.submit(backend.run, "image", images[:n], names))
            for n in (1, 2, 3, 4, 5, 2, 3)
            for names in (("embedding",), ("logits", "embedding"))
        ]
        for n, names, run in runs:
            for name in names:
                np.testing.assert_allclose(
                    run.result(WAIT_S)[name], expected[n - 1][name], rtol=1e-4, atol=1e-5
                )
    backend.close()
    assert threading.active_count() == before


def _place(*, tensorrt: bool = False, precision: Any = "fp32", device: str = "cuda:1") -> Placement:
    return Placement("onnx", device, precision, "test", tensorrt=tensorrt)


def test_on_a_cpu_there_is_one_provider(default_bundle: bundle.Bundle) -> None:
    options = BackendOptions(1, 1, cuda_graph=True)
    chosen = onnx.providers(default_bundle.manifest, _place(device="cpu"), options, "image")
    assert chosen == [("CPUExecutionProvider", {})]


def test_cuda_graphs_are_asked_for_by_setting(default_bundle: bundle.Bundle) -> None:
    for wanted in (False, True):
        options = BackendOptions(1, 1, cuda_graph=wanted)
        (name, settings), _ = onnx.providers(default_bundle.manifest, _place(), options, "image")
        assert name == "CUDAExecutionProvider"
        assert settings["device_id"] == "1"
        assert settings["use_tf32"] == "0"
        assert ("enable_cuda_graph" in settings) is wanted


def test_tensorrt_builds_one_engine_for_all_sizes_and_keeps_it_by_weights(
    default_bundle: bundle.Bundle, tmp_path: Any
) -> None:
    manifest, options = default_bundle.manifest, BackendOptions(1, 1, max_batch=24, engines=tmp_path)
    chosen = onnx.providers(manifest, _place(tensorrt=True), options, "image")
    assert [name for name, _ in chosen] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    settings = chosen[0][1]
    assert settings["trt_profile_min_shapes"] == "pixels:1x224x224x3"
    assert settings["trt_profile_max_shapes"] == "pixels:24x224x224x3"
    assert settings["trt_fp16_enable"] == "0"
    assert manifest.weights_sha256[:16] in settings["trt_engine_cache_path"]
    half = onnx.providers(manifest, _place(tensorrt=True, precision="fp16"), options, "image")[0][1]
    assert half["trt_fp16_enable"] == "1"
    assert half["trt_engine_cache_path"] != settings["trt_engine_cache_path"]
