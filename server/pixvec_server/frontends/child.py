"""What a process of the supervisor's does with each thing that it is told."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from pixvec_server import log, provision
from pixvec_server.frontends import exposition
from pixvec_server.frontends.device import DeviceProcess
from pixvec_server.frontends.frontend import FrontEnd
from pixvec_server.frontends.slots import Arena

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pixvec_server.config import Config
    from pixvec_server.frontends.control import Control
    from pixvec_server.metrics import Metrics

_ORPHANED = 1
_log = log.get("child")


async def serve_device(control: Control, config: Config, fds: list[int]) -> None:
    """Load the models, then serve front ends as they come. Raises SetupError."""
    device = DeviceProcess(config, fds[0])

    async def start() -> None:
        control.send({"say": "ready", **await device.start()})

    async def link(said: dict[str, Any], given: list[int]) -> None:
        end, arena = _take(said, given)
        await device.serve(said["frontend"], end, arena)

    await _obey(control, device.metrics, start(), link, device.stop)


async def serve_frontend(control: Control, config: Config) -> None:
    """Listen, and serve with each device process that there is. Raises SetupError."""
    front = FrontEnd(config, on_lost=lambda: control.send({"say": "lost"}))

    async def start() -> None:
        await front.start()
        control.send({"say": "listening"})

    async def link(said: dict[str, Any], given: list[int]) -> None:
        end, arena = _take(said, given)
        await front.attach(said, end, arena, given[2])
        control.send({"say": "serving"})

    await _obey(control, front.metrics, start(), link, front.stop)


async def _obey(
    control: Control,
    metrics: Metrics,
    starting: Awaitable[None],
    link: Callable[[dict[str, Any], list[int]], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Return when told to stop and done; raises what a part of it raises."""
    listening = asyncio.ensure_future(_listen(control, metrics, link, stop))
    started = asyncio.ensure_future(starting)
    await asyncio.wait((listening, started), return_when=asyncio.FIRST_COMPLETED)
    if started.done():
        started.result()
    await listening


async def _listen(
    control: Control,
    metrics: Metrics,
    link: Callable[[dict[str, Any], list[int]], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    told = False
    while not stopping.done():
        hearing = asyncio.ensure_future(control.receive())
        await asyncio.wait((hearing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not hearing.done():
            hearing.cancel()
            break
        if (item := hearing.result()) is None:
            _log.error("the supervisor is gone: leaving")
            provision.abandon()
            log.leave(_ORPHANED)
        said, fds = item
        if said["do"] == "link":
            await link(said, fds)
        elif said["do"] == "metrics":
            families = [family.plain() for family in exposition.collect(metrics.registry)]
            control.send({"say": "metrics", "ask": said["ask"], "families": families})
        elif not told:
            told, stopping = True, asyncio.ensure_future(stop())
    stopping.result()


def _take(said: dict[str, Any], fds: list[int]) -> tuple[socket.socket, Arena]:
    return socket.socket(fileno=fds[0]), Arena(fds[1], said["slots"], said["slot_bytes"])
