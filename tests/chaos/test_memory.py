"""A server does not grow, and one that leaks is seen to: bench/memory.py, made short.

The leak is 60 KB an item and the limit 32 MiB, far over what an allocator keeps for itself: what is proven
here is the watch, and that nothing leaks by the image. `make bench` looks for bytes a call.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.servers import ROOT

SHORT = ("--calls", "1600", "--warm-up", "800", "--limit-mib", "32", "--leak-bytes", "60000")
WHAT = ("--only", "soak", "--only", "control")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_mixed_calls_leave_nothing_and_a_planted_leak_is_caught() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", *SHORT, *WHAT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the planted leak: caught" in done.stdout
    assert "nothing grows" in done.stdout
