"""Nothing asks the network for what nobody asked for: no DNS query and no packet to another host.

onnxruntime's Linux wheels look a collector of Microsoft's up some seconds after they are loaded, and keep an
identifier of the machine in the home folder; Python's HTTP server looks its host's name up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import photos
from support.servers import ROOT, environment

from pixvec_server import bundle

PROGRAM = ROOT / "tests" / "support" / "programs" / "quiet.py"
NAMESPACES = ("unshare", "--net", "--mount")
CONTROL = """
import socket
try: socket.getaddrinfo("control.invalid", 80)
except OSError: pass
with socket.socket() as probe:
    probe.setblocking(False)
    probe.connect_ex(("10.98.0.1", 80))
"""
# Between 6 and 12 s after its start, onnxruntime 1.31 calls its maker.
REPORTS_AFTER_S = 13.0
# What libraries take for a sign of a test's machine, where they do not report.
SIGNS = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "GITLAB_CI", "BUILD_ID", "JENKINS_URL", "CIRCLECI", "TRAVIS")


def _obstacle() -> str:
    """Return what keeps this test from running, or ""."""
    if sys.platform != "linux" or shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs Linux with unshare and ip"
    if os.geteuid() != 0:
        return "only root can make network namespaces and mount in them"
    probe = [*NAMESPACES, *["ip", "link", "add", "outside", "type", "veth", "peer", "name", "nowhere"]]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no network namespace can be made: {done.stderr.strip()}" if done.returncode else ""


def _observe(steps: dict[str, Any], home: Path) -> dict[str, Any]:
    env = environment(HOME=str(home))
    for name in SIGNS:
        env.pop(name, None)
    env = {name: value for name, value in env.items() if not name.startswith(("ORT_", "HF_"))}
    command = [*NAMESPACES, sys.executable, str(PROGRAM), json.dumps(steps)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_command_and_no_backend_asks_the_network(
    tiny_bundle: Path, default_bundle: bundle.Bundle, tmp_path: Path
) -> None:
    if obstacle := _obstacle():
        pytest.skip(obstacle)
    python, name = [sys.executable, "-m"], default_bundle.manifest.name
    image = str(photos.path("chelsea.png"))
    embed = "import pixvec, sys\nwith pixvec.Client(sys.argv[1]) as c: c.embed(sys.argv[2])"
    calls = [
        [sys.executable, "-c", embed, "127.0.0.1:{port}", image],
        [sys.executable, "-c", embed, "localhost:{port}", image],
        [*python, "pixvec", "embed", image, "--target", "localhost:{port}", "-o", str(tmp_path / "out.npz")],
    ]

    def serve(model: str, *flags: str) -> list[str]:
        command = [*python, "pixvec_server", "serve", "--model", model, "--log-format", "json"]
        return [*command, "--port", "0", "--metrics-port", "0", *flags]

    tiny, given = f"tiny={tiny_bundle}", f"{name}={default_bundle.folder}"
    export = [*python, "pixvec_server", "export", str(name), "-o", str(tmp_path / "made")]
    steps = {
        "control": {"serve": None, "commands": [[sys.executable, "-c", CONTROL]]},
        "onnx": {"serve": serve(tiny, "--backend", "onnx"), "commands": calls, "hold_s": REPORTS_AFTER_S},
        "openvino": {"serve": serve(tiny, "--backend", "openvino"), "commands": calls[:1], "hold_s": 3},
        "torch": {"serve": serve(given, "--backend", "torch"), "commands": calls[:1], "hold_s": 3},
        "frontends": {"serve": serve(tiny, "--frontends", "1"), "commands": calls[:1], "hold_s": 3},
        "export": {"serve": None, "commands": [export]},
    }
    seen = _observe(steps, tmp_path / "home")
    control = seen.pop("control")
    assert "control.invalid" in control["queries"]
    assert control["packets"] > 0
    assert seen == {step: {"queries": [], "packets": 0} for step in seen}
    assert list((tmp_path / "home").rglob("*nnxruntime*")) == []
