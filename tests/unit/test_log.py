"""Which of many like events are worth a line."""

from __future__ import annotations

from pixvec_server.log import Sparse


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
