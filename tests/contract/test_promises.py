"""What the README, the contract and the packaging promise."""

from __future__ import annotations

import filecmp
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import photos
from support.servers import ROOT

from pixvec_server import config

if TYPE_CHECKING:
    from support.servers import Server

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_stubs_are_fresh(tmp_path: Path) -> None:
    subprocess.run([ROOT / "proto" / "generate.sh", tmp_path], check=True, capture_output=True)
    for folder, count in (("client/pixvec/v1", 3), ("server/pixvec_server/oip", 2)):
        home = ROOT / folder
        fresh = sorted((tmp_path / Path(*home.parts[-2:])).iterdir())
        assert len(fresh) == count
        for file in fresh:
            assert filecmp.cmp(file, home / file.name, shallow=False), file.name


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_base_install_is_thin(tmp_path: Path, tiny_server: Server) -> None:
    """A real virtual environment with the base install alone embeds bytes."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", ROOT], check=True)
    picture = tmp_path / "cat.png"
    picture.write_bytes(photos.data("chelsea.png"))
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        import pixvec
        assert "grpc" not in sys.modules
        with pixvec.Client("{tiny_server.target}") as client:
            print(client.embed(Path("{picture}").read_bytes()).shape)
        heavy = {{"PIL", "torch", "onnxruntime", "openvino", "typer", "rich", "pydantic", "scipy"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """)
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(32,)"), done.stderr
    for command, extra in (("pixvec", "pixvec[cli]"), ("pixvec-server", "pixvec[server")):
        done = subprocess.run(
            [python.with_name(command), "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert extra in done.stderr
        assert "Traceback" not in done.stderr


def test_openvinos_telemetry_is_never_loaded() -> None:
    program = "import pixvec_server.backends.openvino, sys; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


@pytest.fixture
def in_a_folder_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where the documents' examples are: beside cat.jpg and photos/."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        (folder / Path(name).with_suffix(".jpg")).write_bytes(photos.jpeg(name))
    (tmp_path / "cat.jpg").write_bytes(photos.jpeg("chelsea.png"))


def _python_of(page: Path) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    return blocks


@pytest.mark.usefixtures("in_a_folder_of_photographs")
def test_the_readmes_python_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for block in _python_of(ROOT / "README.md"):
        assert len(block.strip().splitlines()) <= 10, "the SDK in ten lines"
        exec(compile(block.replace("localhost:50051", server.target), "README.md", "exec"), {})
    assert "(3, 1280)" in capsys.readouterr().out


@pytest.mark.usefixtures("in_a_folder_of_photographs")
def test_the_sdks_page_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in _python_of(ROOT / "docs" / "sdk.md"):
        exec(compile(block.replace("localhost:50051", server.target), "sdk.md", "exec"), names)
    names["client"].close()
    assert names["nearest"] == 0
    said = capsys.readouterr().out
    for words in ("float16 jpeg", "photos/rocket.jpg (1280,) s1-", "wait for a batch"):
        assert words.lower() in said.lower()


def test_the_readmes_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make (\w+)`|^make (\w+)", README, re.MULTILINE))
    targets = {one or other for one, other in named}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_the_configuration_reference_is_fresh() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert config.reference() in page, "run: pixvec-server config, and paste it into docs/configuration.md"


def test_no_registry_host_and_no_weights_are_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = listed.stdout.split(b"\0")
    names = [Path(os.fsdecode(name)) for name in files if name]
    for name in names:
        path = ROOT / name
        if not path.is_file():
            continue
        assert path.stat().st_size < 1 << 20, f"{name} is over 1 MiB"
        assert name.suffix not in {".onnx", ".pth", ".pt", ".safetensors", ".npy", ".whl"}, name
        if name.suffix in {".txt", ".toml", ".json", ".yaml", ".yml", ".cfg", ".lock"}:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"index[-]url|\"resolved\"\s*:\s*\"http|registry\s*=\s*http", text), name
