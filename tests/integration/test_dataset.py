"""Datasets against a real server: what is computed is exactly what is new, whatever happened in between."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.servers import ROOT, Server, environment, serve

import pixvec
from pixvec import dataset
from pixvec.dataset import _embed

pytestmark = pytest.mark.timeout(120)
SIDE = 24


def picture(seed: int) -> bytes:
    """A PNG of its own."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def fill(folder: Path, count: int, classes: int = 4) -> list[Path]:
    """Write pictures in class folders."""
    files = [folder / f"class{i % classes}" / f"{i:05}.png" for i in range(count)]
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i))
    return files


class Marked:
    """A folder's pictures with objects that the test sets."""

    kind = "marked"
    colours: Mapping[str, str] = {"cat": "#ff0000"}
    total = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: dict[str, tuple[dataset.Annotation, ...]] = {}

    def pictures(self) -> Iterator[dataset.Picture]:
        for one in dataset.open_source(self.folder).pictures():
            yield dataset.Picture(
                one.id, one.uri, one.stamp, one.read, one.label, self.objects.get(one.id, ())
            )


def mark(name: str, box: tuple[int, int, int, int], label: str = "cat") -> dataset.Annotation:
    """An object whose shape is its box."""
    return dataset.Annotation(name, label, box, float((box[2] - box[0]) * (box[3] - box[1])))


class Counted:
    """Runs over a dataset; says what the server computed meanwhile."""

    def __init__(self, server: Server, out: Path) -> None:
        self.server, self.out = server, out
        self.client = pixvec.Client(server.target)

    def __call__(self, source: Any, **settings: Any) -> tuple[dataset.Counts, int]:
        before = self._items()
        counts = dataset.embed(source, self.out, self.client, dataset.EmbedSettings(**settings))
        return counts, self._items() - before

    def _items(self) -> int:
        return int(self.server.metric("pixvec_items_total", outcome="ok"))


@pytest.fixture
def run(tiny_server: Server, tmp_path: Path) -> Iterator[Counted]:
    counted = Counted(tiny_server, tmp_path / "out")
    with counted.client:
        yield counted


@pytest.mark.slow
def test_of_a_thousand_images_what_changed_is_computed_and_nothing_else(run: Counted, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    files = fill(folder, 1000)
    counts, items = run(folder)
    assert (counts, items) == (dataset.Counts(1000, 1000, 0, 0, 0, 0), 1000)
    written = (run.out / "embeddings.parquet").stat().st_mtime_ns
    counts, items = run(folder)
    assert (counts, items) == (dataset.Counts(1000, 0, 1000, 0, 0, 0), 0)
    assert (run.out / "embeddings.parquet").stat().st_mtime_ns == written
    for i in (3, 500, 999):
        files[i].write_bytes(picture(5000 + i))
    for i in (0, 700):
        files[i].unlink()
    for i in range(5):
        (folder / "class1" / f"new{i}.png").write_bytes(picture(9000 + i))
    counts, items = run(folder)
    assert (counts, items) == (dataset.Counts(1003, 8, 995, 2, 0, 0), 8)
    found = dataset.read(run.out)
    expected = run.client.embed_batch([Path(row.uri) for row in found.rows[:40]])
    np.testing.assert_allclose(found.vectors[:40], expected, atol=1e-5)
    assert [row.id for row in found.rows] == sorted(row.id for row in found.rows)
    assert found.labels == [row.id.split("/")[0] for row in found.rows]


def test_objects_are_computed_anew_when_their_crop_is_another_one(run: Counted, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 4, classes=1)
    source = Marked(tmp_path / "photos")
    source.objects = {
        "class0/00000.png": (
            mark("a", (2, 2, 10, 10)),
            mark("b", (4, 4, 20, 20)),
            mark("tiny", (0, 0, 2, 4)),
        ),
        "class0/00001.png": (mark("a", (2, 2, 10, 10)),),
    }
    assert run(source, instances="objects") == (dataset.Counts(5, 3, 0, 0, 0, 1), 3)
    assert run(source, instances="objects") == (dataset.Counts(5, 0, 3, 0, 0, 1), 0)
    found = dataset.read(run.out)
    assert [(row.id[-9:], row.object, row.label) for row in found.rows] == [
        ("00000.png", "a", "cat"),
        ("00000.png", "b", "cat"),
        ("00001.png", "a", "cat"),
    ]
    box = pixvec.Region(2, 2, 10, 10)
    expected = run.client.embed_full(found.rows[0].uri, regions=[box]).vector
    np.testing.assert_allclose(found.vectors[0], expected, atol=1e-5)
    assert run(source, instances="both") == (dataset.Counts(7, 4, 3, 0, 0, 1), 4)
    assert run(source, instances="both", expand_px=2) == (dataset.Counts(7, 3, 4, 0, 0, 1), 3)
    source.objects["class0/00001.png"] = (mark("a", (2, 2, 10, 10), label="dog"),)
    assert run(source, instances="both", expand_px=2)[1] == 0
    assert dataset.read(run.out).labels.count("dog") == 1
    source.objects["class0/00001.png"] = (mark("a", (2, 2, 11, 10), label="dog"),)
    assert run(source, instances="both", expand_px=2)[1] == 1
    assert run(source) == (dataset.Counts(4, 0, 4, 3, 0, 0), 0)


def test_a_bad_image_is_told_and_tried_again_when_it_is_mended(run: Counted, tmp_path: Path) -> None:
    files = fill(tmp_path / "photos", 6)
    files[2].write_bytes(files[2].read_bytes()[:200])
    files[4].write_bytes(b"no image")
    counts, _ = run(tmp_path / "photos")
    assert (counts.embedded, counts.failed) == (4, 2)
    found = dataset.read(run.out)
    assert {row.reason for row in found.failed} == {"UNDECODABLE"}
    assert all(row.error for row in found.failed)
    assert found.vectors.shape[0] == 4
    assert np.isfinite(found.vectors).all()
    assert run(tmp_path / "photos") == (dataset.Counts(6, 0, 6, 0, 2, 0), 0)
    files[2].write_bytes(picture(2))
    counts, items = run(tmp_path / "photos")
    assert (counts.embedded, counts.failed, items) == (1, 1, 1)


def test_touched_files_are_computed_again_unless_content_is_what_counts(run: Counted, tmp_path: Path) -> None:
    files = fill(tmp_path / "photos", 3)
    strict = dataset.SourceOptions(strict=True)
    run(dataset.open_source(tmp_path / "photos", strict))
    os.utime(files[0], ns=(1, 1))
    assert run(dataset.open_source(tmp_path / "photos", strict))[1] == 0
    assert run(tmp_path / "photos")[1] == 3
    os.utime(files[0], ns=(2, 2))
    assert run(tmp_path / "photos")[1] == 1


def test_another_build_is_mixed_only_when_that_is_said(
    run: Counted, tmp_path: Path, tiny_bundle: Path
) -> None:
    files = fill(tmp_path / "photos", 3)
    run(tmp_path / "photos")
    files[0].write_bytes(picture(99))
    with serve("--model", f"tiny={tiny_bundle}", "--decode", "fast") as other:
        drifted = Counted(other, run.out)
        with drifted.client, pytest.raises(pixvec.InputError, match="--allow-build-drift"):
            drifted(tmp_path / "photos")
    with serve("--model", f"tiny={tiny_bundle}", "--decode", "fast") as other:
        drifted = Counted(other, run.out)
        with drifted.client:
            assert drifted(tmp_path / "photos", allow_build_drift=True)[1] == 1
            assert len(dataset.read(run.out).about["origin"]["builds"]) == 2
            assert drifted(tmp_path / "photos", force=True)[1] == 3
            assert len(dataset.read(run.out).about["origin"]["builds"]) == 1


def command(*words: str | Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pixvec", "dataset", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_loses_no_more_than_a_part(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    count, out = 2000, tmp_path / "out"
    fill(tmp_path / "photos", count)
    flags = ("--backend", "bench.devices:Fixed")
    env = {"PYTHONPATH": str(ROOT), "FAKE_DEVICE_MS": "2,1"}
    with serve("--model", f"tiny={tiny_bundle}", *flags, env=env) as server:
        first = command("embed", tmp_path / "photos", "--out", out, "--target", server.target)
        deadline = time.monotonic() + 60
        while len(list(out.glob("parts/0*.parquet"))) < 2:
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        first.send_signal(number)
        words = first.communicate(timeout=30)[1]
        assert first.returncode == (130 if number == signal.SIGINT else -number)
        if number == signal.SIGINT:
            assert "goes on from there" in words
        parts = list(out.glob("parts/0*.parquet"))
        kept = len({name for part in parts for name in pq.read_table(part)["id"].to_pylist()})
        assert kept >= 2 * _embed.PART_ROWS
        again = command("embed", tmp_path / "photos", "--out", out, "--target", server.target, "--json")
        told, words = again.communicate(timeout=60)
        assert again.returncode == 0, words
        counts = json.loads(told.splitlines()[-1])
        assert (counts["total"], counts["reused"], counts["failed"]) == (count, kept, 0)
        assert counts["embedded"] == count - kept
    assert not (out / "parts").exists()
    assert pq.read_metadata(out / "embeddings.parquet").num_rows == count
    assert len({row.id for row in dataset.read(out).rows}) == count


def test_two_runs_do_not_write_one_dataset(run: Counted, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 2)
    source = Marked(tmp_path / "photos")
    held = dataset.open_source(tmp_path / "photos")

    class Nosy(Marked):
        def pictures(self) -> Iterator[dataset.Picture]:
            with pytest.raises(pixvec.InputError, match="another run is writing"):
                run(held)
            yield from super().pictures()

    assert run(Nosy(source.folder))[1] == 2


@pytest.mark.slow
def test_without_a_target_a_server_is_started_for_the_run(tiny_bundle: Path, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 3)
    words = ("embed", tmp_path / "photos", "--out", tmp_path / "out", "--model", f"tiny={tiny_bundle}")
    done = command(*words, "--json")
    told, complaints = done.communicate(timeout=100)
    assert done.returncode == 0, complaints
    assert json.loads(told)["embedded"] == 3
    wrong = command("embed", tmp_path / "photos", "--out", tmp_path / "out", "--model", "nonesuch")
    assert "nonesuch" in wrong.communicate(timeout=100)[1]
    assert wrong.returncode == 1


def test_a_folder_that_is_no_dataset_is_refused(run: Counted, tmp_path: Path) -> None:
    with pytest.raises(pixvec.InputError, match="holds no dataset"):
        dataset.read(tmp_path)
    fill(tmp_path / "photos", 2)
    run(tmp_path / "photos")
    about = run.out / "dataset.json"
    about.write_text('{"format": 99}')
    with pytest.raises(pixvec.InputError, match="another version"):
        dataset.read(run.out)
    about.unlink()
    (run.out / "embeddings.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(pixvec.InputError, match="not a dataset's file"):
        run(tmp_path / "photos")
    shutil.rmtree(run.out)
    assert run(tmp_path / "photos")[1] == 2
