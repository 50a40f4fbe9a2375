"""Bearer tokens, and how many processors a container has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pixvec_server.cpu import available_cpus
from pixvec_server.errors import ConfigError
from pixvec_server.rpc.auth import TokenAuth
from pixvec_server.rpc.status import UnauthenticatedError

if TYPE_CHECKING:
    from pathlib import Path

METHOD = "/pixvec.v1.EmbeddingService/Embed"


@pytest.fixture
def auth(tmp_path: Path) -> TokenAuth:
    file = tmp_path / "tokens"
    file.write_text("# rotated monthly\nold-secret\n\n  # and\nnew#secret\n")
    return TokenAuth(file)


@pytest.mark.parametrize("value", ["Bearer old-secret", "bearer new#secret"])
def test_each_token_opens(auth: TokenAuth, value: str) -> None:
    auth.check(METHOD, {"authorization": value})


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic old-secret", "old-secret", "Bearer # rotated monthly"],
)
def test_anything_else_does_not(auth: TokenAuth, value: str) -> None:
    with pytest.raises(UnauthenticatedError):
        auth.check(METHOD, {"authorization": value} if value else {})


def test_health_is_open(auth: TokenAuth) -> None:
    auth.check("/grpc.health.v1.Health/Check", {})


def test_a_file_without_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no token"):
        TokenAuth(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_quota_bounds_the_processors(tmp_path: Path, files: dict[str, str], most: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    unbounded = available_cpus(tmp_path / "nothing")
    assert available_cpus(tmp_path) == (unbounded if most is None else min(most, unbounded))
