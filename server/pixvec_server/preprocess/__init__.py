"""From an image file's bytes to the network's uint8 input.

`formats` tells what the bytes are, `limits` refuses before anything is decoded, `decode` makes one RGB
image, `fit` crops and resizes it once for a region and a network.
"""

from pixvec_server.preprocess.budget import PixelBudget
from pixvec_server.preprocess.decode import Decoded, DecodeOptions, Decoder
from pixvec_server.preprocess.fit import RESIZE_KERNEL, EmptyRegionError, PreprocessSpec, fit, spec_of
from pixvec_server.preprocess.limits import ImageLimits

__all__ = [
    "RESIZE_KERNEL",
    "DecodeOptions",
    "Decoded",
    "Decoder",
    "EmptyRegionError",
    "ImageLimits",
    "PixelBudget",
    "PreprocessSpec",
    "fit",
    "spec_of",
]
