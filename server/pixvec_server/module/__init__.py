"""From a spec to torch: the network with its weights, wrapped so that every backend sees one contract.

`weights` reads checkpoints; `sources` builds networks, each library's in a module of its own (`timm_source`,
`open_clip_source`, `transformers_source`); `towers` gives them one face; `image` and `text` are the modules
that the exporter turns into graphs and the torch backend runs.
"""

from pixvec_server.module.image import ImageModule
from pixvec_server.module.sources import Built, build
from pixvec_server.module.text import TextModule

__all__ = ["Built", "ImageModule", "TextModule", "build"]
