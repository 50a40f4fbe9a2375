"""Models made to harm: what each of these files' tests lays out, and the canary that must not be found.

Each model is refused, nothing that it carries is run, nothing it points at is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hostile import FORMS, PAYLOADS, Payload
from support.hostile_graphs import GOOD, SECRET, Trap


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is there when something ran; nothing may have."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Callable[[Any], bytes]:
    made: Callable[[Any], bytes] = FORMS[request.param]
    return made


@pytest.fixture(params=PAYLOADS)
def payload(request: pytest.FixtureRequest, canary: Path) -> dict[str, Payload]:
    return {"weight": PAYLOADS[request.param](canary)}


@pytest.fixture
def command(canary: Path) -> dict[str, Payload]:
    """The payload that most would write."""
    return {"weight": PAYLOADS["os.system"](canary)}


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    made = Trap(tmp_path / "model", tmp_path / "outside")
    made.folder.mkdir()
    made.outside.mkdir()
    made.secret.write_bytes(SECRET.tobytes())
    (made.folder / "weights.bin").write_bytes(GOOD.tobytes())
    return made
