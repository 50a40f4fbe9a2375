"""The command, against a real server."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from unit.client.fake import SIZE, Running, vector_of

from pixvec.cli import app


@pytest.fixture
def run(server: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PIXVEC_TARGET", server.target)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PIXVEC_TOKEN", raising=False)
    return lambda *args, **options: CliRunner().invoke(app, [str(arg) for arg in args], **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, data in {"b.png": b"b", "a.jpg": b"a", "deep/c.JPEG": b"c", "notes.txt": b"no"}.items():
        (tmp_path / "in" / name).write_bytes(data)
    return tmp_path / "in"


def test_a_folder_becomes_an_npy_and_its_json(run: Any, folder: Path, tmp_path: Path) -> None:
    done = run("embed", folder, "-o", tmp_path / "out.npy")
    assert done.exit_code == 0, done.output
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.stack([vector_of(x) for x in (b"a", b"b", b"c")]))
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["origin"] == {"model": "hash", "space": "space-1", "build": "build-1", "normalized": True}
    assert [Path(item["path"]).name for item in record["items"]] == ["a.jpg", "b.png", "c.JPEG"]
    assert "embedded 3 of 3 images" in done.stderr
    assert done.stdout == ""


def test_failed_images_are_left_out_and_listed(run: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes(b"bad")
    done = run("embed", folder, "/no/such.jpg", "-o", tmp_path / "out.npy")
    assert done.exit_code == 3
    assert len(np.load(tmp_path / "out.npy")) == 2
    items = json.loads((tmp_path / "out.json").read_text())["items"]
    assert [item["ok"] for item in items] == [True, False, True, False]
    assert (items[1]["reason"], items[1]["error"]) == ("UNDECODABLE", "not an image")
    assert f"error: {folder / 'b.png'}: not an image" in done.stderr
    assert "error: /no/such.jpg: No such file or directory" in done.stderr


def test_nothing_worked(run: Any, tmp_path: Path) -> None:
    assert run("embed", "/no/such.jpg", "-o", tmp_path / "out.npy").exit_code == 1
    assert not (tmp_path / "out.npy").exists()
    empty = run("embed", tmp_path)
    assert empty.exit_code == 1
    assert "no images in" in empty.stderr


def test_npz_holds_all(run: Any, folder: Path, tmp_path: Path) -> None:
    assert run("embed", f"{folder}/*.*g", "-o", tmp_path / "out.npz", "--dimensions", 8).exit_code == 0
    with np.load(tmp_path / "out.npz") as saved:
        assert saved["vectors"].shape == (2, 8)
        assert [Path(p).name for p in saved["paths"]] == ["a.jpg", "b.png"]
        assert json.loads(str(saved["origin"]))["space"] == "space-1"


def test_stdin_names_images(run: Any, folder: Path, server: Running) -> None:
    listed = f"{folder / 'a.jpg'}\n\n{folder / 'b.png'}\n"
    done = run("embed", "-", "--json", "--batch-size", 1, "--no-normalize", input=listed)
    assert done.exit_code == 0
    assert np.allclose(json.loads(done.stdout)["vectors"], [vector_of(b"a"), vector_of(b"b")])
    requests = server.service.of("EmbedBatch")
    assert [len(request.inputs) for request in requests] == [1, 1]
    assert requests[0].targets[0].HasField("normalize")


def test_without_a_file_it_prints_a_table(run: Any, folder: Path) -> None:
    done = run("embed", folder / "a.jpg", "--encoding", "int8")
    assert done.exit_code == 0
    assert str(SIZE) in done.stdout
    assert "a.jpg" in done.stdout


def test_similarity(run: Any, folder: Path) -> None:
    done = run("similarity", folder / "a.jpg", folder / "b.png")
    assert done.exit_code == 0
    assert done.stdout.count("1.0000") == 2
    scores = json.loads(run("similarity", folder, "--json").stdout)["scores"]
    assert np.shape(scores) == (3, 3)
    nearest = json.loads(run("similarity", folder, "--top-k", 1, "--json").stdout)
    assert all(hits[0]["image"] == name for name, hits in nearest.items())


def test_models(run: Any) -> None:
    assert "hash" in run("models").stdout
    assert json.loads(run("models", "--json").stdout)[0]["outputs"][0]["space"] == "space-1"
    assert json.loads(run("models", "prod", "--json").stdout)["name"] == "hash"
    missing = run("models", "nothing")
    assert (missing.exit_code, missing.stderr) == (1, "error: no model nothing\n")


def test_health(run: Any, server: Running) -> None:
    done = run("health")
    assert (done.exit_code, done.stdout) == (0, "SERVING\n")
    server.set_serving("NOT_SERVING")
    done = run("health", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (1, {"state": "NOT_SERVING"})


def test_no_server_is_explained(run: Any) -> None:
    done = run("health", "--target", "127.0.0.1:1")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no server at 127.0.0.1:1: ipv4:127.0.0.1:1: Failed to connect")
    assert "`pixvec-server serve`" in done.stderr
    assert "Traceback" not in done.output


def test_usage_errors(run: Any, folder: Path) -> None:
    for args in (
        ["embed"],
        ["embed", folder, "-o", "x.csv"],
        ["embed", folder, "-o", "/no/x.npy"],
        ["nothing"],
    ):
        assert run(*args).exit_code == 2
    assert run("embed", folder, "--encoding", "int4").exit_code == 1


def test_the_token_comes_from_file_or_environment(
    run: Any, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert run("models", "--token-file", tmp_path / "token").exit_code == 0
    assert server.service.metadata[-1]["authorization"] == "Bearer from-file"
    monkeypatch.setenv("PIXVEC_TOKEN", "from-env")
    assert run("models").exit_code == 0
    assert server.service.metadata[-1]["authorization"] == "Bearer from-env"
    assert "No such file" in run("models", "--token-file", "/no/token").stderr
    exposed = run("models", "--target", "pixvec:50051")
    assert (exposed.exit_code, "unencrypted" in exposed.stderr) == (1, True)


def test_version(run: Any) -> None:
    assert run("--version").stdout.strip() == "0.1.0"
    assert run().exit_code == 2


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    run: Any, folder: Path, tmp_path: Path, server: Running
) -> None:
    (tmp_path / "folder.npy").mkdir()
    done = run("embed", folder, "-o", tmp_path / "folder.npy")
    assert (done.exit_code, "is a folder" in done.stderr) == (2, True)
    assert server.service.of("EmbedBatch") == []


def test_one_cause_is_one_line(run: Any, folder: Path) -> None:
    for name in ("a.jpg", "b.png", "deep/c.JPEG"):
        (folder / name).write_bytes(b"bad")
    done = run("embed", folder)
    assert done.stderr.splitlines()[0] == f"error: {folder / 'a.jpg'} and 2 others: not an image"
    assert done.stdout == ""


def test_similarity_names_the_bad_image(run: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes(b"bad")
    assert run("similarity", folder).stderr == f"error: {folder / 'b.png'}: not an image\n"
    (tmp_path / "empty").mkdir()
    assert "no images in" in run("similarity", tmp_path / "empty").stderr


def test_a_similarity_table_too_wide_becomes_a_list(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for number in range(9):
        (folder / f"{number}.png").write_bytes(b"%d" % number)
    done = run("similarity", folder)
    assert done.exit_code == 0
    assert "nearest first" in done.stdout
    assert "1.0000 0.png" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert np.shape(json.loads(run("similarity", folder, "--json").stdout)["scores"]) == (12, 12)
