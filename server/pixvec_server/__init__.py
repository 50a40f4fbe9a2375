"""pixvec's server: images in, vectors out, over gRPC."""

from importlib.metadata import version

__version__ = version("pixvec")
