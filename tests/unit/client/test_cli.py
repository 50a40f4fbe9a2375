"""The command, against a real server."""

import csv
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner
from unit.client.archives import write
from unit.client.fake import SIZE, Running, vector_of

from pixvec import Client, InputError, Target, cli
from pixvec._sources import MOST_MEMBER_BYTES, find
from pixvec.cli import app
from pixvec.dataset import open_source


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
        ["embed", folder, "-o", "x.xlsx"],
        ["embed", folder, "--priority", "soon"],
        ["embed", folder, "-o", "/no/x.npy"],
        ["embed", folder, "--encoding", "int4"],
        ["embed", folder, "--timeout", "inf"],
        ["embed", folder, "--timeout", "nan"],
        ["embed", folder, "--timeout", "-1"],
        ["embed", folder, "--max-side", "0"],
        ["embed", ""],
        ["embed", folder, ""],
        ["similarity", ""],
        ["similarity", folder, "--metric", "taxi"],
        ["models", "--timeout", "inf"],
        ["health", "--timeout", "inf"],
        ["dataset", "embed", "", "--out", folder / "out"],
        ["dataset", "embed", folder, "--out", folder / "out", "--timeout", "inf"],
        ["nothing"],
    ):
        assert run(*args).exit_code == 2, args
    with pytest.raises(InputError, match="the path of the source is empty"):
        open_source("")


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


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".csv", ".jsonl"])
def test_every_form_holds_what_embed_batch_answers(
    run: Any, folder: Path, tmp_path: Path, client: Client, suffix: str
) -> None:
    images = sorted(str(path) for path in (folder / "a.jpg", folder / "b.png", folder / "deep" / "c.JPEG"))
    (folder / "bad.png").write_bytes(b"bad")
    file = tmp_path / f"out{suffix}"
    done = run("embed", folder, "-o", file)
    assert done.exit_code == 3
    assert f"embedded 3 of 4 images to {file} in" in done.stderr
    assert [path.name for path in tmp_path.glob("*.tmp")] == []
    np.testing.assert_array_equal(np.float32(_vectors(file)), client.embed_batch(images))


def _vectors(file: Path) -> Any:
    match file.suffix:
        case ".npy":
            return np.load(file)
        case ".npz":
            return np.load(file)["vectors"]
        case ".parquet":
            return [vector for vector in pq.read_table(file)["vector"].to_pylist() if vector]
        case ".csv":
            rows = csv.DictReader(file.read_text().splitlines())
            return [[float(row[f"v{i}"]) for i in range(SIZE)] for row in rows if row["ok"] == "True"]
    return [row["vector"] for row in map(json.loads, file.read_text().splitlines()) if row["ok"]]


def test_archives_and_their_failures_keep_their_places(run: Any, folder: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.tar.gz", [("x.png", b"x"), ("bad.png", b"bad"), ("y.png", b"y")], "w:gz")
    cut = write(tmp_path / "cut.tar", [("1.png", b"1"), ("2.png", b"2" * 1000)])
    cut.write_bytes(cut.read_bytes()[:1800])
    done = run("embed", good, cut, folder / "a.jpg", "-o", tmp_path / "out.jsonl", "--batch-size", 2)
    assert done.exit_code == 3
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["path"].removeprefix(f"{tmp_path}/"), row["ok"]) for row in rows] == [
        ("good.tar.gz!x.png", True),
        ("good.tar.gz!bad.png", False),
        ("good.tar.gz!y.png", True),
        ("cut.tar!1.png", True),
        ("cut.tar", False),
        ("in/a.jpg", True),
    ]
    assert rows[1]["error"] == "not an image"
    assert rows[4]["error"] == "the archive cannot be read to its end: unexpected end of data"
    for row, content in zip([rows[0], *rows[2:4], rows[5]], (b"x", b"y", b"1", b"a"), strict=True):
        np.testing.assert_array_equal(np.float32(row["vector"]), vector_of(content))
    assert f"error: {cut}: the archive cannot be read to its end" in done.stderr


def test_a_huge_member_fails_alone(run: Any, tmp_path: Path) -> None:
    huge = write(tmp_path / "huge.tar", [("big.png", bytes(MOST_MEMBER_BYTES + 1)), ("x.png", b"x")])
    done = run("embed", huge, "--json")
    assert done.exit_code == 3
    said = json.loads(done.stdout)
    assert [item["ok"] for item in said["items"]] == [False, True]
    assert "over the 67108864" in said["failures"][0]["error"]


def test_archives_on_stdin_and_in_similarity(run: Any, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", [("x.png", b"x"), ("y.png", b"y")])
    done = run("embed", "-", "--json", input=f"{archive}\n")
    assert np.allclose(json.loads(done.stdout)["vectors"], [vector_of(b"x"), vector_of(b"y")])
    scores = json.loads(run("similarity", archive, "--json").stdout)
    assert scores["images"] == [f"{archive}!x.png", f"{archive}!y.png"]


def test_the_first_image_is_embedded_before_stdin_ends(client: Client, server: Running, folder: Path) -> None:
    asked: list[int] = []

    def lines() -> Iterator[str]:
        for _ in range(500):
            yield f"{folder / 'a.jpg'}\n"
            if server.service.of("EmbedBatch"):
                break
        asked.append(len(server.service.of("EmbedBatch")))

    rows = cli._rows(client, find(["-"], lines()), targets=[Target()], batch_size=1, in_flight=1)
    assert all(row.embedding for row in rows)
    assert asked[0] >= 1


def test_with_a_file_json_is_a_summary(run: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes(b"bad")
    done = run("embed", folder, "-o", tmp_path / "out.csv", "--json")
    assert json.loads(done.stdout) == {
        "images": 3,
        "embedded": 2,
        "left_out": [
            {
                "what": "file",
                "reason": "its suffix is not that of an image",
                "count": 1,
                "examples": ["notes.txt"],
            }
        ],
        "failed": 1,
        "origin": {"model": "hash", "space": "space-1", "build": "build-1", "normalized": True},
        "encoding": "float32",
        "scale": None,
        "failures": [
            {
                "path": str(folder / "b.png"),
                "ok": False,
                "reason": "UNDECODABLE",
                "error": "not an image",
            }
        ],
        "output": str(tmp_path / "out.csv"),
    }


def test_the_table_stops_after_twenty(run: Any, tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.png").write_bytes(b"%d" % number)
    done = run("embed", tmp_path)
    assert "19.png" in done.stdout
    assert "20.png" not in done.stdout
    assert "and 5 more: -o FILE keeps all" in done.stdout


def test_a_rerun_overwrites_and_a_failed_one_does_not(run: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert run("embed", folder, "-o", out).exit_code == 0
    first = out.read_text()
    assert run("embed", folder / "a.jpg", "-o", out).exit_code == 0
    second = out.read_text()
    assert second == "".join(first.splitlines(keepends=True)[:2])
    assert run("embed", "/no/such.jpg", "-o", out).exit_code == 1
    assert out.read_text() == second


def test_an_interrupted_run_leaves_no_file(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    (tmp_path / "out.csv").write_text("before")
    monkeypatch.setattr(Client, "embed_iter_full", interrupted)
    done = run("embed", folder, "-o", tmp_path / "out.csv")
    assert done.exit_code == 130
    assert done.stderr == f"error: interrupted after 0 images, {tmp_path / 'out.csv'} is not written\n"
    assert (tmp_path / "out.csv").read_text() == "before"
    assert run("similarity", folder).exit_code == 130


def test_tenant_and_priority_travel_with_every_call(run: Any, folder: Path, server: Running) -> None:
    assert run("embed", folder, "--tenant", "team-7").exit_code == 0
    sent = server.service.metadata[-1]
    assert (sent["pixvec-tenant"], sent["pixvec-priority"]) == ("team-7", "bulk")
    assert run("embed", folder, "--priority", "interactive").exit_code == 0
    sent = server.service.metadata[-1]
    assert ("pixvec-tenant" in sent, sent["pixvec-priority"]) == (False, "interactive")


def test_parquet_without_pyarrow_says_what_to_install(
    run: Any, folder: Path, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = run("embed", folder, "-o", folder / "out.parquet")
    assert done.exit_code == 2
    assert "pip install 'pixvec[parquet]'" in done.stderr
    assert server.service.calls == []


def test_a_hostile_name_does_not_steer_the_terminal(run: Any, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", [("\x1b[2Jx.png", b"bad"), ("\x1b[2Jy.png", b"y")])
    done = run("embed", archive)
    assert "\x1b" not in done.output
    assert "\\x1b[2Jx.png: not an image" in done.stderr


@pytest.mark.parametrize(
    "words", [["embed"], ["similarity"], ["similarity", "--top-k", "2"], ["similarity", "--text", "a cat"]]
)
def test_a_hostile_name_forges_no_line(run: Any, tmp_path: Path, words: list[str]) -> None:
    name = "e\x1b]0;x\x07\x9b[2J\nerror: fake\r\u202eline.png"
    archive = write(
        tmp_path / "a.tar", [(name, b"e"), (f"bad{name}", b"bad")][: 2 if "embed" in words else 1]
    )
    done = run(*words, archive)
    assert not set("\x1b\x07\x9b\r\u202e") & set(done.output)
    assert "\\x0aerror" in done.output
    assert not any(line.startswith("error: fake") for line in done.output.splitlines())


def test_a_closed_stdin_is_an_empty_list(server: Running) -> None:
    code = "import sys; from pixvec.cli import app; app()"
    words = [sys.executable, "-c", code, "embed", "-", "--target", server.target]
    shell = f"{shlex.join(words)} <&-"
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "error: no images in -\n")


def test_a_closed_stderr_loses_its_lines_alone(server: Running, folder: Path) -> None:
    code = "import sys; from pixvec.cli import app; app()"
    words = [sys.executable, "-c", code, "embed", str(folder), "--json", "--target", server.target]
    shell = f"{shlex.join(words)} 2>&-"
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["items"]) == 3


def test_names_that_are_not_unicode(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with open(bytes(folder) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123 - a name of bytes
        file.write(b"x")
    for words, given in ((folder,), None), (("-",), bytes(folder) + b"/caf\xe9.png\n"):
        for suffix in (".npy", ".npz", ".parquet", ".csv", ".jsonl"):
            done = run("embed", *words, "-o", tmp_path / f"out{suffix}", input=given)
            assert done.exit_code == 0, done.output
            np.testing.assert_array_equal(np.float32(_vectors(tmp_path / f"out{suffix}")), [vector_of(b"x")])


def test_profile_shows_where_the_time_goes(run: Any, folder: Path) -> None:
    done = run("profile", folder / "a.jpg", "--calls", "3")
    assert done.exit_code == 0, done.output
    assert "wait for a batch" in done.stdout
    numbers = json.loads(run("profile", folder / "a.jpg", "--calls", "3", "--json").stdout)
    assert numbers["calls"] == 3
    assert {"client", "network", "server"} == {stage["where"] for stage in numbers["stages"]}


def test_max_side_sends_less(run: Any, server: Running, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert run("embed", tmp_path / "large.png", "--max-side", "128").exit_code == 0
    with Image.open(io.BytesIO(server.service.images()[0])) as sent:
        assert sent.size == (128, 64)


@pytest.mark.parametrize("target", ["localhost:99999", "localhost", "http://localhost:50051", "::1:50051"])
def test_a_target_that_is_no_address_is_a_mistake_of_the_command_line(run: Any, target: str) -> None:
    for command in (["health"], ["models"], ["embed", "cat.jpg"], ["profile", "cat.jpg"]):
        done = run(*command, "--target", target)
        assert done.exit_code == 2
        assert "--target" in done.stderr


def test_a_word_that_is_base64_is_named_in_a_line(run: Any) -> None:
    done = run("embed", "iVBORw0KGgo" * 1000)
    assert done.exit_code == 1
    assert "looks like base64" in done.stderr
    assert len(done.stderr) < 1500
