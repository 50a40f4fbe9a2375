"""Writes log lines to a file descriptor by a thread, so that no caller ever waits for a reader."""

from __future__ import annotations

import os
import select
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

# queue: the reader is slower than the log. write: the descriptor refuses lines, as a closed pipe does.
# limit: too many lines of one kind within a second.
Reason: TypeAlias = Literal["queue", "write", "limit"]
REASONS: tuple[Reason, ...] = ("queue", "write", "limit")
_MAX_BYTES = 4 << 20
_CLOSE_S = 1.0


class LogWriter:
    """A queue of lines, bounded in bytes, and the daemon thread that writes them to `fd`.

    `render_dropped` makes the line that tells how many lines were dropped, once writing works again.
    """

    def __init__(self, fd: int, render_dropped: Callable[[int], str], max_bytes: int = _MAX_BYTES) -> None:
        self.fd = fd
        self._render_dropped = render_dropped
        self._max_bytes = max_bytes
        # Reentrant: a finalizer that logs may run while this thread holds it.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped: Counter[Reason] = Counter()
        self._unreported = 0
        self._busy = self._refused = False  # refused: the last write failed
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def write(self, text: str) -> int:
        """Queue text that ends with a line break, or drop it when the queue is full. Never blocks."""
        line = text.encode(errors="backslashreplace")
        with self._changed:
            if self._bytes + len(line) > self._max_bytes:
                self.count_dropped("queue")
            else:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread writes each line as soon as the descriptor takes it."""

    def count_dropped(self, reason: Reason, count: int = 1) -> None:
        """Count lines that will not be written."""
        with self._changed:
            self._dropped[reason] += count
            if reason != "limit":
                self._unreported += count

    @property
    def dropped(self) -> dict[Reason, int]:
        """How many lines were dropped so far, by reason."""
        with self._changed:
            return {reason: self._dropped[reason] for reason in REASONS}

    def drain(self, within_s: float = _CLOSE_S) -> None:
        """Wait until the queue is written, at most `within_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._busy, within_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(self._has_work)
                self._busy = True
                unreported, self._unreported = self._unreported, 0
                line = self._lines.popleft() if self._lines else b""
                self._bytes -= len(line)
            if unreported and not self._wrote(self._render_dropped(unreported).encode()):
                with self._changed:
                    self._unreported += unreported
            if line and not self._wrote(line):
                self.count_dropped("write")

    def _has_work(self) -> bool:
        return bool(self._lines) or (self._unreported > 0 and not self._refused)

    def _wrote(self, data: bytes) -> bool:
        """Write all of it, however long the reader takes; False when the descriptor refuses it."""
        self._refused = True
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:  # somebody who shares the pipe has made it non-blocking
                waiting = select.poll()
                waiting.register(self.fd, select.POLLOUT)
                waiting.poll()
            except OSError:
                return False
        self._refused = False
        return True
