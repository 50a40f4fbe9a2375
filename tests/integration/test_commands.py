"""The `pixvec` and `pixvec-server` commands, as a person types them, against a real server."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import photos
from support.servers import ROOT, environment

from pixvec import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.servers import Server

BIN = Path(sys.executable).parent


def _run(command: str, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / command, *words],
        capture_output=True,
        text=True,
        env=environment(**env),
        timeout=240,
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


@pytest.fixture
def archive(folder: Path) -> Path:
    """The photographs, with a bad image in the middle."""
    (folder / "broken.jpg").write_bytes(b"no image")
    with tarfile.open(folder / "photos.tar.gz", "w:gz") as tar:
        for name in ("chelsea.png", "broken.jpg", "coffee.png", "rocket.jpg"):
            tar.add(folder / name, name)
    return folder / "photos.tar.gz"


def test_an_archive_becomes_rows_that_any_tool_reads(
    tiny_server: Server, folder: Path, archive: Path
) -> None:
    with Client(tiny_server.target) as client:
        images = [str(folder / name) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
        expected = client.embed_batch(images)
    for suffix in (".parquet", ".csv", ".jsonl"):
        out = folder / f"out{suffix}"
        done = _run("pixvec", "embed", archive, "-o", out, "--target", tiny_server.target)
        assert done.returncode == 3, done.stderr
        assert f"error: {archive}!broken.jpg: " in done.stderr
    table = pq.read_table(folder / "out.parquet").to_pylist()
    rows = list(csv.DictReader((folder / "out.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    columns = [column for column in rows[0] if column[0] == "v" and column[1:].isdigit()]
    for index, vector in zip((0, 2, 3), expected, strict=True):
        np.testing.assert_array_equal(np.float32(table[index]["vector"]), vector)
        np.testing.assert_array_equal(np.array([rows[index][name] for name in columns], np.float32), vector)
        np.testing.assert_array_equal(np.float32(lines[index]["vector"]), vector)
    assert table[1]["reason"] == rows[1]["reason"] == lines[1]["reason"] == "UNDECODABLE"
    assert (table[0]["width"], table[0]["height"], table[0]["format"]) == (451, 300, "png")
    assert table[0]["space"] == rows[0]["space"] == lines[0]["origin"]["space"]


@contextmanager
def _embedding_a_list(server: Server, image: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Feed a list to `pixvec embed -` line by line until a first vector is being written."""
    words = ("embed", "-", "-o", out, "--target", server.target, "--batch-size", "1", "--in-flight", "1")
    # A shell's background jobs, such as these tests may be, ignore Ctrl-C and hand that on.
    heeds = ("env", "--default-signal=INT")
    with subprocess.Popen(
        [*heeds, BIN / "pixvec", *words],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stdin is not None
            until = time.monotonic() + 20
            while not list(out.parent.glob("*.tmp")):
                assert time.monotonic() < until
                assert process.poll() is None
                process.stdin.write(f"{image}\n")
                process.stdin.flush()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def test_the_list_on_stdin_is_embedded_while_it_is_written(
    tiny_server: Server, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with _embedding_a_list(tiny_server, folder / "rocket.jpg", out) as process:
        assert not out.exists()
        _, said = process.communicate(f"{folder / 'coffee.png'}\n", timeout=20)
        assert process.returncode == 0, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows[-2:]] == ["rocket.jpg", "coffee.png"]


def test_ctrl_c_leaves_no_file_and_exits_with_130(tiny_server: Server, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    with _embedding_a_list(tiny_server, folder / "rocket.jpg", out) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"{out} is not written" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_the_commands_page_shows_works(
    tiny_server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "1.tar", "w") as tar:
        tar.add(folder / "coffee.png", "cats/7.png")
    shell = page.partition("```sh\n")[2].partition("```")[0]
    settings = {"PIXVEC_TARGET": tiny_server.target, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", shell], cwd=tmp_path, env=environment(**settings), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], made)
    count, size = made["vectors"].shape
    assert count == len(made["paths"]) == 3
    assert made["matrix"].shape == (1, size)
    assert made["space"].startswith("s1-")
    with (tmp_path / "vectors.csv").open() as file:
        columns = next(csv.reader(file))
    assert [name for name in columns if f"`{name}`" not in page] == [f"v{i}" for i in range(1, size)]


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
@pytest.mark.timeout(300)
def test_an_exported_bundle_is_served_without_torch_in_the_process(tmp_path: Path) -> None:
    source, out = "tiny=timm:test_resnet.r160_in1k?weights=none", tmp_path / "bundle"
    done = _run("pixvec-server", "export", source, "-o", out)
    assert done.returncode == 0, done.stderr
    assert "cosine" in done.stdout
    program = (
        "import sys, pathlib; from pixvec_server import bundle; from pixvec_server.backends.select import *;"
        f"made = bundle.load(pathlib.Path({str(out)!r})); print(made.manifest.name, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["tiny", "False"]
    again = _run("pixvec-server", "export", source, "-o", out)
    assert again.returncode == 0
    (out / "image.onnx").write_bytes(b"altered")
    served = _run("pixvec-server", "serve", "--model", f"tiny={out}", "--port", "0", "--metrics-port", "0")
    assert served.returncode == 1
    assert "image.onnx is not the file" in served.stderr
