"""Run commands where every DNS query and every packet to another host is seen; print what each one sent.

Needs a network and a mount namespace of its own: `unshare --net --mount python quiet.py SPEC`. SPEC is JSON:
steps by name, each with `serve` (a command that serves, or null), `commands` to run meanwhile, in which
{port} is the server's, and `hold_s`, the seconds that the server is then left alone.
Prints JSON: {step: {"queries": [...], "packets": n}}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FILES = {
    "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
}
PACKETS = Path("/sys/class/net/outside/statistics/tx_packets")
START_S = 120.0


def main() -> None:
    """Set the namespace up, run the steps, and print what was seen."""
    steps = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        _isolate(Path(folder))
        queries: list[str] = []
        threading.Thread(target=_answer, args=(_bound(), queries), daemon=True).start()
        seen = {}
        for name, step in steps.items():
            queries.clear()
            before = _packets()
            _run(step, Path(folder) / f"{name}.log")
            seen[name] = {"queries": sorted(set(queries)), "packets": _packets() - before}
    print(json.dumps(seen))


def _isolate(folder: Path) -> None:
    """Bring loopback and a route to everywhere up, and have names looked up here."""
    # Its own packets would be counted.
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    for line in (
        "mount --make-rprivate /",
        "mount -t sysfs sysfs /sys",
        "ip link set lo up",
        "ip link add outside type veth peer name nowhere",
        "ip link set outside arp off",
        "ip link set nowhere up",
        "ip address add 10.99.0.1/24 dev outside",
    ):
        subprocess.run(line.split(), check=True)
    for line in ("ip link set outside up", "ip route add default via 10.99.0.2"):
        subprocess.run(line.split(), check=True)
    for path, text in FILES.items():
        ours = folder / Path(path).name
        ours.write_text(text)
        subprocess.run(["mount", "--bind", ours, os.path.realpath(path)], check=True)


def _packets() -> int:
    return int(PACKETS.read_text())


def _bound() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    return server


def _answer(server: socket.socket, queries: list[str]) -> None:
    """Note every name that is asked for, and say that it does not exist."""
    while True:
        query, peer = server.recvfrom(4096)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode(errors="replace"))
            at += query[at] + 1
        queries.append(".".join(labels))
        header = query[:2] + b"\x81\x83" + query[4:6] + bytes(6)
        server.sendto(header + query[12 : at + 5], peer)


def _run(step: dict[str, Any], log: Path) -> None:
    if step["serve"] is None:
        _run_all(step["commands"], 0)
        return
    with log.open("wb") as sink:
        process = subprocess.Popen(step["serve"], stdout=sink, stderr=sink)
    try:
        _run_all(step["commands"], _port(process, log))
        time.sleep(step["hold_s"])  # what reports to its maker does so from a thread, seconds later
        process.send_signal(signal.SIGTERM)
        if process.wait(30) != 0:
            raise RuntimeError(log.read_text())
    finally:
        process.kill()


def _run_all(commands: list[list[str]], port: int) -> None:
    for command in commands:
        words = [word.replace("{port}", str(port)) for word in command]
        subprocess.run(words, check=True, stdout=sys.stderr)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"serving"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


main()
