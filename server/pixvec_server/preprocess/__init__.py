"""From an image file's bytes to the network's uint8 input.

`formats` and `foreign` tell what the bytes are. `containers` reads a file's header with the module of its
format (`jpeg`, `png`, `gif`, `bmp`, `webp`, `avif`, `tiff`), refuses what is over `limits` before anything is
decoded, and opens it. `decode` makes one upright RGB image, with `pixels`, `color` and `orientation`. `fit`
crops it for a region and a network, `resize` does that in one pass.
"""

from pixvec_server.preprocess.budget import PixelBudget
from pixvec_server.preprocess.decode import Decoded, DecodeOptions, Decoder, JpegCodec, turbo
from pixvec_server.preprocess.fit import EmptyRegionError, PreprocessSpec, fit, is_fitted, spec_of
from pixvec_server.preprocess.limits import ImageLimits
from pixvec_server.preprocess.resize import RESIZE_KERNEL

__all__ = [
    "RESIZE_KERNEL",
    "DecodeOptions",
    "Decoded",
    "Decoder",
    "EmptyRegionError",
    "ImageLimits",
    "JpegCodec",
    "PixelBudget",
    "PreprocessSpec",
    "fit",
    "is_fitted",
    "spec_of",
    "turbo",
]
