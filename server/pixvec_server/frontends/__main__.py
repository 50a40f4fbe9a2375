"""Entry of the supervisor's processes: `python -m pixvec_server.frontends NAME DESCRIPTOR`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from pixvec_server import capture, log
from pixvec_server.config import Config
from pixvec_server.errors import SetupError
from pixvec_server.frontends.child import serve_device, serve_frontend
from pixvec_server.frontends.control import Control


def main() -> None:
    """Do as the supervisor says, until it says stop or is gone."""
    # Both reach a whole group of processes; what is to happen then, the supervisor says.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    name, fd = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(fd, False)
    code = 1
    try:
        code = asyncio.run(_run(name, socket.socket(fileno=fd)))
    except Exception:  # noqa: BLE001 - it is logged in full, and the process ends
        log.get("child").exception("a process failed for a reason of ours")
    # Threads of libraries may not end by themselves.
    log.leave(code)


async def _run(name: str, end: socket.socket) -> int:
    control = Control(end)
    told = await control.receive()
    if told is None:
        return 1
    first, fds = told
    config = Config.model_validate(first["config"])
    capture.start(config.log.format, config.log.level, name)
    try:
        if name == "device":
            await serve_device(control, config, fds)
        else:
            await serve_frontend(control, config)
    except SetupError as exc:
        control.send({"say": "failed", "why": str(exc)})
        return 1
    return 0


if __name__ == "__main__":
    main()
