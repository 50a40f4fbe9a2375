"""Runs a graph that was just written on probe pictures, before its bundle is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixvec_server.backends.base import BackendOptions, Placement
from pixvec_server.backends.select import factory, installed
from pixvec_server.errors import BundleError
from pixvec_server.probes import pictures

if TYPE_CHECKING:
    from pixvec_server.backends.base import Kind
    from pixvec_server.bundle import Bundle
    from pixvec_server.types import F32

_MIN_AXES = 2


def run_probes(made: Bundle, outputs: tuple[str, ...], count: int) -> dict[str, F32]:
    """Return what the image graph answers for `count` seeded pictures, (count, …) by output.

    Raises BundleError when no backend is installed, the graph cannot run, or an answer is not finite.
    """
    kinds: tuple[Kind, ...] = ("onnx", "openvino")
    kind = next((kind for kind in kinds if installed(kind)), None)
    if kind is None:
        raise BundleError("a new graph must be checked with a backend: pip install 'pixvec[cpu]'")
    place = Placement(kind, "cpu", "fp32", "probe")
    spec = made.manifest.preprocess
    try:
        backend = factory(place.kind)(made, place, BackendOptions(threads=1, instances=1))
        answered = dict(backend.run("image", pictures(spec.height, spec.width, count), outputs))
        backend.close()
    except BundleError:
        raise
    except Exception as exc:  # backends raise anything on a graph that they cannot run
        raise BundleError(
            f"{made.manifest.source}: {kind} cannot run it: {str(exc).splitlines()[0]}"
        ) from exc
    for name, values in answered.items():
        if values.ndim < _MIN_AXES or len(values) != count:
            raise BundleError(f"{made.manifest.source}: {name} has no row for each picture")
        if not np.isfinite(values).all():
            raise BundleError(f"{made.manifest.source}: {name} holds NaN or infinity")
    return answered
