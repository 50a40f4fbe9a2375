"""Models fetched from a hub: a server on loopback that speaks what it takes of Hugging Face's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save
from support.servers import environment, serve

from pixvec_server import bundle
from pixvec_server.module.weights import tensors_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TIMM = "timm:test_resnet.r160_in1k"
REPOSITORY = "timm/test_resnet.r160_in1k"
HEAD, PINNED = "a" * 40, "b" * 40
# What a person waits for a hub that is not there: the imports of torch, and one question.
PATIENCE_S = 60


@dataclass
class Asked:
    """One request."""

    method: str
    repository: str
    revision: str = ""
    name: str = ""


@dataclass
class Hub:
    """Files by repository, commit and name; and what was asked for, in order."""

    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def put(self, repository: str, name: str, data: bytes, commit: str = HEAD) -> None:
        """Publish a file under its commit; `main` is HEAD."""
        self.files[repository, commit, name] = data


def _fetched(asked: list[Asked]) -> set[tuple[str, str]]:
    return {(one.revision, one.name) for one in asked if one.method == "GET" and one.name}


def _revisions(asked: list[Asked]) -> set[str]:
    return {one.revision for one in asked if one.revision}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(whole=False)

        def do_GET(self) -> None:
            self._answer(whole=True)

        def _answer(self, *, whole: bool) -> None:
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            hub.asked.append(Asked(self.command, repository, revision, name))
            commit = HEAD if revision == "main" else revision
            held = {where[1] for where in hub.files if where[0] == repository}
            data = hub.files.get((repository, commit, name))
            if data is not None:
                tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
                self._send(200, data, tag, whole=whole)
                return
            code = "EntryNotFound" if commit in held else "RevisionNotFound" if held else "RepoNotFound"
            known = {"X-Repo-Commit": commit} if commit in held else {}
            self._send(404, b"", {"X-Error-Code": code, **known})

        def _send(self, status: int, data: bytes, headers: dict[str, str], *, whole: bool = True) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if whole:
                self.wfile.write(data)

        def log_message(self, *_words: object) -> None:
            pass

    return Handler


@contextmanager
def _running(hub: Hub) -> Iterator[Hub]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        server.daemon_threads = True
        hub.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors: dict[str, torch.Tensor] = timm.create_model("test_resnet").state_dict()
        norms = [name for name, value in tensors.items() if value.ndim == 1 and name != "fc.bias"]
        return tensors | {name: torch.rand(tensors[name].shape) + 0.5 for name in norms}


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    made.put(REPOSITORY, "model.safetensors", save(_tensors(1)))
    with _running(made):
        yield made


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


def _run(*words: str | Path, hub: str, home: Path, said: str = "") -> Done:
    env = environment(HF_ENDPOINT=hub, HF_HOME=str(home), PIXVEC_CACHE=str(home / "pixvec"), NO_PROXY="*")
    for key in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "TQDM_POSITION", "HF_TOKEN"):
        env.pop(key, None)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=env,
        timeout=170,
        check=False,
        input=said,
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)


def _export(source: str, out: Path, *words: str, hub: str, home: Path) -> Done:
    return _run("-m", "pixvec_server", "export", source, "-o", out, *words, hub=hub, home=home)


def _last_line(done: Done) -> str:
    assert "Traceback" not in done.err, done.err
    return done.err.strip().splitlines()[-1]


# The command -------------------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_then_made_offline(hub: Hub, tmp_path: Path) -> None:
    first = _export(TIMM, tmp_path / "one", hub=hub.url, home=tmp_path)
    assert first.code == 0, first.err
    assert _fetched(hub.asked) == {("main", "model.safetensors")}
    assert {one.repository for one in hub.asked} <= {REPOSITORY, ""}
    # Standard error is a pipe here, as it is where a server makes a bundle on first use.
    assert "model.safetensors" in first.err
    assert "100%|" in first.err
    assert bundle.load(tmp_path / "one").manifest.weights_sha256 == tensors_sha256(_tensors(1))
    hub.asked.clear()
    again = _export(TIMM, tmp_path / "two", "--offline", hub=hub.url, home=tmp_path)
    assert again.code == 0, again.err
    assert hub.asked == []
    one, two = (bundle.load(tmp_path / name).manifest for name in ("one", "two"))
    assert one.weights_sha256 == two.weights_sha256
    assert one.outputs["embedding"].space == two.outputs["embedding"].space


def test_a_server_makes_its_model_on_first_use_and_says_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "PIXVEC_CACHE": str(tmp_path / "pixvec")}
    with serve("--model", TIMM, env={**env, "NO_PROXY": "*"}) as server:
        said = [line["says"] for line in server.lines() if line.get("event") == "making"]
    assert _fetched(hub.asked) == {("main", "model.safetensors")}
    assert any("model.safetensors" in line and "%|" in line for line in said), said


def test_offline_nothing_is_asked_and_the_error_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    done = _export(TIMM, tmp_path / "out", "--offline", hub=hub.url, home=tmp_path)
    assert done.code == 1
    assert hub.asked == []
    for words in ("offline", "not in the hub's cache", "pixvec-server export", "weights = none"):
        assert words in _last_line(done)
    assert "check your connection" not in done.err
    assert not (tmp_path / "out").exists()


@contextmanager
def _nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def _silent() -> Iterator[str]:
    """An address where somebody listens, and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("place", [_nobody, _silent], ids=["closed", "silent"])
def test_a_hub_that_does_not_answer_ends_in_one_line_and_soon(tmp_path: Path, place: Any) -> None:
    with place() as url:
        done = _export(TIMM, tmp_path / "out", hub=url, home=tmp_path)
    assert done.code == 1
    assert done.seconds < PATIENCE_S
    for words in (url, "does not answer", "pixvec-server export", "weights = none"):
        assert words in _last_line(done)
    assert not (tmp_path / "out").exists()


# The rest, in one process that builds one model after the other: to import torch takes seconds

_BUILD = """
import json, sys, urllib.request
from pixvec_server.config import prepare_hub
from pixvec_server.provision import parse
prepare_hub(offline=False)
from pixvec_server.module import build
for key, source in json.loads(sys.argv[1]).items():
    try:
        built = build(parse(source).spec)
        said = {"weights": built.weights_sha256, "preprocess": built.spec.preprocess.model_dump()}
    except Exception as exc:
        said = {"error": str(exc), "kind": type(exc).__name__}
    print(json.dumps({"key": key, **said}), flush=True)
    try:
        urllib.request.urlopen(sys.argv[2] + "/-/")
    except OSError:
        pass
"""


@dataclass
class Answer:
    """What became of one source, and what the hub was asked meanwhile."""

    said: dict[str, Any]
    asked: list[Asked]

    @property
    def error(self) -> str:
        """The error, which must be one of ours."""
        assert self.said["kind"] == "BundleError", self.said
        return str(self.said["error"])


def _build_all(sources: dict[str, str], hub: Hub, url: str, home: Path) -> dict[str, Answer]:
    """Build each model without writing its graph; whatever is asked at the terminal is answered with yes."""
    done = _run("-c", _BUILD, json.dumps(sources), hub.url, hub=url, home=home, said="y\n" * 20)
    assert done.code == 0, done.err
    asked: list[list[Asked]] = [[]]
    for one in hub.asked:
        if one.repository.startswith("-/"):
            asked.append([])
        else:
            asked[-1].append(one)
    said = [json.loads(line) for line in done.out.splitlines() if line.startswith('{"key"')]
    return {line["key"]: Answer(line, part) for line, part in zip(said, asked, strict=False)}


class _Evil:
    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def _transformer(folder: Path) -> Any:
    """Write a folder as a repository of a tiny vision transformer, and return its network."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=48,
        patch_size=16,
    )
    network = transformers.ViTModel(config, add_pooling_layer=False)
    network.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 48, "width": 48},
        "resample": 3,
    }
    colours = {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | colours))
    return network


@dataclass
class World:
    """A hub of several repositories, what was built of them, and the canary that nothing may touch."""

    answers: dict[str, Answer]
    network: Any
    canary: Path


VIT, LACKING, CODE = "someone/tiny-vit", "someone/lacking", "someone/code"
PICKLED = "timm/test_byobnet.r160_in1k"
SOURCES = {
    "pinned": f"{TIMM}@{PINNED}",
    "pinned again": f"{TIMM}@{PINNED}",
    "no such revision": f"{TIMM}@{'c' * 40}",
    "pickle": "timm:test_byobnet.r160_in1k",
    "pickle allowed": "timm:test_byobnet.r160_in1k?allow_pickle=true",
    "vit": f"hf:{VIT}",
    "vit pinned": f"hf:{VIT}@{PINNED}",
    "lacking": f"hf:{LACKING}",
    "code": f"hf:{CODE}",
    "nothing": "hf:someone/nothing",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("hub")
    folder, canary = place / "vit", place / "canary"
    network = _transformer(folder)
    hub = Hub()
    hub.put(REPOSITORY, "model.safetensors", save(_tensors(1)))
    hub.put(REPOSITORY, "model.safetensors", save(_tensors(2)), PINNED)
    hub.put(PICKLED, "pytorch_model.bin", pickle.dumps({"weight": _Evil(canary)}, 2))
    for path in folder.iterdir():
        for repository, commit in ((VIT, HEAD), (VIT, PINNED), (LACKING, HEAD), (CODE, HEAD)):
            hub.put(repository, path.name, path.read_bytes(), commit)
    hub.put(
        VIT,
        "preprocessor_config.json",
        b'{"image_processor_type": "ViTImageProcessor", "resample": 0}',
        PINNED,
    )
    tensors = {name: value for name, value in network.state_dict().items() if name != "layernorm.weight"}
    hub.put(LACKING, "model.safetensors", save(tensors, metadata={"format": "pt"}))
    config = json.loads((folder / "config.json").read_text())
    config.pop("model_type")
    classes = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}
    hub.put(CODE, "config.json", json.dumps({**config, "auto_map": classes}).encode())
    code = f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"
    hub.put(CODE, "evil.py", f"{code}from transformers import ViTConfig as C, ViTModel as M\n".encode())
    with _running(hub):
        answers = _build_all({**SOURCES, "folder": f"vit=hf:{folder}"}, hub, hub.url, place / "home")
        # And once more, of what is cached by now, with nobody to answer.
        hub.asked.clear()
        with _nobody() as url:
            again = {"cached": f"hf:{VIT}", "cached folder": f"vit=hf:{folder}"}
            answers |= _build_all(again, hub, url, place / "home")
    return World(answers, network, canary)


def _is_as_published(answer: Answer, network: Any) -> None:
    assert "weights" in answer.said, answer.said
    assert answer.said["weights"] == tensors_sha256(network.state_dict())
    preprocess = answer.said["preprocess"]
    assert (preprocess["height"], preprocess["width"], preprocess["mode"]) == (48, 48, "squash")
    assert (preprocess["interpolation"], preprocess["antialias"]) == ("bicubic", True)
    assert preprocess["mean"] == [0.1, 0.2, 0.3]
    assert preprocess["std"] == [0.4, 0.5, 0.6]


def test_a_pinned_revision_is_the_only_one_that_is_asked_for(world: World) -> None:
    answer = world.answers["pinned"]
    assert answer.said["weights"] == tensors_sha256(_tensors(2))
    assert _revisions(answer.asked) == {PINNED}
    assert _fetched(answer.asked) == {(PINNED, "model.safetensors")}


def test_a_pinned_revision_that_is_cached_is_not_asked_for_again(world: World) -> None:
    answer = world.answers["pinned again"]
    assert answer.said["weights"] == tensors_sha256(_tensors(2))
    assert _revisions(answer.asked) == set()


def test_a_revision_that_the_hub_has_not_is_named(world: World) -> None:
    error = world.answers["no such revision"].error
    assert "c" * 40 in error
    assert "could not be fetched" in error


def test_a_repository_of_pickles_is_not_even_fetched(world: World) -> None:
    assert _fetched(world.answers["pickle"].asked) == set()
    assert "could not be fetched" in world.answers["pickle"].error
    assert not world.canary.exists()


def test_a_repository_of_pickles_that_is_allowed_runs_nothing(world: World) -> None:
    assert ("main", "pytorch_model.bin") in _fetched(world.answers["pickle allowed"].asked)
    assert "mkdir" in world.answers["pickle allowed"].error
    assert not world.canary.exists()


def test_a_model_of_transformers_brings_its_preprocessing(world: World) -> None:
    answer = world.answers["vit"]
    _is_as_published(answer, world.network)
    names = {name for _, name in _fetched(answer.asked)}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert _revisions(answer.asked) <= {"main", HEAD}


def test_a_pinned_model_of_transformers_is_asked_for_by_its_revision(world: World) -> None:
    answer = world.answers["vit pinned"]
    assert answer.said["weights"] == tensors_sha256(world.network.state_dict())
    assert _revisions(answer.asked) == {PINNED}
    # That revision's own settings: 0 is Pillow's name for the nearest pixel.
    preprocess = answer.said["preprocess"]
    assert (preprocess["interpolation"], preprocess["antialias"]) == ("nearest", False)


def test_a_repository_that_lacks_a_tensor_is_refused(world: World) -> None:
    """transformers would fill it with random numbers, and say so in a log at most."""
    assert "layernorm.weight" in world.answers["lacking"].error


def test_a_repositorys_code_is_not_fetched_whatever_a_person_answers(world: World) -> None:
    answer = world.answers["code"]
    assert "evil.py" not in {name for _, name in _fetched(answer.asked)}
    assert not world.canary.exists()
    assert CODE in answer.error


def test_a_repository_that_is_not_there_is_named(world: World) -> None:
    error = world.answers["nothing"].error
    assert "someone/nothing" in error
    assert "could not be fetched" in error


@pytest.mark.parametrize("key", ["folder", "cached folder"])
def test_a_model_of_transformers_in_a_folder_needs_no_hub(world: World, key: str) -> None:
    _is_as_published(world.answers[key], world.network)
    assert world.answers[key].asked == []


def test_what_is_cached_is_used_when_the_hub_does_not_answer(world: World) -> None:
    _is_as_published(world.answers["cached"], world.network)
