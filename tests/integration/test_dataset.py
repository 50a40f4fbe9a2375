"""Datasets against a real server: what is computed is exactly what is new, whatever happened in between."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import tiny
from support.servers import ROOT, Server, environment, serve
from support.waiting import until

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


def coco(folder: Path, objects: Mapping[str, int]) -> Path:
    """Write a COCO file over a folder's pictures: how many objects each has."""
    boxes = [[2, 2, 8, 8], [4, 4, 16, 16]]
    marks = [(i, name, box) for i, name in enumerate(objects) for box in boxes[: objects[name]]]
    file = folder / "instances.json"
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(objects)],
        "annotations": [
            {"id": f"{name} {box[0]}", "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
            for i, name, box in marks
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    file.write_text(json.dumps(content))
    return file


@pytest.mark.slow
def test_of_a_thousand_images_what_changed_is_computed_and_nothing_else(run: Counted, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    files = fill(folder / "images", 1000)
    objects = {str(file.relative_to(folder / "images")): i % 3 for i, file in enumerate(files)}
    marked = sum(objects.values())
    both: dict[str, Any] = {"instances": "both"}
    counts, items = run(coco(folder, objects), **both)
    assert (counts, items) == (dataset.Counts(1000 + marked, 1000 + marked, 0, 0, 0, 0), 1000 + marked)
    written = (run.out / "embeddings.parquet").stat().st_mtime_ns
    counts, items = run(coco(folder, objects), **both)
    assert (counts, items) == (dataset.Counts(1000 + marked, 0, 1000 + marked, 0, 0, 0), 0)
    assert (run.out / "embeddings.parquet").stat().st_mtime_ns == written
    names = list(objects)
    for i in (3, 500, 998):  # of 0, 2 and 2 objects
        files[i].write_bytes(picture(5000 + i))
    for i in (0, 701):  # of 0 and 2
        files[i].unlink()
        del objects[names[i]]
    for i in range(5):
        (folder / "images" / f"new{i}.png").write_bytes(picture(9000 + i))
        objects[f"new{i}.png"] = 1
    counts, items = run(coco(folder, objects), **both)
    total = 1003 + marked - 2 + 5
    assert (counts, items) == (dataset.Counts(total, 17, total - 17, 4, 0, 0), 17)
    counts, items = run(coco(folder, objects), expand_px=2, **both)
    assert (counts, items) == (dataset.Counts(total, total - 1003, 1003, 0, 0, 0), total - 1003)
    found = dataset.read(run.out)
    crop = next(i for i, row in enumerate(found.rows) if row.box == (4, 4, 20, 20))
    expected = run.client.embed_full(found.rows[crop].uri, regions=[pixvec.Region(2, 2, 22, 22)]).vector
    np.testing.assert_allclose(found.vectors[crop], expected, atol=1e-5)
    whole = [i for i, row in enumerate(found.rows) if row.object is None][:40]
    expected = run.client.embed_batch([Path(found.rows[i].uri) for i in whole])
    np.testing.assert_allclose(found.vectors[whole], expected, atol=1e-5)


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
    source.objects["class0/00001.png"] = (mark("renamed", (2, 2, 10, 10), label="dog"),)
    assert run(source, instances="both", expand_px=2) == (dataset.Counts(7, 0, 7, 1, 0, 1), 0)
    source.objects["class0/00001.png"] = (mark("renamed", (2, 2, 11, 10), label="dog"),)
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


def test_a_folder_of_broken_images_is_a_dataset_without_vectors(run: Counted, tmp_path: Path) -> None:
    files = fill(tmp_path / "photos", 3)
    for file in files:
        file.write_bytes(b"no image")
    assert run(tmp_path / "photos") == (dataset.Counts(3, 0, 0, 0, 3, 0), 0)
    found = dataset.read(run.out)
    assert (len(found.rows), len(found.failed)) == (0, 3)
    assert found.vectors.shape == (0, tiny.SIZE)
    files[1].write_bytes(picture(1))
    assert run(tmp_path / "photos") == (dataset.Counts(3, 1, 2, 0, 2, 0), 1)


@pytest.mark.slow
def test_a_server_that_is_gone_ends_the_run_and_another_one_goes_on(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    out, models = tmp_path / "out", ("--model", f"tiny={tiny_bundle}")
    fill(tmp_path / "photos", 2000)
    words = ("embed", tmp_path / "photos", "--out", out, "--json", "--timeout", "3", "--target")
    slow = {"PYTHONPATH": str(ROOT), "FAKE_DEVICE_MS": "2,1"}
    with serve(*models, "--backend", "bench.devices:Fixed", env=slow) as server:
        first = command(*words, server.target)
        until(lambda: any(out.glob("parts/0*.parquet")))
        server.process.kill()
        told, complaints = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "the same command goes on" in complaints
    assert "error: no server at" in complaints
    kept = sum(pq.read_metadata(part).num_rows for part in out.glob("parts/0*.parquet"))
    assert kept >= _embed.PART_ROWS
    with serve(*models, "--backend", "bench.devices:Fixed", env=slow) as server:
        told, complaints = command(*words, server.target).communicate(timeout=60)
    assert json.loads(told.splitlines()[-1]) == {
        "total": 2000,
        "embedded": 2000 - kept,
        "reused": kept,
        "removed": 0,
        "failed": 0,
        "skipped": 0,
        "left_out": [],
    }


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


# Whoever runs the tests in the background has Ctrl-C ignored, and programs inherit that.
HEARING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pixvec", run_name="__main__")
"""


def command(*words: str | Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEARING, "dataset", *map(str, words)],
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
    env = {"PYTHONPATH": str(ROOT), "FAKE_DEVICE_MS": "2,2"}
    with serve("--model", f"tiny={tiny_bundle}", *flags, env=env) as server:
        first = command("embed", tmp_path / "photos", "--out", out, "--target", server.target)
        until(lambda: any(out.glob("parts/0*.parquet")))
        assert first.poll() is None, first.communicate()
        first.send_signal(number)
        words = first.communicate(timeout=30)[1]
        assert first.returncode == (130 if number == signal.SIGINT else -number)
        if number == signal.SIGINT:
            assert "goes on from there" in words
        parts = list(out.glob("parts/0*.parquet"))
        kept = len({name for part in parts for name in pq.read_table(part)["id"].to_pylist()})
        assert kept >= _embed.PART_ROWS
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
