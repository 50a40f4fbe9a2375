"""Which of many like events are logged, and a writer that never waits for its reader."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from support.pipes import fill
from support.waiting import until

from pixvec_server import log
from pixvec_server.log import Sparse
from pixvec_server.logwriter import LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = "x" * 99 + "\n"


def test_the_first_of_each_second_is_said_with_the_number_of_those_before() -> None:
    now = [100.0]
    sparse = Sparse(clock=lambda: now[0])
    assert [sparse.due("a") for _ in range(4)] == [0, None, None, None]
    now[0] += 0.999
    assert sparse.due("a") is None
    now[0] += 0.001
    assert [sparse.due("a"), sparse.due("a")] == [4, None]
    now[0] += 60
    assert sparse.due("a") == 1


def test_keys_do_not_silence_each_other() -> None:
    sparse = Sparse(clock=lambda: 5.0)
    assert [sparse.due("a"), sparse.due("b"), sparse.due("a")] == [0, 0, None]


def test_several_of_each_second_can_be_let_through() -> None:
    now = [100.0]
    sparse = Sparse(clock=lambda: now[0], lines=3)
    assert [sparse.due("a") for _ in range(5)] == [0, 0, 0, None, None]
    now[0] += 1
    assert [sparse.due("a") for _ in range(4)] == [2, 0, 0, None]


def test_a_full_pipe_drops_lines_and_tells_how_many_when_it_is_read_again() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing, lambda count: f"dropped {count}\n", max_bytes=1000)
    for _ in range(2000):  # far over what a pipe and the queue hold together
        writer.write(LINE)
    assert writer.dropped["queue"] > 1000
    read: list[bytes] = []

    def collect() -> None:
        while chunk := os.read(reading, 1 << 16):
            read.append(chunk)

    reader = threading.Thread(target=collect)
    reader.start()
    writer.drain(10)
    until(lambda: b"dropped" in b"".join(read))
    writer.write("the last\n")
    writer.drain(10)
    os.close(writing)
    reader.join(10)
    lines = b"".join(read).decode().splitlines(keepends=True)
    told = [int(line.removeprefix("dropped ")) for line in lines if line.startswith("dropped ")]
    assert sum(told) == writer.dropped["queue"]
    assert lines.count(LINE) == 2000 - sum(told)
    assert lines[-1] == "the last\n"


def test_the_end_of_a_process_waits_for_a_full_pipe_for_a_bounded_time() -> None:
    reading, writing = os.pipe()
    fill(writing)
    writer = LogWriter(writing, str)
    writer.write(LINE)
    writer.drain(0.05)  # returns
    os.read(reading, 1 << 16)
    writer.drain(10)
    assert os.read(reading, 1 << 16).endswith(LINE.encode())
    os.close(reading)


def test_a_pipe_that_somebody_else_made_non_blocking_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = LogWriter(writing, str)
    for _ in range(5000):
        writer.write(LINE)
    read = b""
    while len(read) < 5000 * len(LINE):
        read += os.read(reading, 1 << 16)
    assert writer.dropped == {"queue": 0, "write": 0, "limit": 0}
    os.close(reading)


@pytest.mark.parametrize("which", ["closed", "broken"])
def test_a_closed_descriptor_drops_lines_and_counts_them(which: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    if which == "closed":
        os.close(writing)
        writing = 10**6
    writer = LogWriter(writing, str)
    for _ in range(7):
        writer.write(LINE)
    writer.drain(10)
    assert writer.dropped["write"] == 7


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Configure a server's log in a form, and return what reads the lines that were written so far."""
    before = structlog.get_config()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    log.configure_server(request.param, "info", "front", writing)

    def read() -> list[str]:
        log.drain()
        try:
            return os.read(reading, 1 << 20).decode().splitlines()
        except BlockingIOError:
            return []

    yield read
    structlog.configure(**before)
    os.close(reading)


@pytest.mark.parametrize("lines", ["json"], indirect=True)
def test_lines_of_one_kind_are_limited_and_counted_and_others_are_not(lines: Any) -> None:
    logger = structlog.get_logger()
    for i in range(50):
        logger.warning("call failed", code="INVALID_ARGUMENT", i=i)
    logger.warning("call failed", code="NOT_FOUND")
    logger.error("another")
    written = [json.loads(line) for line in lines()]
    assert [line["event"] for line in written] == ["call failed"] * 21 + ["another"]
    assert log.dropped() == {"queue": 0, "write": 0, "limit": 30}


@pytest.mark.parametrize("lines", ["json", "text"], indirect=True)
def test_a_line_is_one_line_of_bounded_length_whatever_its_fields_hold(lines: Any) -> None:
    structlog.get_logger().warning("odd", name="a\nb\r\x1b\ud800", size="y" * 1_000_000)
    [line] = lines()
    assert len(line) < 20_000
    assert "a\\nb\\r" in line
    assert "\x1b" not in line
    assert "front" in line
