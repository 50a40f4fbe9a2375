"""Mixed precision on OpenVINO: which convolutions need fp32 so that bf16 keeps the default's neighbours.

OpenVINO's CPU plugin keeps an operation in fp32 when the graph's IR says that it must not be converted to f16
(`DisablePrecisionConversion`, which is not documented; nothing of the server rests on it). Each convolution's
error is measured with it alone in bf16, its cost as what fp32 adds to its time. Then the worst errors for
their cost go to fp32, more and more of them. The first and the last ones of the network stand for what two
compiled graphs, one of each precision, can reach.

Fidelity is over the 54 pictures of tests/congruence/test_fidelity.py and over seeded windows of them.

    PYTHONPATH=tests:. python -m bench.mixed [--windows 320] [--rounds 40]
"""

from __future__ import annotations

import argparse
import random
import re
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from support import fidelity, photos
from support.servers import CACHE

from bench.fidelity import pictures
from pixvec_server import provision
from pixvec_server.backends.openvino import ov
from pixvec_server.backends.select import computes_bf16
from pixvec_server.cpu import available_cpus, processor
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.types import U8, WHOLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32

Untyped: TypeAlias = Any  # openvino ships no types that mypy can follow
BATCH = 8
KEPT = (2, 4, 6, 11, 18, 27, 32)
_KEEP = '<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:f16" /></rt_info>'
_LAYER = re.compile(r'(<layer id="\d+" name="([^"]+)"[^>]*>\s*(?:<data [^>]*/>)?)')


class Graph:
    """The image tower, its biases made constant and its first division folded into the first convolution."""

    def __init__(self, bundle: Bundle) -> None:
        self._core = ov.Core()
        whole = self._core.read_model(bundle.graph())
        node = whole.output("out_embedding").get_node().input_value(0)
        self.plain = ov.Model([node], whole.get_parameters(), "plain")
        self.model = self.plain.clone()
        _make_biases_constant(self.model)
        _fold_division(self.model)
        self.convolutions = [x for x in self.model.get_ordered_ops() if "Convolution" in x.get_type_name()]
        self.groups = self._groups()

    def compiled(self, precision: str, keep: Collection[int] = (), **settings: Untyped) -> Untyped:
        """Compile with the convolutions `keep` (-1: what precedes them) and what hangs on them in fp32."""
        names = {name for i in keep for name in self.groups[i]}
        model = self._marked(names) if names else self.model
        return self.compile(model, precision, **settings)

    def compile(self, model: Untyped, precision: str, **settings: Untyped) -> Untyped:
        """Compile a graph as the server does, but for `settings`."""
        fixed = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": available_cpus()}
        return self._core.compile_model(model, "CPU", {**fixed, "NUM_STREAMS": 1, **settings})

    def _groups(self) -> dict[int, set[str]]:
        """Name the operations that belong to each convolution: those between it and the next."""
        owner: dict[str, int] = {}
        index = {x.get_friendly_name(): i for i, x in enumerate(self.convolutions)}
        for node in self.model.get_ordered_ops():
            if node.get_type_name() in ("Constant", "Parameter", "Result"):
                continue
            before = [owner.get(value.get_node().get_friendly_name(), -1) for value in node.input_values()]
            name = node.get_friendly_name()
            owner[name] = index.get(name, max(before, default=-1))
        return {i: {name for name, own in owner.items() if own == i} for i in range(-1, len(index))}

    def _marked(self, names: set[str]) -> Untyped:
        with TemporaryDirectory() as folder:
            xml, weights = Path(folder) / "graph.xml", Path(folder) / "graph.bin"
            ov.serialize(self.model, xml, weights)
            text = _LAYER.sub(lambda m: m[1] + (_KEEP if m[2] in names else ""), xml.read_text("utf-8"))
            xml.write_text(text, "utf-8")
            return self._core.read_model(xml)


def _make_biases_constant(model: Untyped) -> None:
    """Replace biases that are reshaped at run time, which keeps OpenVINO from fusing the first one."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Add":
            continue
        left, right = (node.input_value(i).get_node() for i in (0, 1))
        if "Convolution" in left.get_type_name() and right.get_type_name() == "Reshape":
            values = np.array(right.input_value(0).get_node().data).reshape(1, -1, 1, 1)
            node.input(1).replace_source_output(ov.opset13.constant(values).output(0))
    model.validate_nodes_and_infer_types()


def _fold_division(model: Untyped) -> None:
    """Divide the first weights, not the pixels: x - 127.5 is exact in bf16, (x - 127.5) / 127.5 is not."""
    nodes = model.get_ordered_ops()
    division = next(node for node in nodes if node.get_type_name() == "Divide")
    first = next(node for node in nodes if node.get_type_name() == "Convolution")
    scale = np.asarray(division.input_value(1).get_node().data, np.float64).reshape(-1)
    weights = np.array(first.input_value(1).get_node().data) / np.broadcast_to(scale, 3)[:, None, None]
    first.input(1).replace_source_output(ov.opset13.constant(weights.astype(np.float32)).output(0))
    for target in list(division.output(0).get_target_inputs()):
        target.replace_source_output(division.input_value(0))
    model.validate_nodes_and_infer_types()


def embed(compiled: Untyped, pixels: U8) -> F32:
    """Return embeddings (n, 1280) of (n, 224, 224, 3) uint8."""
    request, parts = compiled.create_infer_request(), []
    for at in range(0, len(pixels), BATCH):
        request.infer([pixels[at : at + BATCH]], share_inputs=True)
        parts.append(np.array(request.get_output_tensor(0).data))
    return np.concatenate(parts)


def seconds(compiled: dict[str, Untyped], pixels: U8, rounds: int) -> dict[str, float]:
    """Return the least seconds of a batch of each, in rounds of random order."""
    requests = {name: one.create_infer_request() for name, one in compiled.items()}
    taken: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(rounds):
        for name in random.sample(list(requests), len(requests)):
            requests[name].infer([pixels], share_inputs=True)
            started = time.perf_counter()
            requests[name].infer([pixels], share_inputs=True)
            taken[name].append(time.perf_counter() - started)
    return {name: min(times) for name, times in taken.items()}


def order(graph: Graph, pixels: U8, expected: F32) -> list[int]:
    """Return the convolutions by their error in bf16 over what fp32 would cost, the worst first."""
    count = len(graph.convolutions)
    spent = [_each(graph, precision, pixels[:BATCH]) for precision in ("bf16", "f32")]
    ratios = []
    for i in range(count):
        others = set(range(-1, count)) - {i}
        error = 1 - fidelity.agreement(expected, embed(graph.compiled("bf16", others), pixels)).mean
        name = graph.convolutions[i].get_friendly_name()
        cost = spent[1].get(name, 0.0) - spent[0].get(name, 0.0)
        ratios.append(max(error, 1e-9) / max(cost, 0.05))
        print(f"convolution {i:2}: 1 - cosine {error:.2e}, fp32 adds {cost:+.2f} ms a batch", flush=True)
    return sorted(range(count), key=lambda i: -ratios[i])


def _each(graph: Graph, precision: str, pixels: U8, rounds: int = 25) -> dict[str, float]:
    """Return the least milliseconds of each operation."""
    request = graph.compiled(precision, PERF_COUNT=True).create_infer_request()
    least: dict[str, float] = {}
    for _ in range(rounds):
        request.infer([pixels], share_inputs=True)
        for part in request.profiling_info:
            took = part.real_time.total_seconds() * 1000
            least[part.node_name] = min(took, least.get(part.node_name, took))
    return least


def read(files: Iterable[bytes], bundle: Bundle) -> U8:
    """Decode and fit pictures: (n, 224, 224, 3) uint8."""
    decoder = Decoder(ImageLimits(), DecodeOptions(), PixelBudget(400_000_000))
    rows = []
    for file in files:
        with ExitStack() as held:
            rows.append(fit(decoder.decode(file, held, None), WHOLE, spec_of(bundle.manifest.preprocess)))
    return np.stack(rows)


def originals() -> list[bytes]:
    """Return the 54 pictures of tests/congruence/test_fidelity.py."""
    enlarged = [name for name in photos.NAMES if photos.image(name).width < 700]
    made = [photos.jpeg(name) for name in photos.NAMES] + [photos.jpeg(name, scale=3) for name in enlarged]
    return made + [photos.data(name) for name in photos.NAMES if name.endswith("png")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--windows", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=40)
    asked = parser.parse_args()
    if not computes_bf16():
        raise SystemExit(f"bf16 is compared with fp32: use a processor with bf16; this is {processor()}")
    bundle = provision.obtain(provision.parse("efficientnet_lite0"), CACHE)
    graph = Graph(bundle)
    sets = [read(originals(), bundle), read(pictures(asked.windows), bundle)]
    exact = graph.compile(graph.plain, "f32")
    expected = [embed(exact, pixels) for pixels in sets]
    worst = order(graph, sets[0], expected[0])
    variants = {
        "fp32": exact,
        "bf16": graph.compile(graph.plain, "bf16"),
        "fp32, folded": graph.compiled("f32"),
        "bf16, folded": graph.compiled("bf16"),
        "f16": graph.compile(graph.plain, "f16"),
        **{f"bf16, {n} in fp32": graph.compiled("bf16", [-1, *worst[:n]]) for n in KEPT},
        **{f"bf16, first {n} in fp32": graph.compiled("bf16", range(-1, n)) for n in (2, 11, 17)},
        "bf16, last 32 in fp32": graph.compiled("bf16", range(len(worst) - 32, len(worst))),
    }
    speeds = [seconds(variants, sets[0][:size], asked.rounds) for size in (1, BATCH)]
    for name, compiled in variants.items():
        ratios = "  ".join(f"{taken['bf16'] / taken[name]:.2f}" for taken in speeds)
        print(f"{name:24} speed of bf16's, batch 1 and {BATCH}: {ratios}")
        for pixels, rows in zip(sets, expected, strict=True):
            print(
                f"    {len(pixels):3} pictures: {fidelity.agreement(rows, embed(compiled, pixels))}",
                flush=True,
            )


if __name__ == "__main__":
    main()
