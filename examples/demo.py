"""From photographs to vectors: a real server, real batches, and what looks alike. Run by `make demo`."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import pixvec

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path("build/demo")
PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "china.jpg",
    "flower.jpg",
)
CALLERS = 32
CALLS = 256
say = Console(soft_wrap=True)


def main() -> None:
    photos = sample_photographs()
    say.print(f"[bold]1[/] {len(photos)} photographs in {FOLDER}/photos, as JPEG")
    with server() as (target, metrics), pixvec.Client(target) as client:
        show_model(client.model())
        vectors = embed(client, photos)
        call_at_once(client, photos, metrics)
        show_similarity(client, photos)
    np.save(FOLDER / "vectors.npy", vectors)
    say.print(f"[bold]6[/] vectors saved: {FOLDER}/vectors.npy; the server has drained and stopped")


def sample_photographs() -> list[Path]:
    """Write the sample photographs of scikit-image and scikit-learn as JPEG files."""
    sources = (package_folder("skimage") / "data", package_folder("sklearn") / "datasets/images")
    folder = FOLDER / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PHOTOS:
        source = next(base / name for base in sources if (base / name).is_file())
        path = folder / Path(name).with_suffix(".jpg")
        with Image.open(source) as picture:
            picture.convert("RGB").save(path, quality=92)
        written.append(path)
    return written


def package_folder(name: str) -> Path:
    """Return where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install '.[demo]'")
    return Path(spec.origin).parent


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """Run a server on two free ports; yield its address and its metrics port."""
    port, metrics = free_port(), free_port()
    say.print("[bold]2[/] starting pixvec-server (the first time it also makes its model's bundle)")
    started = time.monotonic()
    log = FOLDER / "server.log"
    command = [sys.executable, "-m", "pixvec_server", "serve", "--host", "127.0.0.1"]
    ports = ["--port", str(port), "--metrics-port", str(metrics)]
    with log.open("w") as sink:
        # No load balancer watches this server: it need not wait for one to notice that it stops.
        env = os.environ | {"PIXVEC_SERVER__LAME_DUCK_S": "0"}
        process = subprocess.Popen([*command, *ports], stdout=sink, stderr=sink, env=env)
    try:
        wait_until_serving(f"127.0.0.1:{port}", process, log)
        say.print(f"  serving on 127.0.0.1:{port} after {time.monotonic() - started:.1f} s")
        yield f"127.0.0.1:{port}", metrics
        process.send_signal(signal.SIGTERM)
        if code := process.wait(60):
            raise SystemExit(f"the server ended with {code}; see {log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_serving(target: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with pixvec.Client(target) as client:
        while not client.health():
            if process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def show_model(model: pixvec.ModelInfo) -> None:
    say.print(f"  {model.name} on {model.backend} {model.precision}, {model.device}: {model.selection}")


def embed(client: pixvec.Client, photos: list[Path]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    started = time.monotonic()
    vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = client.embed_batch(photos)
    seconds = time.monotonic() - started
    say.print(
        f"[bold]3[/] embed_batch: {len(photos)} photographs -> shape {vectors.shape}, {vectors.dtype}, "
        f"{seconds * 1000:.0f} ms"
    )
    timing = client.embed_full(photos[0]).timing
    parts = {"decode": timing.decode_ns, "queue": timing.queue_ns, "compute": timing.compute_ns}
    words = ", ".join(f"{part} {ns / 1e6:.1f} ms" for part, ns in parts.items())
    say.print(f"  one photograph alone: {words}, in all {timing.total_ns / 1e6:.1f} ms at the server")
    return vectors


def call_at_once(client: pixvec.Client, photos: list[Path], metrics: int) -> None:
    data = [path.read_bytes() for path in photos]
    before = batches(metrics)
    started = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(client.embed, [data[i % len(data)] for i in range(CALLS)]))
    seconds = time.monotonic() - started
    after = batches(metrics)
    items, count = after[0] - before[0], after[1] - before[1]
    say.print(
        f"[bold]4[/] {CALLERS} callers at once, one photograph a call: {CALLS / seconds:.0f} images/s in "
        f"{count:.0f} batches, {items / count:.1f} images a batch on average"
    )


def batches(port: int) -> tuple[float, float]:
    """Return the items and the number of all batches so far, as Prometheus sees them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = dict(re.findall(r"^pixvec_batch_size_(sum|count)\{.*?\} (\S+)$", text, re.MULTILINE))
    return float(found.get("sum", 0)), float(found.get("count", 0))


def show_similarity(client: pixvec.Client, photos: list[Path]) -> None:
    names = [path.stem for path in photos]
    scores = client.similarity(photos, photos)
    best = max(combinations(range(len(photos)), 2), key=lambda pair: scores[pair])
    table = Table("", *(str(i + 1) for i in range(len(names))))
    for i, name in enumerate(names):
        cells = []
        for j, score in enumerate(scores[i]):
            mark = "bold green" if tuple(sorted((i, j))) == best else "dim" if i == j else ""
            cells.append(f"[{mark}]{score:.2f}[/]" if mark else f"{score:.2f}")
        table.add_row(f"{i + 1} {name}", *cells)
    say.print("[bold]5[/] how alike they are:")
    say.print(table)
    pair = " and ".join(f"[bold green]{names[i]}[/]" for i in best)
    say.print(f"  most alike: {pair}, {scores[best]:.3f}")


if __name__ == "__main__":
    main()
