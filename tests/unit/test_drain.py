"""The end of a server's connections: each goes when its calls are answered, all after the grace period."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from pixvec_server.errors import DrainingError
from pixvec_server.rpc import sockets
from pixvec_server.rpc.drain import Drain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Port:
    """A listening socket, with connections whose both ends are here."""

    def __init__(self, stack: ExitStack, family: socket.AddressFamily, host: str) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.socket(family))
        self.listener.bind((host, 0))
        self.listener.listen()
        self.address = self.listener.getsockname()

    @property
    def number(self) -> int:
        return int(self.address[1])

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return the caller's end and the server's."""
        caller = self._stack.enter_context(socket.socket(self.listener.family))
        caller.settimeout(5)
        caller.connect(self.address)
        return caller, self._stack.enter_context(self.listener.accept()[0])


class Context:
    """What grpc.aio tells of a call, as far as a Drain looks."""

    def __init__(self, caller: socket.socket) -> None:
        host, port = caller.getsockname()[:2]
        self._peer = f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
        self._callbacks: list[Callable[[Any], None]] = []

    def peer(self) -> str:
        return self._peer

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")])
def port(request: pytest.FixtureRequest) -> Iterator[Port]:
    family, host = request.param
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with ExitStack() as stack:
        try:
            yield Port(stack, family, host)
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")


def _is_open(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(1) != b""
    except BlockingIOError:
        return True
    finally:
        caller.settimeout(5)


async def test_a_connection_ends_with_its_last_call(port: Port) -> None:
    drain = Drain()
    (idle, _), (busy, served) = port.connect(), port.connect()
    first, second = Context(busy), Context(busy)
    drain.accept(first)
    drain.accept(second)
    running = asyncio.create_task(drain.run(port.number, 60))
    await asyncio.sleep(0.1)
    assert not _is_open(idle)
    assert _is_open(busy)
    with pytest.raises(DrainingError):
        drain.accept(Context(idle))
    first.end()
    await asyncio.sleep(0.1)
    assert _is_open(busy)
    served.sendall(b"answer")
    second.end()
    await asyncio.wait_for(running, 5)
    assert busy.recv(10) == b"answer"
    assert busy.recv(10) == b""


async def test_a_busy_connection_is_accepted_from_for_a_second(port: Port) -> None:
    drain = Drain()
    busy, _ = port.connect()
    call = Context(busy)
    drain.accept(call)
    running = asyncio.create_task(drain.run(port.number, 60))
    await asyncio.sleep(0.1)
    call.end()
    later = Context(busy)
    drain.accept(later)
    await asyncio.sleep(0.1)
    assert _is_open(busy)
    await asyncio.sleep(1)
    with pytest.raises(DrainingError):
        drain.accept(Context(busy))
    assert _is_open(busy)
    later.end()
    await asyncio.wait_for(running, 5)
    assert not _is_open(busy)


async def test_new_connections_are_refused_once_a_server_drains(port: Port) -> None:
    drain = Drain()
    busy, _ = port.connect()
    call = Context(busy)
    drain.accept(call)
    running = asyncio.create_task(drain.run(port.number, 60))
    await asyncio.sleep(0.01)
    with socket.socket(port.listener.family) as late:
        assert late.connect_ex(port.address) != 0
    call.end()
    await asyncio.wait_for(running, 5)


async def test_what_outlasts_the_grace_period_ends_with_it(port: Port) -> None:
    drain = Drain()
    busy, _ = port.connect()
    drain.accept(Context(busy))
    await asyncio.wait_for(drain.run(port.number, 0.01), 5)
    assert busy.recv(1) == b""


async def test_calls_that_ended_before_hold_nothing_up(port: Port) -> None:
    drain = Drain()
    caller, _ = port.connect()
    for _ in range(3):
        call = Context(caller)
        drain.accept(call)
        call.end()
    await asyncio.wait_for(drain.run(port.number, 60), 5)
    assert caller.recv(1) == b""


async def test_a_caller_without_a_port_is_waited_for(port: Port) -> None:
    drain = Drain()
    call = Context(port.connect()[0])
    call.peer = lambda: "unix:"  # type: ignore[method-assign]
    drain.accept(call)
    running = asyncio.create_task(drain.run(port.number, 60))
    await asyncio.sleep(0)
    assert not running.done()
    call.end()
    await asyncio.wait_for(running, 5)


def test_other_ports_and_files_are_left_alone(port: Port, tmp_path: Any) -> None:
    with ExitStack() as stack:
        other = Port(stack, socket.AF_INET, "127.0.0.1")
        theirs, _ = other.connect()
        mine, served = port.connect()
        stack.enter_context((tmp_path / "file").open("wb"))
        for end in socket.socketpair():
            stack.enter_context(end)
        found = sockets.connections(port.number)
        assert found == {mine.getsockname()[1]: [served.fileno()]}
        sockets.close_listeners(port.number)
        assert other.connect()
        sockets.end_connection(served.fileno(), mine.getsockname()[1] + 1)
        assert _is_open(mine)
        sockets.end_connection(served.fileno(), mine.getsockname()[1])
        assert not _is_open(mine)
        assert _is_open(theirs)


def test_a_descriptor_that_is_gone_or_another_file_ends_nothing(port: Port) -> None:
    mine, served = port.connect()
    peer_port, descriptor = mine.getsockname()[1], served.fileno()
    other, kept = port.connect()
    os.dup2(kept.fileno(), descriptor)
    sockets.end_connection(descriptor, peer_port)
    assert _is_open(other)
    served.close()
    sockets.end_connection(descriptor, peer_port)
