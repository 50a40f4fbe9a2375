"""A server of one's own for the length of a run, where none is named."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from pixvec._errors import InputError, UnavailableError

_STOP_S = 20.0


@contextmanager
def local_server(model: str = "", device: str = "", weights: str = "") -> Iterator[str]:
    """Start `pixvec-server serve` on this machine's loopback, and give its address.

    weights: "pretrained", "none" (seeded random) or a checkpoint's path; empty: the model's own. Raises
    InputError where the server is not installed, UnavailableError with the server's last words where it
    cannot start.
    """
    if find_spec("pixvec_server") is None:
        raise InputError("name a server by --target, or install one: pip install 'pixvec[server,cpu,torch]'")
    command = [sys.executable, "-m", "pixvec_server", "serve", "--port", "0", "--metrics-port", "0"]
    command += ["--host", "127.0.0.1", "--log-format", "json", *_flags(model, device, weights)]
    settings = {"PIXVEC_SERVER__METRICS_HOST": "127.0.0.1", "PIXVEC_SERVER__LAME_DUCK_S": "0"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(  # noqa: S603 - our own server, with flags that the user gave
                command, stdout=sink, stderr=sink, env={**os.environ, **settings}, start_new_session=True
            )
        try:
            yield f"127.0.0.1:{_port(process, log)}"
        finally:
            _stop(process)


def _flags(model: str, device: str, weights: str) -> list[str]:
    flags = ["--device", device] if device else []
    if weights and not model:
        raise InputError(f"weights = {weights!r} of which model? name it by --model")
    if weights:
        mark = "&" if "?" in model else "?"
        model = f"{model}{mark}weights={weights}"
    return [*flags, *(["--model", model] if model else [])]


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    """Wait until the server serves; there is no limit, for a model may have to be made first."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        while True:
            for told in _told(lines):
                if told.get("event") == "serving":
                    return int(told["port"])
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            words = log.read_text(errors="replace").strip().splitlines()
            raise UnavailableError(
                f"the server could not start: {words[-1] if words else process.returncode}"
            )


def _told(lines: IO[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        if line.startswith("{") and line.endswith("}\n"):
            yield json.loads(line)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
