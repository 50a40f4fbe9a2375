"""A process of the supervisor's, and when a new one takes its place."""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import TYPE_CHECKING, Any

from pixvec_server import log
from pixvec_server.frontends import control
from pixvec_server.frontends.merging import Family

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_WAIT_S, _LONGEST_WAIT_S, _STEADY_S = 0.5, 30.0, 60.0


class Child:
    """One process, from its start to its end. `why` is what it said when it could not do its work."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, end: control.Control) -> None:
        self.name = name
        self.why = ""
        self._process = process
        self._control = end
        self._asks = itertools.count()
        self._answers: dict[int, asyncio.Future[list[Family] | None]] = {}

    @classmethod
    async def spawn(cls, name: str, first: dict[str, Any], fds: Sequence[int] = ()) -> Child:
        """Start a process, never by fork, and tell it the first thing. Raises OSError."""
        ours, theirs = control.pair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pixvec_server.frontends", name, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log.stderr_fd(),
                pass_fds=(theirs.fileno(),),
            )
        child = cls(name, process, control.Control(ours))
        child.tell(first, fds)
        return child

    def tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message; to a process that has ended, nothing."""
        self._control.send(message, fds)

    async def hear(self) -> dict[str, Any] | None:
        """Return what it says next, None when it has ended. Answers to `metrics` do not come here."""
        while (item := await self._control.receive()) is not None:
            said, fds = item
            control.close_all(fds)
            if said["say"] == "failed":
                self.why = said["why"]
            if said["say"] != "metrics":
                return said
            answer = self._answers.pop(said["ask"], None)
            if answer is not None and not answer.done():
                answer.set_result([Family.of_plain(plain) for plain in said["families"]])
        for left in self._answers.values():
            if not left.done():
                left.set_result(None)
        return None

    async def metrics(self, within_s: float) -> list[Family] | None:
        """Ask for its metrics; None when it does not say in time."""
        ask = next(self._asks)
        answer = self._answers[ask] = asyncio.get_running_loop().create_future()
        self.tell({"do": "metrics", "ask": ask})
        try:
            return await asyncio.wait_for(answer, within_s)
        except TimeoutError:
            self._answers.pop(ask, None)
            return None

    async def ended(self) -> int:
        """Wait for its end and return its exit code; a signal's is negative."""
        code = await self._process.wait()
        self._control.close()
        return code

    def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()


class Backoff:
    """How long to wait before the next start: not at all after a long life, ever longer in a crash loop."""

    def __init__(self) -> None:
        self._wait_s = 0.0

    def next(self, lived_s: float) -> float:
        """Return the seconds to wait after a process that has lived this long."""
        wait, self._wait_s = (0.0, 0.0) if lived_s > _STEADY_S else (self._wait_s, self._wait_s)
        self._wait_s = min(max(2 * wait, _FIRST_WAIT_S), _LONGEST_WAIT_S)
        return wait
