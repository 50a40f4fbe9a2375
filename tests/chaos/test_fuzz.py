"""Damaged pictures and random messages: each is answered or refused, quickly, and the server lives.

`python -m bench.fuzz` runs many more of the same inputs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fuzz_runs import MAX_LINE_BYTES, fuzz_decoder, fuzz_server
from support.servers import serve

SEED = 20_261


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is damaged
def test_damaged_pictures_are_decoded_or_refused() -> None:
    tally = fuzz_decoder(2000, SEED)
    assert not tally.broken
    assert len(tally.outcomes) >= 8, "the inputs no longer reach every format"


@pytest.mark.timeout(120)
def test_random_messages_are_answered_with_a_documented_status(tiny_bundle: Path) -> None:
    with serve("--model", f"tiny={tiny_bundle}") as server:
        tally = fuzz_server(server, 500, SEED)
        assert not tally.broken
        assert {"Embed OK", "EmbedBatch OK", "EmbedStream OK"} <= set(tally.outcomes)
        assert max(map(len, server.log.read_bytes().splitlines())) <= MAX_LINE_BYTES
        assert server.terminate() == 0
