"""Models and limits, as ListModels and GetModel tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.engine import DEFAULT_OUTPUT
from pixvec_server.types import State

if TYPE_CHECKING:
    from pixvec_server.bundle import OutputRecord, PreprocessRecord
    from pixvec_server.config import LimitsSection
    from pixvec_server.engine import Engine
    from pixvec_server.pipeline import Pipeline


def model(engine: Engine, pipeline: Pipeline) -> pb.Model:
    """Describe a model; one that is not READY has a name and a state only."""
    state = pb.State.Name(engine.state.value)
    if engine.state is not State.READY:
        return pb.Model(name=engine.name, state=state)
    manifest, place = engine.manifest, engine.placement
    return pb.Model(
        name=engine.name,
        aliases=pipeline.aliases(engine),
        state=state,
        build=engine.build(DEFAULT_OUTPUT),
        licence=manifest.licence,
        outputs=[_output(name, record) for name, record in manifest.outputs.items()],
        parity=manifest.parity,
        backend=place.kind,
        device=place.device,
        precision=place.precision,
        preprocessing=_words(manifest.preprocess, engine.options.decode_mode),
        input_size=(manifest.preprocess.height, manifest.preprocess.width),
        selection=place.why,
    )


def limits(section: LimitsSection) -> pb.Limits:
    """Describe what one request may hold."""
    return pb.Limits(**section.model_dump())


def _output(name: str, record: OutputRecord) -> pb.Output:
    return pb.Output(
        name=name,
        space=record.space,
        shape=record.shape,
        dimensions=record.dimensions,
        normalized=record.normalized,
        int8_scales=record.int8_scales,
    )


def _words(spec: PreprocessRecord, decode_mode: str) -> str:
    size = f"{spec.width} x {spec.height}"
    if spec.mode == "squash":
        way = f"both sides to {size}"
    else:
        short = int(min(spec.height, spec.width) / spec.crop)
        way = f"shorter side to {short}, centre {size}"
    return f"{decode_mode} decode, EXIF turn, {way}, {spec.interpolation} antialiased"
