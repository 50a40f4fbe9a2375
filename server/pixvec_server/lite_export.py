"""Makes the bundles of EfficientNet-Lite, the default model among them, without torch."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx

from pixvec_server import bundle, catalog
from pixvec_server.agreement import cosines
from pixvec_server.errors import ExportError
from pixvec_server.graph_check import run_probes
from pixvec_server.manifest import Manifest, OutputRecord
from pixvec_server.models import efficientnet_lite
from pixvec_server.models.outputs import output_record, recipe
from pixvec_server.spec import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixvec_server.models.torch_file import Tensors
    from pixvec_server.spec import ModelSpec
    from pixvec_server.types import F32

OUTPUTS = (EMBEDDING, "pooled", "features", "logits")
# The graph must agree with torch's vectors of the probe pictures to this cosine, or it is not kept.
MIN_PARITY = 0.99999
PROBES = 24
# Embeddings of the first probe pictures (n, dimensions) by timm in fp32, kept as float16, by their space.
# `python -m bench.lite_reference` writes them.
REFERENCES = Path(__file__).parent / "models" / "lite_reference.npz"

is_supported = efficientnet_lite.is_supported


def write(spec: ModelSpec, scratch: Path, say: Callable[[str], None]) -> Manifest:
    """Write a spec's graph into `scratch` and return its manifest.

    Raises BundleError when the weights are missing or do not fit, ExportError when the graph does not agree
    with the vectors that torch computed from the same weights.
    """
    say(f"{spec.name}: weights from {spec.source}")
    tensors = efficientnet_lite.read_weights(spec)
    draft = _write_graph(spec, tensors, scratch)
    say(f"{spec.name}: checking the graph")
    answers = run_probes(bundle.Bundle(scratch, draft), OUTPUTS, PROBES)
    outputs = {
        name: output_record(spec, draft.weights_sha256, name, values) for name, values in answers.items()
    }
    published = catalog.of_source(spec.source)
    if published.preprocess == spec.preprocess:
        parity = _parity(published, draft, answers[EMBEDDING])
    else:
        parity = _parity(published, draft, _published_embeddings(published, tensors))
    return draft.model_copy(update={"outputs": outputs, "parity": parity})


def _write_graph(spec: ModelSpec, tensors: Tensors, folder: Path) -> Manifest:
    """Write the graph, and return a manifest whose outputs are not yet described."""
    assert spec.preprocess is not None
    graph = efficientnet_lite.build_graph(spec, tensors, bundle.GRAPH_PREFIX)
    onnx.checker.check_model(graph, full_check=True)
    path = folder / "image.onnx"
    onnx.save(graph, str(path))
    return Manifest(
        name=spec.name,
        aliases=spec.aliases,
        source=spec.source,
        weights_sha256=efficientnet_lite.weights_sha256(tensors),
        licence=spec.licence,
        spec=spec,
        preprocess=spec.preprocess,
        outputs={name: OutputRecord(space="unknown", shape=(1,)) for name in OUTPUTS},
        files={path.name: bundle.record(path)},
        made_with={"onnx": onnx.__version__},
    )


def _published_embeddings(published: ModelSpec, tensors: Tensors) -> F32:
    """Return the embeddings of the same weights with the preprocessing that references are kept of."""
    with TemporaryDirectory() as folder:
        draft = _write_graph(published, tensors, Path(folder))
        return run_probes(bundle.Bundle(Path(folder), draft), (EMBEDDING,), PROBES)[EMBEDDING]


def _parity(published: ModelSpec, draft: Manifest, embeddings: F32) -> float:
    """Return the worst cosine to timm's vectors. Raises ExportError when it is under MIN_PARITY."""
    assert published.preprocess is not None
    space = bundle.space_id(draft.weights_sha256, recipe(published, EMBEDDING), published.preprocess)
    with np.load(REFERENCES, allow_pickle=False) as references:
        reference = references[space].astype(np.float32)
    worst = min(1.0, float(cosines(embeddings[: len(reference)], reference).min()))
    if worst < MIN_PARITY:
        raise ExportError(
            f"{draft.name}: its graph agrees with timm only to cosine {worst:.6f} (at least {MIN_PARITY}): "
            "the backend on this machine computes other vectors"
        )
    return worst
