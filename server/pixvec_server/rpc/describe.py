"""Models and limits, as ListModels and GetModel tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.spec import EMBEDDING

if TYPE_CHECKING:
    from pixvec_server.config import LimitsSection
    from pixvec_server.manifest import Manifest, OutputRecord
    from pixvec_server.pipeline import Pipeline
    from pixvec_server.served import Served
    from pixvec_server.spec import Preprocess


def model(engine: Served, pipeline: Pipeline) -> pb.Model:
    """Describe a model; one whose bundle is not there yet has a name and a state only."""
    state = pb.State.Name(engine.state.value)
    if not engine.prepared:
        return pb.Model(name=engine.name, state=state)
    manifest, place = engine.manifest, engine.placement
    return pb.Model(
        name=engine.name,
        aliases=pipeline.aliases(engine),
        state=state,
        build=engine.build(EMBEDDING),
        licence=manifest.licence,
        outputs=[_output(name, record) for name, record in manifest.outputs.items()],
        prompts=manifest.prompts,
        max_text_tokens=0 if manifest.text is None else manifest.text.tokenizer.context,
        logit_scale=manifest.logit_scale,
        logit_bias=manifest.logit_bias,
        parity=_parity(manifest),
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


def _parity(manifest: Manifest) -> float | None:
    """Return the worst cosine that was measured: against the upstream library, else against torch."""
    verified = [record.cosine_min for record in manifest.verified.values()]
    return min(verified) if verified else manifest.parity


def _words(spec: Preprocess, decode_mode: str) -> str:
    size = f"{spec.width} x {spec.height}"
    if spec.mode == "squash":
        way = f"both sides to {size}"
    else:
        short = spec.short_side or int(spec.height / spec.crop)
        way = f"shorter side to {short}, centre {size}"
    mode = decode_mode if spec.antialias else decode_mode.replace("fast", "exact")
    sampling = "antialiased" if spec.antialias else "not antialiased"
    frames = ", mean of an animation's frames" if spec.frames == "mean" else ""
    numbers = f"{spec.channels.upper()}, (x / 255 - {list(spec.mean)}) / {list(spec.std)}"
    return f"{mode} decode, EXIF turn, {way}, {spec.interpolation} {sampling}{frames}; {numbers}"
