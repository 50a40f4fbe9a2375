"""Every preset of the catalogue, built with seeded random weights and run by three engines.

For each: the sizes of its vectors against the catalogue's; torch against onnxruntime against OpenVINO in
fp32, as a relative error of the embeddings less their mean (a random network gives nearly the same vector for
every picture, so that a plain cosine cannot fail); and two planted bugs, channels swapped and a wrong mean,
which that error must find. One process for each preset; what is done already is not done again.

    python -m bench.zoo                     all, cheapest first; then docs/zoo.md
    python -m bench.zoo 'resnet*' --fresh   these, again
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixvec_server import catalog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixvec_server.spec import ModelSpec

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "build" / "zoo"
PAGE = ROOT / "docs" / "zoo.md"
LIMIT = 1e-3
# Two of them at a time would not fit into a workstation's memory.
_ALONE = 250_000_000
# From this cost of one picture on, two are enough.
_DEAR = 150_000_000


def zoo(preset: ModelSpec) -> ModelSpec:
    """Return a preset as the zoo builds it; a tokenizer that lies on a hub alone is left out."""
    needs_hub = preset.kind == "open_clip" and "siglip" in preset.source.lower()
    towers = ["image"] if needs_hub else list(preset.towers)
    return catalog.changed(preset, {"weights": "none", "towers": towers}, preset.name)


def normalised(spec: ModelSpec, path: Path) -> ModelSpec:
    """Write random weights that keep signals alive in a deep network, and return the spec that takes them.

    As initialised, many networks are nearly constant (layer scales of 1e-5, batch normalisation that has seen
    nothing): their signal drowns in float32. Constant parameters get noise, running statistics are measured.
    """
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from pixvec_server.module import build
    from pixvec_server.torch_export import probe_pictures

    built = build(spec)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in built.network.parameters():
            low, high = parameter.aminmax()
            if high - low < 1e-4:
                parameter.copy_((1.0 if high > 0 else 0.0) + 0.1 * torch.randn_like(parameter))
        for module in built.network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.momentum = None
                module.reset_running_stats()
                module.train()
        built.image(torch.from_numpy(probe_pictures(built.spec)[:8]))
    save_file({key: value.contiguous().clone() for key, value in built.network.state_dict().items()}, path)
    return spec.model_copy(update={"weights": str(path)})


def examine(name: str) -> dict[str, Any]:
    """Build one preset and return what was found; raises whatever went wrong."""
    import numpy as np

    from pixvec_server.agreement import relative_error
    from pixvec_server.backends.base import BackendOptions, Placement
    from pixvec_server.backends.select import factory
    from pixvec_server.export import export
    from pixvec_server.module import ImageModule, build
    from pixvec_server.torch_export import probe_pictures, run_torch

    started = time.monotonic()
    spec = zoo(catalog.find(name))
    if twin := twin_of(spec):
        return as_twin(spec, zoo(catalog.find(twin)))
    with tempfile.TemporaryDirectory(dir=RECORDS) as place:
        spec = normalised(spec, Path(place) / "weights.safetensors")
        made = export(spec, Path(place) / "bundle")
        built = build(spec)
        pixels = probe_pictures(built.spec)[: 2 if cost(spec) > _DEAR else 8]
        torch = run_torch(built.image, pixels)["embedding"]
        errors: dict[str, float] = {}
        for kind in ("onnx", "openvino"):
            place_on = Placement(kind, "cpu", "fp32", "zoo")
            engine = factory(place_on.kind)(made, place_on, BackendOptions(os.cpu_count() or 1, 1))
            parts = [
                engine.run("image", pixels[at : at + 4], ("embedding",)) for at in range(0, len(pixels), 4)
            ]
            errors[kind] = relative_error(np.concatenate([part["embedding"] for part in parts]), torch)
            engine.close()
    preprocess = built.spec.preprocess
    assert preprocess is not None
    bugs = {}
    wrong: dict[str, dict[str, object]] = {
        "swapped": {"channels": "rgb" if preprocess.channels == "bgr" else "bgr"},
        "mean": {"mean": tuple(value + 0.02 for value in preprocess.mean)},
    }
    for bug, change in wrong.items():
        module = ImageModule(
            built.image.tower,
            preprocess.model_copy(update=change),
            layer=spec.layer,
            pool=spec.pool,
            projection=built.image.projection,
        ).eval()
        bugs[bug] = relative_error(run_torch(module, pixels)["embedding"], torch)
    sizes = {key: record.shape[0] for key, record in made.manifest.outputs.items() if len(record.shape) == 1}
    return {
        "name": name,
        "source": spec.source,
        "input": f"{preprocess.height}x{preprocess.width}",
        "parameters": spec.parameters,
        "towers": list(spec.towers),
        "expected": spec.outputs,
        "sizes": sizes,
        "errors": errors,
        "bugs": bugs,
        "pictures": len(pixels),
        "weights": "normalised",
        "seconds": round(time.monotonic() - started, 1),
    }


def twin_of(preset: ModelSpec) -> str:
    """Return the first preset of the same network that has been examined, or ""."""
    for other in in_order(list(catalog.presets().values())):
        if other == preset.name or network(catalog.presets()[other]) != network(preset):
            continue
        path = RECORDS / f"{other}.json"
        if path.is_file() and "errors" in json.loads(path.read_text()):
            return other
    return ""


def as_twin(spec: ModelSpec, twin: ModelSpec) -> dict[str, Any]:
    """Build a preset whose network has been examined: its sizes, and that its weights are its twin's."""
    from pixvec_server.module import build
    from pixvec_server.torch_export import probe_pictures, run_torch

    built = build(spec)
    if built.weights_sha256 != build(twin).weights_sha256:
        raise ValueError(f"{spec.name} is not the network of {twin.name}")
    answered = run_torch(built.image, probe_pictures(built.spec)[:1])
    sizes = {key: value.shape[1] for key, value in answered.items() if value.ndim == 2}
    record = json.loads((RECORDS / f"{twin.name}.json").read_text())
    own = {"name": spec.name, "source": spec.source, "expected": spec.outputs, "sizes": sizes}
    return {**record, **own, "weights": f"those of {twin.name}"}


def network(preset: ModelSpec) -> tuple[object, ...]:
    """Say what a preset builds with random weights; only its preprocessing and its tag are not in it."""
    size = preset.preprocess.height if preset.preprocess else 0
    architecture = preset.location.partition("." if preset.kind == "timm" else "/")[0]
    heads = preset.outputs.get("logits", 0)
    config = json.dumps(preset.config, sort_keys=True)
    where = preset.architecture or (preset.location if preset.kind == "hf" else architecture)
    return preset.kind, where, config, heads, preset.layer, preset.pool, size


def passed(record: dict[str, Any]) -> bool:
    """Tell whether a record shows all that it must."""
    return (
        "failure" not in record
        and all(record["sizes"].get(key) == size for key, size in record["expected"].items())
        and max(record["errors"].values()) <= LIMIT
        and min(record["bugs"].values()) > LIMIT
    )


def run(names: Sequence[str], jobs: int) -> None:
    """Examine in processes of their own, `jobs` at a time, the large ones alone."""
    waiting: deque[str] = deque(names)
    running: dict[str, subprocess.Popen[str]] = {}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    while waiting or running:
        alone = any(
            (catalog.presets()[name].parameters or 0) > _ALONE for name in [*running, *list(waiting)[:1]]
        )
        if waiting and (len(running) < (1 if alone else jobs)):
            name = waiting.popleft()
            command = [sys.executable, "-m", "bench.zoo", "--one", name]
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (1 if alone else jobs)))}
            running[name] = subprocess.Popen(
                command, cwd=ROOT, env=env | threads, stderr=subprocess.PIPE, text=True
            )
            continue
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            _, said = process.communicate()
            if process.returncode:
                failure = said.strip().splitlines()[-1] if said.strip() else f"exit {process.returncode}"
                _write(name, {"name": name, "failure": failure})
            record = json.loads((RECORDS / f"{name}.json").read_text())
            found = record.get("errors", record.get("failure"))
            print("ok  " if passed(record) else "FAIL", name, found, flush=True)
        time.sleep(0.2)


def table() -> str:
    """Return the page of all records."""
    records = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    good = [record for record in records if passed(record)]
    missing = sorted(set(catalog.presets()) - {record["name"] for record in records})
    lines = [
        "# The zoo",
        "",
        "Every preset built with seeded random weights and run on seeded pictures by three engines; written",
        "by `make test-zoo`. An error is |ours - torch| / |torch - its mean over the pictures|, Frobenius",
        "norms: what all pictures share counts for nothing. At most 0.001 passes. Two planted bugs, channels",
        "swapped and a mean that is 0.02 off, must be over it: they are the last columns. *Normalised*",
        "weights are random ones that keep a signal alive: as initialised, many deep networks let it drown.",
        "A preset with the network of another one, told by the hash of its weights, has that one's figures:",
        "what differs is its preprocessing, which tests/congruence/test_profiles.py checks.",
        "",
        f"{len(good)} of {len(catalog.presets())} presets pass.",
        "",
        "| model | input | parameters | vectors | weights | pictures | ORT | OpenVINO | swapped | mean |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in sorted(good, key=lambda record: record["name"]):
        sizes = ", ".join(f"{key} {size}" for key, size in record["sizes"].items())
        error, bug = record["errors"], record["bugs"]
        cells = (
            record["name"],
            record["input"],
            f"{record['parameters'] / 1e6:.1f} M",
            sizes,
            record.get("weights", "as initialised"),
            record["pictures"],
            *(f"{value:.0e}" for value in (error["onnx"], error["openvino"])),
            *(f"{value:.2f}" for value in (bug["swapped"], bug["mean"])),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = [record for record in records if not passed(record)]
    if failed or missing:
        lines += ["", "## Not passed", ""]
        lines += [f"- {record['name']}: {record.get('failure') or record}" for record in failed]
        lines += [f"- {name}: not run" for name in missing]
    return "\n".join(lines) + "\n"


def in_order(presets: Sequence[ModelSpec]) -> list[str]:
    """Return names, cheapest first; a network that stands before with another preprocessing comes last."""
    first: dict[tuple[object, ...], str] = {}
    for preset in presets:
        first.setdefault(network(preset), preset.name)
    known = set(first.values())
    return [preset.name for preset in sorted(presets, key=lambda p: (p.name not in known, cost(p)))]


def cost(preset: ModelSpec) -> float:
    """Estimate one picture's work, in parameters at 224 pixels."""
    side = preset.preprocess.height if preset.preprocess else 224
    return (preset.parameters or 0) * (side / 224) ** 2


def _write(name: str, record: dict[str, Any]) -> None:
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="examine again what has been examined")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="write docs/zoo.md from the records and end")
    given = parser.parse_args()
    RECORDS.mkdir(parents=True, exist_ok=True)
    if given.one:
        _write(given.one, examine(given.one))
        return
    if not given.page:
        chosen = {preset.name: preset for pattern in given.patterns for preset in catalog.matching(pattern)}
        names = in_order(list(chosen.values()))
        done = {path.stem for path in RECORDS.glob("*.json")} if not given.fresh else set()
        run([name for name in names if name not in done], given.jobs)
    PAGE.write_text(table())
    bad = [path.stem for path in RECORDS.glob("*.json") if not passed(json.loads(path.read_text()))]
    if bad:
        sys.exit(f"not passed: {', '.join(bad)}")


if __name__ == "__main__":
    main()
