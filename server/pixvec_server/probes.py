"""Seeded pictures and sentences that models are checked with: no files, the same on every machine."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pixvec_server.types import U8

_SEED = 20_251
_THINGS = (
    "cat",
    "motorcycle",
    "cup of coffee",
    "rocket on its pad",
    "brick wall",
    "retina",
    "page of a book",
)
_WAYS = (
    "a photo of a {}",
    "a blurry black and white picture of a {}, seen from above",
    "{}!",
    "TWO {}S & A 2nd {}",
)
# Where tokenizers differ: accents, other scripts, digits, quotes, broken encodings, HTML, nothing at all.
_ODD = (
    "",
    "naïve café — “quoted” and l'été",
    "東京タワー 🗼 at night",
    "it's 12,345.67 & we'll see",
    "doesnâ€™t &amp;lt;b&amp;gt; matter",
    " ".join(["very"] * 120 + ["long"]),
)


def pictures(height: int, width: int, count: int) -> U8:
    """Return pictures with the spectrum of photographs (1/f): (count, height, width, 3) uint8."""
    rng = np.random.default_rng(_SEED)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    falloff = 1.0 / np.maximum(frequency, 1.0 / max(height, width))
    noise = rng.normal(size=(count, height, width, 3))
    spectrum = np.fft.fft2(noise, axes=(1, 2)) * falloff[None, :, :, None]
    waves = np.fft.ifft2(spectrum, axes=(1, 2)).real
    # Three channels that share most of their light, as in photographs.
    waves = 0.8 * waves.mean(axis=3, keepdims=True) + 0.4 * waves
    low, high = np.percentile(waves, (1, 99), axis=(1, 2, 3), keepdims=True)
    pixels: U8 = np.clip((waves - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return pixels


def sentences() -> list[str]:
    """Return sentences, some of them awkward."""
    plain = [way.format(thing, thing) for way, thing in itertools.product(_WAYS, _THINGS)]
    return [*plain, *_ODD]
