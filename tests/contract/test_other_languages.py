"""Go and Java stubs by buf, and the programs of docs/clients: compiled, run, equal to the Python client.

The generators, and what compiles Go and Java, come from Debian by proto/plugins.sh; elsewhere there is
nothing to fetch them with. Debian 12's libraries are older than the programs are written for: `OLD_GO` says
where that shows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import photos
from support.servers import ROOT

import pixvec
from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from support.servers import Server

STUBS = ROOT / ".tools" / "stubs"
FILE = pb.DESCRIPTOR
SERVICE = FILE.services_by_name["EmbeddingService"]
# grpc-go 1.33 of 2020: NewClient came with 1.63, the package `insecure` with 1.34.
OLD_GO = {
    '\t"google.golang.org/grpc/credentials/insecure"\n': "",
    "grpc.WithTransportCredentials(insecure.NewCredentials())": "grpc.WithInsecure()",
    "grpc.NewClient(": "grpc.Dial(",
}

# A JVM that lives for seconds: compiled once, lightly, and one collector's thread.
BRIEF = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

pytestmark = pytest.mark.slow


def fetch(part: str) -> None:
    """Have a part of proto/plugins.sh under .tools/stubs."""
    if shutil.which("apt-get") is None:
        pytest.skip("proto/plugins.sh fetches Debian's packages, and there is no apt-get")
    done = run([ROOT / "proto" / "plugins.sh", part])
    assert done.returncode == 0, done.stderr


def run(
    command: Sequence[str | Path], settings: Mapping[str, str] = {}, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PIXVEC_")}
    env = {**kept, **settings}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=env)


def program(page: str, language: str) -> str:
    """Return the one program of a page."""
    text = (ROOT / "docs" / "clients" / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder gen/ that buf writes by proto/buf.gen.yaml."""
    fetch("generators")
    out = tmp_path_factory.mktemp("stubs")
    buf = shutil.which("buf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert buf is not None, "make setup installs it"
    path = f"{STUBS / 'bin'}:{os.environ['PATH']}"
    done = run([buf, "generate", "-o", out], {"PATH": path}, cwd=ROOT / "proto")
    assert done.returncode == 0, done.stderr
    return out / "gen"


@pytest.mark.timeout(120)
def test_go_stubs_hold_the_whole_contract(generated: Path) -> None:
    path, name = FILE.GetOptions().go_package.split(";")
    assert re.fullmatch(r"[a-z0-9./]+/gen/go/pixvec/v1", path)
    files = sorted((generated / "go").rglob("*.go"))
    folder = generated / "go" / "pixvec" / "v1"
    assert files == [folder / "embedding.pb.go", folder / "embedding_grpc.pb.go"], (
        "the contract and nothing else"
    )
    messages, service = (file.read_text(encoding="utf-8") for file in files)
    for text in (messages, service):
        assert re.search(rf"^package {name}$", text, re.MULTILINE)
    for message in FILE.message_types_by_name:
        assert f"type {message} struct {{" in messages
    for method in SERVICE.methods:
        assert f'"/{SERVICE.full_name}/{method.name}"' in service
        assert re.search(rf"^func \(c \*embeddingServiceClient\) {method.name}\(", service, re.MULTILINE)


@pytest.mark.timeout(120)
def test_java_stubs_hold_the_whole_contract(generated: Path) -> None:
    package = FILE.GetOptions().java_package
    assert package == "dev.pixvec.v1"
    folder = generated / "java" / Path(*package.split("."))
    assert {file.parent for file in (generated / "java").rglob("*.java")} == {folder}
    for message in FILE.message_types_by_name:
        assert f"package {package};" in (folder / f"{message}.java").read_text(encoding="utf-8")
    service = (folder / "EmbeddingServiceGrpc.java").read_text(encoding="utf-8")
    assert f'SERVICE_NAME = "{SERVICE.full_name}"' in service
    for method in SERVICE.methods:
        assert f"get{method.name}Method()" in service
        stub = method.name[0].lower() + method.name[1:]
        assert re.search(rf"public .* {stub}\(", service)


@pytest.fixture(scope="module")
def go_program(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The command of docs/clients/go.md, compiled."""
    fetch("go")
    usr = STUBS / "go" / "usr"
    (root,) = (usr / "lib").glob("go-*")
    path = tmp_path_factory.mktemp("go")
    module = FILE.GetOptions().go_package.split(";")[0].removesuffix("/pixvec/v1")
    shutil.copytree(generated / "go", path / "src" / module)
    source = program("go.md", "go")
    for today, then in OLD_GO.items():
        assert today in source
        source = source.replace(today, then)
    (path / "src" / "client").mkdir()
    (path / "src" / "client" / "main.go").write_text(source, encoding="utf-8")
    settings = {
        "GOROOT": str(root),
        "GOPATH": f"{path}:{usr / 'share' / 'gocode'}",
        "GOCACHE": str(STUBS / "go-cache"),
        "GOFLAGS": "",
        "GO111MODULE": "off",
    }
    formatted = run([root / "bin" / "gofmt", "-l", path / "src" / "client"])
    assert formatted.stdout == ""
    # Unoptimised is twice as fast to compile. No C compiler is needed: the standard library comes compiled.
    options = [f"-gcflags={domain}/...=-N -l" for domain in ("golang.org", "google.golang.org")]
    built = run([root / "bin" / "go", "build", *options, "-o", path / "client", "client"], settings)
    assert built.returncode == 0, built.stderr
    return [path / "client"]


@pytest.fixture(scope="module")
def java_program(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The command of docs/clients/java.md, compiled."""
    if shutil.which("javac") is None or shutil.which("java") is None:
        pytest.skip("no JDK is installed")
    fetch("java")
    path = tmp_path_factory.mktemp("java")
    libraries = f"{STUBS / 'java' / 'usr' / 'share' / 'java'}/*"
    (path / "Embed.java").write_text(program("java.md", "java"), encoding="utf-8")
    options: list[str | Path] = ["-proc:none", "-encoding", "UTF-8", "-nowarn", "-d", path, "-cp", libraries]
    brief = [f"-J{option}" for option in BRIEF]
    built = run(["javac", *brief, *options, "-sourcepath", generated / "java", path / "Embed.java"])
    assert built.returncode == 0, built.stderr
    return ["java", *BRIEF, "-cp", f"{path}:{libraries}", "Embed"]


@pytest.mark.timeout(420)
@pytest.mark.parametrize("language", ["go", "java"])
def test_the_pages_program_runs(
    language: str, request: pytest.FixtureRequest, tiny_server: Server, tmp_path: Path
) -> None:
    command: list[str | Path] = request.getfixturevalue(f"{language}_program")
    files = [photos.path(name) for name in ("chelsea.png", "rocket.jpg", "coffee.png")]
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(photos.data("rocket.jpg")[:5000])
    with pixvec.Client(tiny_server.target) as client:
        vectors = dict(zip(map(str, files), client.embed_batch(files), strict=True))
        space = client.embed_full(files[0]).origins[0].space

    alone = run([*command, tiny_server.target, files[0]])
    assert alone.returncode == 0, alone.stderr
    ((word, vector),) = answers(alone.stdout).items()
    assert word == space
    assert np.array_equal(floats(vector), vectors[str(files[0])])

    stream = run([*command, tiny_server.target, *files, torn])
    assert stream.returncode == 0, stream.stderr
    said = answers(stream.stdout)
    assert said.pop(str(torn)).startswith("REASON_UNDECODABLE ")
    assert {file: floats(vector).tobytes() for file, vector in said.items()} == {
        file: vector.tobytes() for file, vector in vectors.items()
    }

    for arguments, settings, reason in (
        ((files[0],), {"PIXVEC_MODEL": "nosuch"}, "REASON_MODEL_NOT_FOUND"),
        ((torn,), {}, "REASON_UNDECODABLE"),
    ):
        failed = run([*command, tiny_server.target, *arguments], settings)
        assert failed.returncode == 1
        assert re.search(rf"{reason}: \S+: ", failed.stderr), failed.stderr


def answers(output: str) -> dict[str, str]:
    """Return the rest of each line by its first word."""
    return dict(line.split(" ", 1) for line in output.splitlines())


def floats(written: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the numbers of "[0.5 -1]" or "[0.5, -1.0]"."""
    return np.array([float(word) for word in re.split(r"[,\s]+", written.strip("[]"))], np.float32)
