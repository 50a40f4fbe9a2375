"""EmbedStream's window, in virtual time, with a caller as slow as one likes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support import virtual_time

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import DrainingError
from pixvec_server.rpc.stream import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class Caller:
    """Sends as fast as it is read; takes answers every `pace` seconds."""

    def __init__(self, count: int, pace: float = 0.0) -> None:
        self.ids = [str(i) for i in range(count)]
        self.pace = pace
        self.read = 0
        self.most_ahead = 0
        self.got: list[pb.EmbedStreamResponse] = []

    async def requests(self) -> AsyncIterator[pb.EmbedStreamRequest]:
        for i, key in enumerate(self.ids):
            self.read += 1
            self.most_ahead = max(self.most_ahead, self.read - len(self.got))
            targets = [pb.Target(output="features")] if i == 0 else []
            yield pb.EmbedStreamRequest(id=key, inputs=[pb.Input(image=b"x")], targets=targets)

    async def write(self, response: pb.EmbedStreamResponse) -> None:
        await asyncio.sleep(self.pace)
        self.got.append(response)


async def _answer(request: pb.EmbedStreamRequest, first: Sequence[pb.Target]) -> pb.EmbedStreamResponse:
    await asyncio.sleep(0.01)
    outputs = [target.output for target in request.targets or first]
    assert outputs == ["features"]
    return pb.EmbedStreamResponse(id=request.id, results=[pb.Result()])


def _serve(caller: Caller, window: int = 4, draining: asyncio.Event | None = None) -> None:
    async def main() -> None:
        stop = draining or asyncio.Event()
        await Stream(_answer, caller.write, window, stop).serve(caller.requests())

    virtual_time.run(main())


def test_every_id_is_answered_once_and_targets_are_inherited() -> None:
    caller = Caller(50)
    _serve(caller)
    assert sorted(int(response.id) for response in caller.got) == list(range(50))


def test_a_slow_caller_is_read_no_further_than_the_window() -> None:
    caller = Caller(100, pace=10.0)
    _serve(caller, window=4)
    assert len(caller.got) == 100
    assert caller.most_ahead <= 4


def test_an_id_used_twice_while_open_is_an_error_for_the_second() -> None:
    caller = Caller(2)
    caller.ids = ["same", "same"]
    _serve(caller)
    errors = [r.results[0].error.message for r in caller.got if r.results[0].WhichOneof("outcome") == "error"]
    assert len(caller.got) == 2
    assert len(errors) == 1
    assert "still unanswered" in errors[0]


def test_an_id_may_be_used_again_once_it_is_answered() -> None:
    caller = Caller(2, pace=1.0)
    caller.ids = ["same", "same"]
    _serve(caller, window=1)
    assert all(r.results[0].WhichOneof("outcome") is None for r in caller.got)


def test_draining_answers_what_was_read_and_then_says_so() -> None:
    async def main() -> None:
        caller, stop = Caller(1000, pace=0.1), asyncio.Event()
        stream = Stream(_answer, caller.write, 4, stop)
        asyncio.get_running_loop().call_later(1.0, stop.set)
        with pytest.raises(DrainingError):
            await stream.serve(caller.requests())
        assert 0 < len(caller.got) < 1000
        assert caller.read - len(caller.got) <= 1

    virtual_time.run(main())


def test_a_fault_of_ours_ends_the_stream_while_the_caller_is_silent() -> None:
    class Silent(Caller):
        async def requests(self) -> AsyncIterator[pb.EmbedStreamRequest]:
            async for request in super().requests():
                yield request
            await asyncio.Event().wait()

        async def write(self, response: pb.EmbedStreamResponse) -> None:
            raise ConnectionError(response.id)

    async def main() -> None:
        caller = Silent(1)
        stream = Stream(_answer, caller.write, 4, asyncio.Event())
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(stream.serve(caller.requests()), 5)

    virtual_time.run(main())


def test_a_failed_write_ends_the_stream() -> None:
    class Gone(Caller):
        async def write(self, response: pb.EmbedStreamResponse) -> None:
            raise ConnectionError(response.id)

    with pytest.raises(ConnectionError):
        _serve(Gone(10))
