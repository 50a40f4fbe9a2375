"""The processor: its features as the system lists them, and what a test may hide of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixvec_server import config
from pixvec_server.cpu import Processor, processor
from pixvec_server.errors import ConfigError

XEON_SPR = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8488C
stepping\t: 8
flags\t\t: fpu sse4_2 avx2 avx512f avx512bw avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8

processor\t: 1
flags\t\t: fpu
"""
EPYC_MILAN = """processor\t: 0
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
stepping\t: 1
flags\t\t: fpu sse4_2 avx avx2 fma f16c
"""
EPYC_GENOA = EPYC_MILAN.replace("7763", "9654").replace("avx2", "avx2 avx512f avx512_bf16 avx512_vnni")
SKYLAKE = EPYC_MILAN.replace("AMD EPYC 7763 64-Core", "Intel(R) Xeon(R) Gold 6130").replace(
    "avx2", "avx2 avx512f"
)
GRAVITON3 = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes fphp asimdhp sve i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
GRAVITON2 = GRAVITON3.replace("0xd40", "0xd0c").replace("sve i8mm bf16 dgh rng", "asimddp ssbs")
RISC_V = "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc\nmmu\t\t: sv39\n"
NO_AVX = EPYC_MILAN.replace(" avx avx2 fma f16c", "")


def _read(tmp_path: Path, text: str, *, baseline: bool = False) -> Processor:
    (tmp_path / "cpuinfo").write_text(text)
    return processor(tmp_path / "cpuinfo", baseline=baseline)


@pytest.mark.parametrize(
    ("text", "bf16", "avx512", "amx"),
    [
        (XEON_SPR, True, True, True),
        (EPYC_MILAN, False, False, False),
        (EPYC_GENOA, True, True, False),
        (SKYLAKE, False, True, False),
        (NO_AVX, False, False, False),
        (GRAVITON3, True, False, False),
        (GRAVITON2, False, False, False),
    ],
    ids=["spr", "milan", "genoa", "skylake", "no-avx", "graviton3", "graviton2"],
)
def test_features_are_those_that_the_system_lists(
    text: str, tmp_path: Path, *, bf16: bool, avx512: bool, amx: bool
) -> None:
    found = _read(tmp_path, text)
    assert (found.has_bf16, found.has_avx512, found.has_amx) == (bf16, avx512, amx)
    assert f"bf16 {'yes' if bf16 else 'no'}" in str(found)
    hidden = _read(tmp_path, text, baseline=True)
    assert (hidden.has_bf16, hidden.has_avx512, hidden.has_amx) == (False, False, False)
    assert hidden.name == found.name
    assert hidden.features is not None
    assert found.features is not None
    kept = {"avx2", "asimd", "sse4_2"} & found.features
    assert kept <= hidden.features


@pytest.mark.parametrize("text", [RISC_V, "", "\n\n", "no colon"])
def test_a_system_that_lists_no_features_is_unknown(text: str, tmp_path: Path) -> None:
    found = _read(tmp_path, text)
    assert found.features is None
    assert not found.has_bf16
    assert str(found) == f"{found.name} (features unknown)"
    assert found.name


def test_a_system_without_the_file_is_unknown(tmp_path: Path) -> None:
    assert processor(tmp_path / "none", baseline=False).features is None
    assert processor(tmp_path / "none", baseline=True).features == frozenset()


def test_names_tell_processors_apart(tmp_path: Path) -> None:
    names = {_read(tmp_path, text).name for text in (XEON_SPR, EPYC_MILAN, EPYC_GENOA, GRAVITON2, GRAVITON3)}
    assert len(names) == 5
    assert "Intel(R) Xeon(R) Platinum 8488C (6-143-8)" in names
    assert any(name.endswith("(0x41-0xd40-0x1)") for name in names)


def test_this_machines_processor_is_found() -> None:
    found = processor(baseline=False)
    assert found.name
    if Path("/proc/cpuinfo").exists():
        assert found.features


def test_the_baseline_is_asked_for_by_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not config.is_baseline_cpu({})
    assert not config.is_baseline_cpu({"PIXVEC_TEST_CPU": ""})
    assert config.is_baseline_cpu({"PIXVEC_TEST_CPU": "baseline"})
    with pytest.raises(ConfigError, match="PIXVEC_TEST_CPU = 'none': the one value is 'baseline'"):
        config.is_baseline_cpu({"PIXVEC_TEST_CPU": "none"})
    monkeypatch.setenv("PIXVEC_TEST_CPU", "baseline")
    assert not processor().has_bf16
