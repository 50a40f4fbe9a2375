"""Send hostile inputs through the decoder and through a server; count what happens.

    PYTHONPATH=tests python -m bench.fuzz --count 100000 --seed 1

Each decode must end in a picture or a documented refusal within a second; each call in a documented status.
What does not is written to build/fuzz, and the command ends with 1. What libraries write to standard error
goes to build/fuzz/stderr.log. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from support import tiny
from support.fuzz_runs import FOUND, MAX_LINE_BYTES, Tally, fuzz_decoder, fuzz_server
from support.servers import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

# The others are pictures.
SHARE_OF_MESSAGES = 0.1


def discard_standard_error() -> None:
    """Send what C libraries write of damaged files to a file."""
    FOUND.mkdir(parents=True, exist_ok=True)
    with (FOUND / "stderr.log").open("wb") as sink:
        os.dup2(sink.fileno(), 2)


def show_progress(word: str, count: int, done: int) -> None:
    if done % 500 == 0:
        print(f"\r{word} {done} of {count}", end="\n" if done == count else "", flush=True)


def report(name: str, tally: Tally) -> Iterator[str]:
    total = sum(tally.outcomes.values())
    yield f"{name}: {total} inputs, slowest {tally.slowest * 1000:.0f} ms, {len(tally.broken)} broke a rule"
    yield from (f"  {count:7d}  {outcome}" for outcome, count in tally.outcomes.most_common())
    yield from (f"  BROKEN {line}" for line in tally.broken[:20])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="Inputs in all.")
    parser.add_argument("--seed", type=int, default=1, help="Random seed.")
    given = parser.parse_args()
    messages = int(given.count * SHARE_OF_MESSAGES)
    pictures = given.count - messages
    discard_standard_error()
    process = psutil.Process()
    fuzz_decoder(1000, given.seed)
    before = process.memory_info().rss
    decoded = fuzz_decoder(pictures, given.seed, partial(show_progress, "decoded", pictures))
    grown = process.memory_info().rss - before
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.write(Path(folder) / "tiny")
        with serve("--model", f"tiny={model}") as server:
            sent = fuzz_server(server, messages, given.seed, partial(show_progress, "sent", messages))
            log = server.log.read_bytes()
            longest = max(map(len, log.splitlines()))
            alive = server.terminate() == 0
    lines = [
        *report("decoder", decoded),
        f"  memory grew by {grown / 2**20:.1f} MiB",
        *report("server", sent),
    ]
    print("\n".join(lines))
    print(f"  log: {len(log) / messages:.0f} bytes an input, longest line {longest} bytes; exit 0: {alive}")
    return int(bool(decoded.broken or sent.broken or not alive or longest > MAX_LINE_BYTES))


if __name__ == "__main__":
    sys.exit(main())
