"""Compares a bundle with the library that publishes its model, from the file to the vector.

Ours is the server's default way: the bundle's graph on the backend that `auto` chooses, exact decoding, one
crop and resize, the bundle's tokenizer. Theirs is `upstream`. Both are taken before any scaling to length 1.

What it takes to pass:

- Trained weights: a cosine of at least 0.9995 for every input, and 0.99 of each one's ten nearest the same.
- Untrained weights, whose vectors are nearly the same for every picture: the relative error of the vectors
  less their mean. For texts 1e-3. For images 1e-2, because two ways to resize round differently. Measured
  on random CNNs, ConvNeXts and vision transformers: one grey level up or down on two values in three costs
  5e-3 to 2e-2; one level up on all of them, a mean that is off by 0.004, 5e-2 to 9e-2; a mean that is off by
  0.02, 0.27 to 0.48; red and blue exchanged, 0.5 to 1.1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pixvec_server import bundle, catalog
from pixvec_server.agreement import cosines, overlap, relative_error, same_nearest
from pixvec_server.errors import BundleError, ConfigError
from pixvec_server.manifest import TokenizerRecord, Verification
from pixvec_server.offline import Offline, image_files
from pixvec_server.preprocess.samples import Sample, samples
from pixvec_server.probes import sentences
from pixvec_server.spec import EMBEDDING
from pixvec_server.tokenizer import TextTokenizer
from pixvec_server.upstream import LIBRARIES, Settings, Upstream, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pixvec_server.manifest import Manifest
    from pixvec_server.spec import ModelSpec, Preprocess
    from pixvec_server.types import F32, U8
    from pixvec_server.upstream import Tokens

# Profiles that are a library's own preprocessing; the others are what some system does instead.
LIBRARY_PROFILES = {"imagenet", "inception", "clip", "siglip", "hf-vit"}
_LEAST = 2
_LOOKED_INTO = 8
# Another crop or filter moves the pixels by far more grey levels than this, another rounding by fewer.
_APART = 0.5
_CLEARLY = 4.0
_ROUNDING = 1e-3  # of the same pixels or tokens in two engines
_SAME = 1e-6
_CLEANERS = get_args(TokenizerRecord.model_fields["clean"].annotation)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tower must keep to pass; None: not asked."""

    cosine_min: float | None = None
    overlap_at_10: float | None = None
    relative_error: float | None = None

    def kept(self, found: Mapping[str, float]) -> bool:
        """Tell whether figures by these names are good enough."""
        least = {"cosine_min": self.cosine_min, "overlap_at_10": self.overlap_at_10}
        good = all(found[name] >= limit for name, limit in least.items() if limit is not None)
        return good and (self.relative_error is None or found["relative_error"] <= self.relative_error)

    def __str__(self) -> str:
        """Return the limits in words."""
        signs = {"cosine_min": "≥", "overlap_at_10": "≥", "relative_error": "≤"}
        asked = {name: limit for name, limit in asdict(self).items() if limit is not None}
        return ", ".join(f"{name} {signs[name]} {limit:g}" for name, limit in asked.items())


TRAINED = Limits(cosine_min=0.9995, overlap_at_10=0.99)
UNTRAINED = {"image": Limits(relative_error=1e-2), "text": Limits(relative_error=_ROUNDING)}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one tower: the record that the bundle keeps, and when it failed what may be wrong."""

    tower: str
    record: Verification
    limits: Limits
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What was found of a model; `skipped` says of inputs that could not be read why."""

    model: str
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every tower passed."""
        return all(finding.record.passed for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """Return the report for JSON."""
        towers = {
            finding.tower: {
                **finding.record.model_dump(),
                "limits": {name: v for name, v in asdict(finding.limits).items() if v is not None},
                "hints": list(finding.hints),
            }
            for finding in self.findings
        }
        return {
            "model": self.model,
            "passed": self.passed,
            "towers": towers,
            "skipped": dict(self.skipped),
        }


def check(spec: ModelSpec, against: str = "") -> None:
    """Refuse, before anything is made, what cannot be compared. Raises ConfigError that says what can.

    `against` is the library that was asked for; "": whichever the model is of.
    """
    library = LIBRARIES[spec.kind]
    if against and against != library:
        raise ConfigError(
            f"--against {against}: {spec.name} is {spec.source}, which is {library}'s: --against {library}"
        )
    if sibling := _differs_on_purpose(spec):
        raise ConfigError(
            f"{spec.name}: {library}'s own preprocessing is not what this preset wants, on purpose (profile "
            f"{catalog.profile_of(spec.name)}): verify {sibling}, the same weights as {library} runs them"
        )


def inputs(images: Sequence[Path], texts: Path | None) -> tuple[list[Sample], list[str]]:
    """Return the images of files and folders, else the bundled ones; the lines of a file, else the bundled.

    Raises ConfigError for a file that cannot be read.
    """
    try:
        given = [Sample(str(file), file.read_bytes()) for file in image_files(images)]
        lines = [] if texts is None else texts.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise ConfigError(f"{exc.filename}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"--texts {texts}: not UTF-8: {exc.reason}") from exc
    return given if images else samples(), sentences() if texts is None else lines


def verify(
    made: bundle.Bundle,
    images: Sequence[Sample],
    texts: Sequence[str],
    say: Callable[[str], None] = lambda _text: None,
    *,
    against: str = "",
) -> Report:
    """Compare a bundle's towers with the library's.

    Raises ConfigError for what cannot be compared, BundleError when the library cannot make the model.
    """
    manifest = made.manifest
    if manifest.spec is None:
        raise ConfigError(f"{manifest.name} was made from a graph: there is no library to compare it with")
    check(manifest.spec, against)
    output = _compared(manifest, manifest.spec)
    say(f"{manifest.name}: {manifest.source} as {LIBRARIES[manifest.spec.kind]} runs it")
    upstream = load(manifest.spec)
    with Offline(made) as ours:
        comparison = _Comparison(ours, upstream, manifest.spec, output)
        finding, skipped = comparison.images(images)
        findings = [finding]
        if manifest.text is not None and upstream.text is not None:
            findings.append(comparison.texts(texts))
    return Report(manifest.name, tuple(findings), skipped)


def keep(made: bundle.Bundle, report: Report) -> None:
    """Write what was found into the bundle. Raises BundleError when its folder cannot be written."""
    manifest = bundle.load(made.folder).manifest  # it may have gained an output meanwhile
    found = {finding.tower: finding.record for finding in report.findings}
    changed = manifest.model_copy(update={"verified": {**manifest.verified, **found}})
    try:
        bundle.save(made.folder, changed)
    except OSError as exc:
        raise BundleError(f"{made.folder}: the result cannot be recorded: {exc.strerror}") from exc


def settings_of(record: Preprocess) -> Settings:
    """Return a manifest's preprocessing in the words of `upstream`."""
    side = min(record.height, record.width)
    cropped = record.mode == "short_side_crop"
    return Settings(
        size=(record.height, record.width),
        mode=record.mode,
        short_side=(record.short_side or int(side / record.crop)) if cropped else side,
        interpolation=record.interpolation,
        mean=record.mean,
        std=record.std,
        antialias=record.antialias,
        channels=record.channels,
    )


def differences(ours: Settings, theirs: Settings) -> dict[str, str]:
    """Return by field how two ways to prepare a picture differ, in words."""
    mine, other = asdict(ours), asdict(theirs)
    return {
        name: f"{name} = {_shown(mine[name])}, theirs is {_shown(other[name])}"
        for name in mine
        if not _equal(mine[name], other[name])
    }


def _differs_on_purpose(spec: ModelSpec) -> str:
    """Name what has a system's weights with the library's own preprocessing; "": the spec has that itself."""
    preset = catalog.presets().get(spec.name)
    if preset is None or (preset.source, preset.preprocess) != (spec.source, spec.preprocess):
        return ""
    if catalog.profile_of(spec.name) in LIBRARY_PROFILES:
        return ""
    twins = [other for other in catalog.presets().values() if other.source == spec.source]
    plain = [twin for twin in twins if catalog.profile_of(twin.name) in LIBRARY_PROFILES]
    if any(twin.preprocess == spec.preprocess for twin in plain):
        return ""
    return plain[0].name if plain else f"NAME={spec.source}"


def _compared(manifest: Manifest, spec: ModelSpec) -> str:
    """Return the output that the library has too: behind a projection of ours it has nothing."""
    if not spec.projection:
        return EMBEDDING
    if spec.layer not in manifest.outputs:
        raise ConfigError(
            f"{spec.name}: {LIBRARIES[spec.kind]} has no projection = {spec.projection}, and the bundle no "
            f"output {spec.layer!r} to compare instead: verify NAME={spec.source}"
        )
    return spec.layer


class _Comparison:
    """A bundle and its library, asked the same."""

    def __init__(self, ours: Offline, upstream: Upstream, spec: ModelSpec, output: str) -> None:
        self._ours, self._upstream, self._spec, self._output = ours, upstream, spec, output

    def images(self, images: Sequence[Sample]) -> tuple[Finding, dict[str, str]]:
        """Compare the image tower; return what was found, and the images that could not be read."""
        done = self._ours.embed_images([image.data for image in images], (self._output,))
        skipped = {images[i].name: why for i, why in done.failed.items()}
        files = [images[i].data for i in done.rows]
        if len(files) < _LEAST:
            words = "".join(f"; {name}: {why}" for name, why in skipped.items())
            raise ConfigError(f"{len(files)} images can be read, at least {_LEAST} are needed{words}")
        try:
            theirs = self._upstream.embed_images(files)
        except OSError as exc:
            raise ConfigError(f"Pillow cannot open an image that pixvec can: {exc}") from exc
        record, limits = self._judge("image", done.values[self._output], theirs)
        why = () if record.passed else tuple(self._why_images(files, theirs))
        return Finding("image", record, limits, why), skipped

    def texts(self, texts: Sequence[str]) -> Finding:
        """Compare the text tower."""
        if len(texts) < _LEAST:
            raise ConfigError(f"--texts: {len(texts)} lines, at least {_LEAST} are needed")
        tokens = self._upstream.tokens(texts)
        self._check_context(tokens)
        theirs = self._upstream.embed_tokens(tokens)
        mine = self._ours.embed_texts(texts, (EMBEDDING,))[EMBEDDING]
        record, limits = self._judge("text", mine, theirs)
        why = () if record.passed else tuple(self._why_texts(texts, tokens))
        return Finding("text", record, limits, why)

    def _check_context(self, tokens: Tokens) -> None:
        text, library = self._ours.manifest.text, self._upstream.library
        assert text is not None
        ours, theirs = text.tokenizer.context, tokens.shape[1]
        if ours != theirs:
            raise ConfigError(f"{self._spec.name}: tokenizer.context = {ours}, {library}'s is {theirs}")

    def _judge(self, tower: str, mine: F32, theirs: F32) -> tuple[Verification, Limits]:
        spec, library = self._spec, self._upstream.library
        if mine.shape != theirs.shape:
            raise ConfigError(
                f"{spec.name}: {self._output} has {mine.shape[1]} numbers, {library}'s vector "
                f"{theirs.shape[1]}: layer = {spec.layer} is another one there"
            )
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
            raise BundleError(f"{spec.name}: {tower} vectors hold NaN or infinity: nothing can be compared")
        each, error = cosines(mine, theirs), relative_error(mine, theirs)
        if not np.isfinite(error):
            raise ConfigError(f"{library} gives every {tower} the same vector: give different ones")
        found = {
            "cosine_min": min(float(each.min()), 1.0),
            "cosine_mean": min(float(each.mean()), 1.0),
            "relative_error": error,
            "overlap_at_10": overlap(mine, theirs),
            "same_nearest": same_nearest(mine, theirs),
        }
        limits = UNTRAINED[tower] if spec.weights == "none" else TRAINED
        record = Verification(
            against=library,
            count=len(mine),
            passed=limits.kept(found),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            build=self._ours.build(self._output),
            **found,
        )
        return record, limits

    def _why_images(self, files: Sequence[bytes], theirs: F32) -> Iterator[str]:
        """Say what may be wrong: what the two say of their preprocessing, and what the pixels show."""
        manifest, upstream = self._ours.manifest, self._upstream
        differ = differences(settings_of(manifest.preprocess), upstream.settings)
        yield from differ.values()
        if manifest.precision != "fp32":
            yield f"precision = {manifest.precision}: the limits are those of a bundle in fp32"
        if "size" in differ:
            return
        few = files[:_LOOKED_INTO]
        given = np.clip(np.rint([upstream.pixels(data) for data in few]), 0, 255).astype(np.uint8)
        own = np.stack([self._ours.pixels(data) for data in few])
        apart = float(np.abs(own.astype(float) - given).mean())
        if apart > _APART:
            yield f"the crop, the resize or the decoding: pixels are {apart:.1f} grey levels off on average"
        if not differ.keys() & {"channels", "mean", "std"}:
            yield from self._why_network(given, theirs[:_LOOKED_INTO])

    def _why_network(self, given: U8, wanted: F32) -> Iterator[str]:
        """Say what may be wrong behind the pixels: `given` are the library's own, (n, height, width, 3)."""
        error = self._error(given, wanted)
        if error <= _ROUNDING:
            return
        if self._error(np.ascontiguousarray(given[..., ::-1]), wanted) * _CLEARLY < error:
            yield "the order of the channels: with red and blue exchanged the vectors agree"
            return
        yield (
            f"the network: given the same pixels the error is {error:.1e}: its weights, the graph's mean or "
            f"std, layer = {self._spec.layer}, or pool = {self._spec.pool}"
        )

    def _error(self, pixels: U8, wanted: F32) -> float:
        return relative_error(self._ours.run("image", pixels, (self._output,))[self._output], wanted)

    def _why_texts(self, texts: Sequence[str], wanted: Tokens) -> Iterator[str]:
        """Say what may be wrong: change one field of the tokenizer after another, while that mends tokens."""
        text, library = self._ours.manifest.text, self._upstream.library
        assert text is not None
        record, data = text.tokenizer, self._ours.bundle.read(text.tokenizer.file)

        def wrong(tried: TokenizerRecord) -> int:
            tokenizer = TextTokenizer(data, tried)
            return int((np.stack([tokenizer.encode(text).ids for text in texts]) != wanted).sum())

        left = wrong(record)
        if not left:
            yield f"the text network or its weights: the tokens are {library}'s"
        while left:
            found = [(wrong(record.model_copy(update=c)), c) for c in _changes(record, wanted)]
            least, change = min(found, key=itemgetter(0), default=(left, {}))
            if least >= left:
                yield f"the tokenizer: {left} of {wanted.size} tokens are not {library}'s"
                return
            [(name, value)] = change.items()
            yield f"tokenizer.{name} = {getattr(record, name)!r}: with {value!r} more tokens are {library}'s"
            record, left = record.model_copy(update=change), least


def _changes(record: TokenizerRecord, wanted: Tokens) -> Iterator[dict[str, Any]]:
    """Yield what one field of a tokenizer's record might be instead, judging by the library's tokens."""
    yield from ({"clean": clean} for clean in _CLEANERS if clean != record.clean)
    pad = Counter(wanted[:, -1].tolist()).most_common(1)[0][0]
    shortest = max(wanted, key=lambda ids: int((ids == pad).sum()))
    words = np.flatnonzero(shortest != pad)
    ends = {"begin": int(wanted[0, 0]), "end": int(shortest[words[-1]]) if len(words) else pad}
    fixed = {"pad": pad} | (ends if record.begin is not None else {})
    yield from ({name: value} for name, value in fixed.items() if value != getattr(record, name))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(abs(a - b) <= _SAME for a, b in zip(one, other, strict=True))
    return one == other


def _shown(value: object) -> str:
    return f"[{', '.join(f'{part:.6g}' for part in value)}]" if isinstance(value, tuple) else str(value)
