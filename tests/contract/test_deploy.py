"""The images and manifests of deploy/: linted, valid, and in step with the server that they run."""

import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from kubernetes_validate import utils as kubernetes

from pixvec._version import __version__
from pixvec_server import catalog, provision
from pixvec_server.cli import app
from pixvec_server.config import Config, load

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE, CUDA = DEPLOY / "kubernetes/base", DEPLOY / "kubernetes/cuda"
IMAGES = {"cpu": f"pixvec:{__version__}", "cuda": f"pixvec:{__version__}-cuda"}
CONFIG = (BASE / "config.toml").read_text()
SETTINGS = load(BASE / "config.toml", environ={})
UID = 65532


def merged(under: Any, over: Any) -> Any:
    """Lay a strategic merge patch over a manifest, as kustomize does: lists of named items merge by name."""
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {key: merged(under.get(key), value) for key, value in over.items()}
    if isinstance(under, list) and all(isinstance(item, dict) and "name" in item for item in under + over):
        patches = {item["name"]: item for item in over}
        return [merged(item, patches.get(item["name"], {})) for item in under]
    return over


def documents(*folders: Path) -> dict[str, Any]:
    paths = [path for folder in folders for path in folder.glob("*.yaml") if path.stem != "kustomization"]
    return {str(path.relative_to(DEPLOY)): kubernetes.resources_from_file(str(path))[0] for path in paths}


MANIFESTS = documents(BASE)
DEPLOYMENTS = {"cpu": MANIFESTS["kubernetes/base/deployment.yaml"]}
DEPLOYMENTS["cuda"] = merged(DEPLOYMENTS["cpu"], documents(CUDA)["kubernetes/cuda/deployment.yaml"])


def pod(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = DEPLOYMENTS[kind]["spec"]["template"]["spec"]
    assert [each["name"] for each in spec["containers"]] == ["pixvec"]
    return spec, spec["containers"][0]


def dockerfile(kind: str) -> list[tuple[str, str]]:
    """Return the instructions: (name, the rest with continuations joined)."""
    lines = (DEPLOY / f"docker/Dockerfile.{kind}").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def stage(kind: str, name: str) -> list[tuple[str, str]]:
    steps = dockerfile(kind)
    starts = [at for at, (word, _) in enumerate(steps) if word == "FROM"]
    begin = next(at for at in starts if steps[at][1].endswith(f" AS {name}"))
    return steps[begin : next((at for at in starts if at > begin), len(steps))]


def check_serve(arguments: list[str]) -> None:
    assert arguments[0] == "serve"
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    serve.make_context("serve", arguments[1:])


@pytest.mark.parametrize("kind", IMAGES)
def test_the_dockerfile_is_clean(kind: str) -> None:
    path = DEPLOY / f"docker/Dockerfile.{kind}"
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--disable-ignore-pragma", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert f"-f deploy/docker/{path.name} -t {IMAGES[kind]} ." in path.read_text()
    allowed = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
    for word, rest in stage(kind, "wheel"):
        assert word != "COPY" or all(f"!{source}" in allowed for source in rest.split()[:-1])
    assert all(
        rest == f"VERSION={__version__}" for _, rest in dockerfile(kind) if rest.startswith("VERSION=")
    )


@pytest.mark.parametrize(("kind", "engine"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_the_image_runs_the_server_and_nothing_more(kind: str, engine: str) -> None:
    final = stage(kind, "server")
    assert final[-1][0] == "CMD"
    assert dockerfile(kind)[-1] == final[-1]
    assert not [rest for word, rest in final if word in {"RUN", "ADD", "SHELL", "VOLUME"}]
    words = dict(final)
    assert words["USER"] == f"{UID}:{UID}"
    assert json.loads(words["ENTRYPOINT"]) == ["pixvec-server"]
    check_serve(json.loads(words["CMD"]))
    assert words["EXPOSE"].split() == [str(Config().server.port), str(Config().server.metrics_port)]
    copied = [rest.split() for word, rest in final if word == "COPY"]
    assert [(source, target) for _, source, target in copied] == [(t, t) for _, _, t in copied]
    assert [each[0] for each in copied] == ["--from=venv", "--from=bundle"]
    assert re.findall(r"whl\[(.*?)\]", str(stage(kind, "venv"))) == [f"server,{engine}"]
    cache = re.findall(r"PIXVEC_CACHE=(\S+)", words["ENV"])
    bundle = re.findall(r"pixvec-server export (\S+) -o (\S+)", str(stage(kind, "bundle")))
    assert cache == [copied[1][2]]
    assert bundle == [
        (Config().model.names[0], str(provision.cached(Config().model.names[0], Path(cache[0]))))
    ]


def test_every_name_of_a_setting_exists() -> None:
    assert "#~ token_file" in CONFIG
    with_tokens = tomllib.loads(CONFIG.replace("#~ ", ""))
    Config.model_validate(with_tokens)
    assert with_tokens["server"]["token_file"] == "/etc/pixvec-token/tokens"
    assert all(catalog.find(name) for name in SETTINGS.model.names)
    known = {f"{s}__{k}".upper() for s, keys in Config().model_dump().items() for k in keys}
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())
    assert set(re.findall(r"PIXVEC_(\w+)", text)) <= known | {"CACHE", "SECTION__KEY"}


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_the_manifests_are_valid(version: str) -> None:
    bare = kubernetes.resources_from_file(str(BASE / "kustomization.yaml"))[0]
    assert {f"kubernetes/base/{name}" for name in bare["resources"]} == set(MANIFESTS)
    assert bare["configMapGenerator"][0]["files"] == ["config.toml"]
    for manifest in [*MANIFESTS.values(), DEPLOYMENTS["cuda"]]:
        assert kubernetes.validate(manifest, version, strict=True) == version
        assert "namespace" not in manifest["metadata"]


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_the_manifests_are_valid_with_tokens(version: str, tmp_path: Path) -> None:
    file = tmp_path / "deployment.yaml"
    file.write_text((BASE / "deployment.yaml").read_text().replace("#~ ", ""))
    [manifest] = kubernetes.resources_from_file(str(file))
    assert kubernetes.validate(manifest, version, strict=True) == version
    spec = manifest["spec"]["template"]["spec"]
    assert {"token"} < {each["name"] for each in spec["volumes"]}
    assert {"/etc/pixvec-token"} < {each["mountPath"] for each in spec["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("kind", IMAGES)
def test_the_pod_fits_the_server(kind: str) -> None:
    spec, container = pod(kind)
    assert container["image"] == IMAGES[kind]
    check_serve(container["args"])
    assert {each["containerPort"] for each in container["ports"]} == {
        SETTINGS.server.port,
        SETTINGS.server.metrics_port,
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": SETTINGS.server.port}
    ready = container["readinessProbe"]
    assert SETTINGS.server.lame_duck_s >= ready["periodSeconds"] * ready["failureThreshold"]
    leaving = SETTINGS.server.lame_duck_s + SETTINGS.server.drain_s
    assert spec["terminationGracePeriodSeconds"] >= leaving + 5
    scrape = DEPLOYMENTS[kind]["spec"]["template"]["metadata"]["annotations"]
    assert scrape["prometheus.io/port"] == str(SETTINGS.server.metrics_port)
    needed = 4 * SETTINGS.decode.max_pixels_in_hand + SETTINGS.batch.max_queue_bytes + 5 * 10**8
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30 >= needed
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (kind == "cuda")


@pytest.mark.parametrize("kind", IMAGES)
def test_the_pod_is_restricted(kind: str) -> None:
    spec, container = pod(kind)
    whole, own = spec["securityContext"], container["securityContext"]
    assert (whole["runAsNonRoot"], whole["runAsUser"]) == (True, UID)
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert all({"configMap", "emptyDir"} & set(volume) for volume in spec["volumes"])
