"""The `pixvec` and `pixvec-server` commands, as a person types them, against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import photos
from support.servers import ROOT, environment

if TYPE_CHECKING:
    from support.servers import Server

BIN = Path(sys.executable).parent


def _run(command: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / command, *words],
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (place / name).write_bytes(photos.data(name))
    return place


def test_embed_writes_vectors_and_where_they_come_from(server: Server, folder: Path) -> None:
    out = folder / "out.npy"
    done = _run("pixvec", "embed", folder, "-o", out, PIXVEC_TARGET=server.target)
    assert done.returncode == 0, done.stderr
    vectors = np.load(out)
    assert vectors.shape == (3, 1280)
    beside = json.loads(out.with_suffix(".json").read_text())
    assert [Path(item["path"]).name for item in beside["items"]] == [
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
    ]
    assert beside["origin"]["space"].startswith("s1-")


def test_embed_goes_on_after_a_bad_image_and_exits_with_3(server: Server, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image")
    out = folder / "out.npz"
    done = _run("pixvec", "embed", folder, "-o", out, "--target", server.target)
    assert done.returncode == 3
    assert "broken.jpg" in done.stdout + done.stderr
    assert np.load(out)["vectors"].shape == (3, 1280)


def test_similarity_models_and_health(server: Server, folder: Path) -> None:
    target = ("--target", server.target)
    paths = [folder / name for name in ("chelsea.png", "coffee.png")]
    done = _run("pixvec", "similarity", *paths, "--json", *target)
    assert done.returncode == 0, done.stderr
    assert "1.0" in done.stdout
    [model] = json.loads(_run("pixvec", "models", "--json", *target).stdout)
    assert model["name"] == "efficientnet_lite0"
    assert _run("pixvec", "health", *target).returncode == 0


def test_without_a_server_it_says_how_to_start_one() -> None:
    done = _run("pixvec", "models", "--target", "127.0.0.1:9")
    assert done.returncode == 1
    assert "pixvec-server serve" in done.stderr
    assert "Traceback" not in done.stderr
    assert _run("pixvec", "health", "--target", "127.0.0.1:9").returncode == 1


def test_the_servers_catalogue_and_configuration() -> None:
    [row] = json.loads(_run("pixvec-server", "models", "EfficientNet-lite0", "--json").stdout)
    assert (row["name"], row["parameters"], row["input"]) == ("efficientnet_lite0", 4_652_008, "224x224")
    assert (row["dim"], row["cached"]) == (1280, True)
    assert len(json.loads(_run("pixvec-server", "models", "--json").stdout)) > 100
    assert "efficientnet_lite0" in _run("pixvec-server", "models").stdout
    shown = json.loads(_run("pixvec-server", "config", "--format", "json", PIXVEC_SERVER__PORT="7").stdout)
    assert shown["server"]["port"] == 7
    assert "| `batch.max_delay_ms` |" in _run("pixvec-server", "config").stdout


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_exported_bundle_is_served_without_torch_in_the_process(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = _run("pixvec-server", "export", "efficientnet_lite0", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "cosine" in done.stdout
    program = (
        "import sys, pathlib; from pixvec_server import bundle; from pixvec_server.backends.select import *;"
        f"made = bundle.load(pathlib.Path({str(out)!r})); print(made.manifest.name, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["efficientnet_lite0", "False"]
    again = _run("pixvec-server", "export", "efficientnet_lite0", "-o", out)
    assert again.returncode == 0
    (out / "image.onnx").write_bytes(b"altered")
    served = _run(
        "pixvec-server", "serve", "--model", f"efficientnet_lite0={out}", "--port", "0", "--metrics-port", "0"
    )
    assert served.returncode == 1
    assert "image.onnx is not the file" in served.stderr
