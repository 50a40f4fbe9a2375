"""The limit to be held against: the same decoder and the same engine in one process, with no RPC.

Decode threads ahead of engine threads, at the best settings of a grid: engines x batches in flight x batch
size x decode threads.

    PYTHONPATH=tests python -m bench.bare [--model efficientnet_lite0] [--precision fp32]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np
from support import photos
from support.servers import CACHE

from pixvec_server import provision
from pixvec_server.backends.base import BackendOptions, example
from pixvec_server.backends.select import choose, factory
from pixvec_server.cpu import available_cpus
from pixvec_server.errors import BackendError
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, fit, spec_of
from pixvec_server.types import U8, WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pixvec_server.backends.base import Backend

MODEL = "efficientnet_lite0"
PICTURES = ("rocket.jpg", "china.jpg", "flower.jpg", "coffee.png", "chelsea.png", "astronaut.png")
_ENGINES = ("openvino", "onnx")
_BATCHES = (1, 4, 8, 16)
_LONE = 24  # images of a lone caller
_SHORT = 96  # images of one point of the grid


def pictures(count: int) -> list[bytes]:
    """Return real photographs as JPEG, of about 640 x 427, in turn."""
    return list(islice(cycle(photos.jpeg(name) for name in PICTURES), count))


@dataclass(frozen=True, slots=True)
class Settings:
    """One point of the grid. Each of `instances` engine threads has its share of the processors."""

    engine: str
    instances: int
    batch: int
    decoders: int

    def __str__(self) -> str:
        return f"{self.engine}, {self.instances} x {self.batch}, {self.decoders} decoding"


class BareLoop:
    """One loaded engine with decode threads ahead of it."""

    def __init__(self, model: str, engine: str, precision: str, instances: int) -> None:
        bundle = provision.obtain(provision.parse(model), CACHE)
        placement = choose(engine, "cpu", precision)
        self._engine: Backend = factory(placement.kind)(
            bundle, placement, BackendOptions(available_cpus(), instances)
        )
        self._instances = instances
        self._example = example(bundle.manifest, "image", max(_BATCHES))
        self._spec = spec_of(bundle.manifest.preprocess)
        self._decoder = Decoder(ImageLimits(), DecodeOptions(), PixelBudget(400_000_000))

    def run(self, images: Sequence[bytes], batch: int, decoders: int) -> float:
        """Return images a second."""
        started = time.perf_counter()
        with ThreadPoolExecutor(decoders) as decoding, ThreadPoolExecutor(self._instances) as running:
            ready = [decoding.submit(self._read, image) for image in images]
            runs: list[Future[object]] = []
            for group in _batched(ready, batch):
                stacked = np.stack([future.result() for future in group])
                runs.append(running.submit(self._engine.run, "image", stacked, ("embedding",)))
            for run in runs:
                run.result()
        return len(images) / (time.perf_counter() - started)

    def lone_ms(self, images: Sequence[bytes]) -> float:
        """Return the median milliseconds of an image that is decoded and run before the next."""
        times = []
        for image in images:
            started = time.perf_counter()
            self._engine.run("image", self._read(image)[None], ("embedding",))
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3

    def decode_s(self, images: Sequence[bytes]) -> float:
        """Return seconds an image that decoding alone takes, on all processors."""
        started = time.perf_counter()
        with ThreadPoolExecutor(available_cpus()) as decoding:
            for _ in decoding.map(self._read, images):
                pass
        return (time.perf_counter() - started) / len(images)

    def inference_s(self, batch: int, count: int) -> float:
        """Return seconds an image that the engine alone takes, on all processors."""
        pixels = np.ascontiguousarray(self._example[:batch])
        started = time.perf_counter()
        with ThreadPoolExecutor(self._instances) as running:
            for _ in running.map(lambda _: self._engine.run("image", pixels, ("embedding",)), range(count)):
                pass
        return (time.perf_counter() - started) / (batch * count)

    def warm_up(self) -> None:
        """Have every batch size of the grid compiled, in every thread."""
        for size in _BATCHES:
            self.inference_s(size, 2 * self._instances)

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()

    def _read(self, image: bytes) -> U8:
        with ExitStack() as held:
            return fit(self._decoder.decode(image, held), WHOLE, self._spec)


@dataclass(slots=True)
class Limit:
    """The tuned loop of one model and precision, still loaded."""

    settings: str
    images_s: float
    lone_ms: float
    decode_s: float
    inference_s: float
    loop: BareLoop
    lone: BareLoop
    best: Settings

    @property
    def parts(self) -> float:
        """Images a second if decoding and inference, each at its own best, took turns on all processors."""
        return 1 / (self.decode_s + self.inference_s)

    def again(self, images: Sequence[bytes]) -> float:
        """Run the tuned loop once more; return images a second."""
        return self.loop.run(images, self.best.batch, self.best.decoders)

    def lone_again(self, images: Sequence[bytes]) -> float:
        """Measure the lone image once more; return its median milliseconds."""
        return self.lone.lone_ms(images)

    def close(self) -> None:
        """Release both engines."""
        self.loop.close()
        self.lone.close()


def tuned(model: str, precision: str, images: Sequence[bytes]) -> Limit:
    """Try the grid on the first images and keep the best loop; the caller closes it."""
    loops = _loops(model, precision)
    rates: dict[Settings, list[float]] = {}
    short, cpus = list(images[:_SHORT]), available_cpus()
    for _, (key, loop) in itertools.product(range(2), loops.items()):
        for batch, decoders in itertools.product(_BATCHES, sorted({1, cpus})):
            settings = Settings(*key, batch, decoders)
            rates.setdefault(settings, []).append(loop.run(short, batch, decoders))
    best = max(rates, key=lambda settings: statistics.mean(rates[settings]))
    lone = min((key for key in loops if key[1] == 1), key=lambda key: loops[key].lone_ms(short[:_LONE]))
    chosen, alone = loops[best.engine, best.instances], loops[lone]
    for loop in loops.values():
        if loop not in (chosen, alone):
            loop.close()
    inference = min(chosen.inference_s(best.batch, 8), alone.inference_s(8, 4))
    return Limit(
        settings=str(best),
        images_s=statistics.mean(rates[best]),
        lone_ms=alone.lone_ms(short[:_LONE]),
        decode_s=chosen.decode_s(short),
        inference_s=inference,
        loop=chosen,
        lone=alone,
        best=best,
    )


def _loops(model: str, precision: str) -> dict[tuple[str, int], BareLoop]:
    loops = {}
    several = (1, available_cpus(), 2 * available_cpus())
    for engine, instances in itertools.product(_ENGINES, sorted({*several})):
        try:
            loop = BareLoop(model, engine, precision, instances)
        except BackendError:
            continue  # onnxruntime has no bf16 on a CPU
        loop.warm_up()
        loops[engine, instances] = loop
    return loops


def _batched(futures: Iterable[Future[U8]], size: int) -> Iterable[tuple[Future[U8], ...]]:
    iterator = iter(futures)
    return iter(lambda: tuple(islice(iterator, size)), ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    images = pictures(256)
    with closing(tuned(arguments.model, arguments.precision, images)) as limit:
        print(f"{arguments.model}, {arguments.precision}, best: {limit.settings}")
        print(f"grid {limit.images_s:.1f}/s, again {limit.again(images):.1f}/s, parts {limit.parts:.1f}/s")
        print(f"decoding {limit.decode_s * 1e3:.2f} ms an image, inference {limit.inference_s * 1e3:.2f} ms")
        print(f"a lone image {limit.lone_ms:.1f} ms")


if __name__ == "__main__":
    main()
