"""Turns what libraries write to standard output and error into log lines, in a process that serves.

Descriptors 1 and 2 become a pipe that a thread reads. Its writing end does not block: a C library that
writes while it holds the interpreter's lock must not wait for a thread that needs that lock. What does not
fit is lost. Crash reports of `faulthandler` go to the real standard error.
"""

from __future__ import annotations

import faulthandler
import io
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from pixvec_server import log

if TYPE_CHECKING:
    from types import TracebackType

_STDOUT, _STDERR = 1, 2
_CHUNK = 1 << 16
_MAX_LINE = 1_000  # bytes
_LINES_PER_S = 10
_log = log.get("capture")


def start(form: log.Form, level: str, process: str = "") -> None:
    """Configure the log of a process that serves, and send all that it writes through it.

    Called once, before other threads run. `process` names it in every line.
    """
    for fd in (_STDOUT, _STDERR):
        _ensure_open(fd)
    real = os.dup(_STDERR)
    faulthandler.enable(_unblocking(real))
    log.configure_server(form, level, process, real)
    output = LibraryOutput()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for fd in (_STDOUT, _STDERR):
        os.dup2(writing, fd)
    os.close(writing)
    threading.Thread(target=output.read, args=(reading,), name="library-output", daemon=True).start()
    sys.stdout, sys.stderr = _stream(output, _STDOUT), _stream(output, _STDERR)
    warnings.showwarning = _log_warning
    # Left alone, Python keeps each text that it has shown, to show it once: callers choose Pillow's texts.
    warnings.filterwarnings("always", module=r"PIL\.")
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread
    sys.unraisablehook = _log_unraisable


class LibraryOutput:
    """Bytes in, log lines out: bounded in length and in number."""

    def __init__(self) -> None:
        self._sparse = log.Sparse(lines=_LINES_PER_S)

    def read(self, fd: int) -> None:
        """Log what comes from a descriptor until its last writer is gone."""
        rest = b""
        while chunk := os.read(fd, _CHUNK):
            rest = self.log(rest + chunk)

    def log(self, data: bytes) -> bytes:
        """Log the lines that are complete, and return what is not."""
        *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
        if len(rest) > _MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if text := _printable(line):
                self._log_line(text)
        return rest

    def _log_line(self, text: str) -> None:
        unsaid = self._sparse.due("")
        if unsaid is None:
            log.count_dropped("limit")
        else:
            _log.warning("library output", line=text, **({"unsaid": unsaid} if unsaid else {}))


class _Raw(io.RawIOBase):
    """What Python code prints: logged in the printing thread, with the id of its request."""

    def __init__(self, output: LibraryOutput, fd: int) -> None:
        self._output = output
        self._fd = fd
        self._rest = b""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - whatever has a buffer
        with self._lock:
            rest, self._rest = self._rest, b""
            self._rest = self._output.log(rest + bytes(data))
        return len(data)


def _stream(output: LibraryOutput, fd: int) -> io.TextIOWrapper:
    # A raw file where a buffered one is expected is what `python -u` uses, too.
    raw: Any = _Raw(output, fd)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


def _printable(line: bytes) -> str:
    text = line[:_MAX_LINE].decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _unblocking(fd: int) -> int:
    """Return the same file by a descriptor that never blocks: a crash must end a process whose pipe is full.

    To make `fd` itself so would change it for every process that shares it.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # a socket, a closed pipe, or no /proc
        return fd


def _ensure_open(fd: int) -> None:
    """Let a descriptor that the process was started without lead nowhere, so that no pipe gets its number."""
    try:
        os.fstat(fd)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != fd:
            os.dup2(nowhere, fd)
            os.close(nowhere)


def _log_warning(  # noqa: PLR0917 - the interface of `warnings.showwarning`
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,  # noqa: ARG001 - as above
    line: str | None = None,  # noqa: ARG001 - as above
) -> None:
    _log.warning("python warning", category=category.__name__, text=str(message), at=f"{filename}:{lineno}")


def _log_uncaught(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    _log.critical("uncaught exception", exc_info=(kind, value, trace))
    log.drain()


def _log_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    name = None if args.thread is None else args.thread.name
    error = args.exc_value or args.exc_type()
    _log.error("uncaught exception in a thread", thread=name, exc_info=error)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    _log.error("exception ignored", where=repr(args.object)[:_MAX_LINE], exc_info=args.exc_value)
