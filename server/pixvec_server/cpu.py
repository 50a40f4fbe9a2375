"""The processor: its name, its features, and how many of its cores this process may use."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from pixvec_server.config import is_baseline_cpu

_CPUINFO = Path("/proc/cpuinfo")
# As `flags` (x86-64) or `Features` (arm64) of /proc/cpuinfo spell them.
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_BEYOND_BASELINE = ("avx512", "amx_", "bf16", "avx10")


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor's name and features; `features` is None where the system does not list them."""

    name: str
    features: frozenset[str] | None

    @property
    def has_bf16(self) -> bool:
        """Whether it is known to compute bf16: AVX-512 BF16, AMX BF16 or Arm's BF16 extension."""
        return bool((self.features or frozenset()) & _BF16)

    @property
    def has_avx512(self) -> bool:
        """Whether it is known to have AVX-512."""
        return "avx512f" in (self.features or ())

    @property
    def has_amx(self) -> bool:
        """Whether it is known to have AMX."""
        return "amx_tile" in (self.features or ())

    def __str__(self) -> str:
        """Return the name, and which of bf16, AVX-512 and AMX it has."""
        if self.features is None:
            return f"{self.name} (features unknown)"
        able = {"bf16": self.has_bf16, "AVX-512": self.has_avx512, "AMX": self.has_amx}
        listed = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in able.items())
        return f"{self.name} ({listed})"


def processor(cpuinfo: Path = _CPUINFO, *, baseline: bool | None = None) -> Processor:
    """Return this machine's processor, read from /proc/cpuinfo; elsewhere than on Linux its name alone.

    `baseline` leaves out bf16, AVX-512 and AMX; None: as PIXVEC_TEST_CPU says. Raises ConfigError for a
    value of PIXVEC_TEST_CPU that is not known.
    """
    fields = _fields(cpuinfo)
    listed = fields.get("flags", fields.get("Features"))
    features = None if listed is None else frozenset(listed.split())
    if is_baseline_cpu() if baseline is None else baseline:
        kept = (name for name in features or () if not name.startswith(_BEYOND_BASELINE))
        features = frozenset(kept)
    return Processor(_name(fields), features)


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the processors of the affinity mask, or fewer when a cgroup quota (v2 or v1) allows fewer.

    Engines that read the host's count start more threads than a container may run, and throttle.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def _fields(cpuinfo: Path) -> dict[str, str]:
    """Return the fields of the first processor, or none where the file is missing."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _name(fields: dict[str, str]) -> str:
    """Return a processor's name and kind: on virtual machines, and on arm64, the name alone says little."""
    name = fields.get("model name") or platform.processor() or platform.machine()
    x86, arm = ("cpu family", "model", "stepping"), ("CPU implementer", "CPU part", "CPU variant")
    keys = x86 if "cpu family" in fields else arm
    kind = "-".join(fields[key] for key in keys if key in fields)
    return f"{name} ({kind})" if kind else name


def _quota(cgroup: Path) -> float | None:
    v2 = _words(cgroup / "cpu.max")
    if len(v2) == 2:
        return None if v2[0] == "max" else int(v2[0]) / int(v2[1])
    quota, period = _words(cgroup / "cpu/cpu.cfs_quota_us"), _words(cgroup / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
