"""How near each mode is to the upstream library's own vectors, over a few hundred real pictures.

The pictures are seeded windows of the installed packages' photographs, 400 to 1,200 pixels high, as JPEG.
kNN accuracy is blind to what search users see, so the share of the 10 nearest neighbours, and of the nearest,
that survive stand beside the cosines.

    PYTHONPATH=tests python -m bench.fidelity [--pictures 320]
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import numpy as np
from support import fidelity, photos, reference
from support.servers import CACHE

from pixvec._downscale import downscale
from pixvec.v1 import embedding_pb2 as pb
from pixvec_server import provision
from pixvec_server.backends.base import BackendOptions
from pixvec_server.backends.select import choose, computes_bf16, factory
from pixvec_server.cpu import available_cpus, processor
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.types import F32, U8, WHOLE

if TYPE_CHECKING:
    from pixvec_server.bundle import Bundle

Mode = Literal["exact", "fast"]
MODES: tuple[tuple[str, str, Mode], ...] = (
    ("openvino", "fp32", "exact"),
    ("onnx", "fp32", "exact"),
    ("torch", "fp32", "exact"),
    ("openvino", "fp32", "fast"),
    ("openvino", "bf16", "exact"),
    ("torch", "bf16", "exact"),
)
# What a client may make of its images before it sends them; the smallest is what the model's input allows.
SIDES, INPUT = (1024, 768, 512, 1), (224, 224)


def pictures(count: int) -> list[bytes]:
    """Return seeded windows of real photographs, as JPEG."""
    rng = np.random.default_rng(11)
    made = []
    for i in range(count):
        picture = photos.image(photos.NAMES[i % len(photos.NAMES)])
        share = rng.uniform(0.4, 1.0)
        width, height = int(picture.width * share), int(picture.height * share)
        left = int(rng.integers(0, picture.width - width + 1))
        top = int(rng.integers(0, picture.height - height + 1))
        window = picture.crop((left, top, left + width, top + height))
        tall = int(rng.integers(400, 1200))
        made.append(photos.encode(window.resize((max(1, width * tall // height), tall)), "JPEG", quality=90))
    return made


def run(bundle: Bundle, files: list[bytes], backend: str, precision: str, decode: Mode) -> F32:
    """Return the embeddings of one mode: (n, 1280) float32."""
    spec = spec_of(bundle.manifest.preprocess)
    decoder = Decoder(ImageLimits(), DecodeOptions(mode=decode), PixelBudget(400_000_000))

    def read(file: bytes) -> U8:
        with ExitStack() as held:
            return fit(decoder.decode(file, held, spec.short_side), WHOLE, spec)

    placement = choose(backend, "cpu", precision)
    engine = factory(placement.kind)(bundle, placement, BackendOptions(available_cpus(), 1))
    batches = [np.stack([read(file) for file in files[i : i + 8]]) for i in range(0, len(files), 8)]
    return np.concatenate([engine.run("image", batch, ("embedding",))["embedding"] for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=320)
    files = pictures(parser.parse_args().pictures)
    bundle = provision.obtain(provision.parse("efficientnet_lite0"), CACHE)
    started = time.perf_counter()
    expected = reference.embed(files)
    print(f"{len(files)} pictures against timm in fp32, which took {time.perf_counter() - started:.0f} s")
    for backend, precision, decode in MODES:
        if precision == "bf16" and not computes_bf16():
            print(f"{backend:9} {precision} {decode:5}  left out: {processor()}")
            continue
        result = fidelity.agreement(expected, run(bundle, files, backend, precision, decode))
        print(f"{backend:9} {precision} {decode:5}  {result}", flush=True)
    for side in SIDES:
        smaller = [downscale(pb.Input(image=file), side, INPUT).image for file in files]
        result = fidelity.agreement(expected, run(bundle, smaller, "openvino", "fp32", "exact"))
        share = sum(map(len, smaller)) / sum(map(len, files))
        print(f"max_side {side:4}, {share:4.0%} of the bytes  {result}", flush=True)


if __name__ == "__main__":
    main()
