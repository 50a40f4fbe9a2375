"""Write timm's embeddings of the probe pictures, which exports of EfficientNet-Lite are checked against.

    PYTHONPATH=tests python -m bench.lite_reference

Run it after a change of the probe pictures or of a preset; needs torch.
"""

from __future__ import annotations

import numpy as np

from pixvec_server import catalog
from pixvec_server.lite_export import REFERENCES
from pixvec_server.models.outputs import output_record
from pixvec_server.module import build
from pixvec_server.probes import pictures
from pixvec_server.spec import EMBEDDING
from pixvec_server.torch_export import run_torch

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
COUNT = 4


def main() -> None:
    references = {}
    for name in NAMES:
        built = build(catalog.find(name))
        preprocess = built.spec.preprocess
        assert preprocess is not None
        vectors = run_torch(built.image, pictures(preprocess.height, preprocess.width, COUNT))[EMBEDDING]
        space = output_record(built.spec, built.weights_sha256, EMBEDDING, vectors).space
        references[space] = vectors.astype(np.float16)
        print(f"{name}: {space}, {vectors.shape}")
    np.savez_compressed(REFERENCES, allow_pickle=False, **references)


if __name__ == "__main__":
    main()
