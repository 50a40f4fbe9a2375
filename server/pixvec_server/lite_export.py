"""Makes the bundles of EfficientNet-Lite, the default model among them, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from pixvec_server import bundle
from pixvec_server.agreement import cosines
from pixvec_server.errors import ExportError
from pixvec_server.graph_check import run_probes
from pixvec_server.manifest import Manifest, OutputRecord
from pixvec_server.models import efficientnet_lite
from pixvec_server.models.outputs import output_record
from pixvec_server.spec import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Callable

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
    assert spec.preprocess is not None
    say(f"{spec.name}: weights from {spec.source}")
    tensors = efficientnet_lite.read_weights(spec)
    graph = efficientnet_lite.build_graph(spec, tensors, bundle.GRAPH_PREFIX)
    onnx.checker.check_model(graph, full_check=True)
    path = scratch / "image.onnx"
    onnx.save(graph, str(path))
    say(f"{spec.name}: checking the graph")
    manifest = Manifest(
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
    answers = run_probes(bundle.Bundle(scratch, manifest), OUTPUTS, PROBES)
    outputs = {
        name: output_record(spec, manifest.weights_sha256, name, values) for name, values in answers.items()
    }
    parity = _parity(spec, outputs[EMBEDDING].space, answers[EMBEDDING])
    return manifest.model_copy(update={"outputs": outputs, "parity": parity})


def _parity(spec: ModelSpec, space: str, embeddings: F32) -> float | None:
    """Return the worst cosine to timm's vectors; None for preprocessing that no reference is kept of."""
    with np.load(REFERENCES, allow_pickle=False) as references:
        if space not in references:
            return None
        reference = references[space].astype(np.float32)
    worst = min(1.0, float(cosines(embeddings[: len(reference)], reference).min()))
    if worst < MIN_PARITY:
        raise ExportError(
            f"{spec.name}: its graph agrees with timm only to cosine {worst:.6f} (at least {MIN_PARITY}): "
            "the backend on this machine computes other vectors"
        )
    return worst
