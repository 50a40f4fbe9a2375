"""One input, read once for all that was asked of it: pixels by preprocessing, tokens by tokenizer."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from pixvec_server.errors import BadOptionError, DeadlineError, RequestError
from pixvec_server.preprocess import EmptyRegionError, PreprocessSpec, fit, is_fitted
from pixvec_server.served import Work
from pixvec_server.types import Pixels, Source, Text

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from pixvec_server.preprocess import Decoded, Decoder
    from pixvec_server.served import Served
    from pixvec_server.types import U8, Encoded, Input, Region

Part: TypeAlias = dict[str, Work | RequestError]  # by model
Frames: TypeAlias = Literal["first", "mean"] | None


@dataclass(slots=True)
class Read:
    """What came of an input: for each region the work of each model, or that region's own error.

    cut: the models for which words of a text were cut off.
    """

    source: Source
    parts: list[Part | RequestError]
    seconds: float
    pixels: int = 0
    tokens: int = 0
    decodes: int = 0
    cut: frozenset[str] = frozenset()


class Reader:
    """Reads inputs, on decode threads."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def read(
        self, item: Input, engines: Sequence[Served], deadline: float, wanted: Collection[tuple[int, str]]
    ) -> Read:
        """Decode or tokenise once. Raises RequestError when the input as a whole cannot be answered.

        `engines` are all that the request asks, `wanted` the regions and models whose pixels are needed: how
        a picture is decoded depends on the whole request, so that an answer never depends on what is kept.
        """
        started = time.monotonic()
        if started > deadline:
            raise DeadlineError("the deadline passed before the input was read")
        content = item.content
        read = (
            _read_text(item, content, engines)
            if isinstance(content, Text)
            else self._read_image(item, content, engines, wanted)
        )
        read.seconds = time.monotonic() - started
        return read

    def needs_no_thread(self, item: Input, engines: Sequence[Served]) -> bool:
        """Tell whether all that there is to do is to look at pixels that are the networks' own already."""
        content = item.content
        return (
            isinstance(content, Pixels)
            and len(item.regions) == 1
            and item.regions[0].whole
            and all(is_fitted(content.shape, engine.spec) for engine in engines)
        )

    def context(self, item: Input, engines: Sequence[Served]) -> Hashable:
        """Return what of a request decides how each of an input's regions is read, beside the region."""
        if isinstance(item.content, Text):
            return len(item.regions)  # more than one are refused
        if not self._decoder.reduces:
            return None
        return all(region.whole for region in item.regions), tuple(engine.spec for engine in engines)

    def _read_image(
        self,
        item: Input,
        content: Encoded | Pixels,
        engines: Sequence[Served],
        wanted: Collection[tuple[int, str]],
    ) -> Read:
        if item.prompt:
            raise BadOptionError(f"prompt = {item.prompt!r}: prompts are for texts", field="prompt")
        fitted: list[dict[PreprocessSpec, U8] | RequestError] = [{} for _ in item.regions]
        waiting = list(dict.fromkeys(engine.spec for engine in engines))
        decodes = 0
        while waiting:
            decodes += 1
            frames = waiting[0].frames
            with ExitStack() as held:
                image = self._open(item, content, waiting, frames, held)
                # A still picture is the same, whatever is to be made of an animation.
                now = [spec for spec in waiting if spec.frames == frames or image.frames == 1]
                for i, region in enumerate(item.regions):
                    needed = {engine.spec for engine in engines if (i, engine.name) in wanted}
                    specs = [spec for spec in now if spec in needed]
                    fitted[i] = _fit_all(image, region, specs, i, fitted[i])
            waiting = [spec for spec in waiting if spec not in now]
        parts: list[Part | RequestError] = [
            crops
            if isinstance(crops, RequestError)
            else {e.name: Work("image", crops[e.spec]) for e in engines if e.spec in crops}
            for crops in fitted
        ]
        source = Source(image.width, image.height, image.format, image.frames)
        return Read(source, parts, 0.0, pixels=image.width * image.height, decodes=decodes)

    def _open(
        self,
        item: Input,
        content: Encoded | Pixels,
        specs: Sequence[PreprocessSpec],
        frames: Frames,
        held: ExitStack,
    ) -> Decoded:
        if isinstance(content, Pixels):
            return self._decoder.from_pixels(content, held)
        # What is not antialiased picks single pixels: they must be those of the picture in full.
        reducible = all(region.whole for region in item.regions) and all(s.antialias for s in specs)
        short_side = max(spec.short_side for spec in specs) if reducible else None
        return self._decoder.decode(content.data, held, short_side, frames)


def _fit_all(
    image: Decoded,
    region: Region,
    specs: Sequence[PreprocessSpec],
    index: int,
    so_far: dict[PreprocessSpec, U8] | RequestError,
) -> dict[PreprocessSpec, U8] | RequestError:
    if isinstance(so_far, RequestError):
        return so_far
    try:
        return so_far | {spec: fit(image, region, spec) for spec in specs}
    except EmptyRegionError as exc:
        return exc.under(f"regions[{index}]")


def _read_text(item: Input, text: Text, engines: Sequence[Served]) -> Read:
    if any(not region.whole for region in item.regions) or len(item.regions) > 1:
        raise BadOptionError("regions are for images: send a text without any", field="regions")
    part: Part = {}
    tokens, cut = 0, set()
    for engine in engines:
        try:
            prompted = _prompted(item, text, engine)
            assert engine.tokenizer is not None
        except RequestError as exc:
            part[engine.name] = exc
            continue
        encoded = engine.tokenizer.encode(prompted)
        part[engine.name] = Work("text", encoded.ids)
        tokens += encoded.count
        if encoded.truncated:
            cut.add(engine.name)
    errors = [value for value in part.values() if isinstance(value, RequestError)]
    if len(errors) == len(part):
        raise errors[0]
    source = Source(0, 0, "text", frames=0, truncated=bool(cut))
    return Read(source, [part], 0.0, tokens=tokens, cut=frozenset(cut))


def _prompted(item: Input, text: Text, engine: Served) -> str:
    """Put a text into the prompt that was asked for. Raises BadOptionError when the model cannot take it."""
    if engine.tokenizer is None:
        raise BadOptionError(
            f"model {engine.name} has no text tower: send an image, or take a model of images and texts",
            field="text",
        )
    if not item.prompt:
        return text.text
    template = engine.manifest.prompts.get(item.prompt)
    if template is None:
        known = ", ".join(engine.manifest.prompts) or "none"
        raise BadOptionError(
            f"prompt = {item.prompt!r}: {engine.name} has {known}; leave it empty for the text as it is",
            field="prompt",
        )
    return template.replace("{}", text.text)
