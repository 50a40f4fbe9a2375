"""Structured logs on standard error, as text or JSON, with the request's id on every line of a request.

Short commands write their lines at once. A server writes through `LogWriter`, so that a standard error that
is not read loses lines and does not delay a call, and limits the lines of one kind within a second.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, TextIO, TypeAlias, cast

import structlog

from pixvec_server.logwriter import REASONS, LogWriter, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Form: TypeAlias = Literal["text", "json"]
_WINDOW_S = 1.0
_LINES_PER_S = 20
_MAX_FIELD = 8_000  # characters
_EXCEPTION = frozenset(("exception", "stack"))  # the fields that may have line breaks
_STDERR = 2
_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}


class _Sink(Protocol):
    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...


class _Direct(io.TextIOBase):
    """Standard error, without an error when it is closed."""

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        with suppress(OSError, ValueError, AttributeError):  # AttributeError: there is none
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if anything is left to flush to."""
        with suppress(OSError, ValueError, AttributeError):  # AttributeError: there is none
            sys.stderr.flush()


class _Factory:
    """Makes structlog's loggers, and keeps what they write to where `_writer` finds it."""

    def __init__(self, sink: _Sink) -> None:
        self.sink = sink

    def __call__(self, *_names: object) -> structlog.WriteLogger:
        return structlog.WriteLogger(cast("TextIO", self.sink))


class Sparse:
    """Decides which of many like events are logged: the first `lines` of each second, by a key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, lines: int = 1) -> None:
        self._clock = clock
        self._lines = lines
        self._windows: dict[object, tuple[float, int, int]] = {}  # start, logged, left out
        self._lock = threading.RLock()

    def due(self, key: object) -> int | None:
        """Return how many were left out before this one; None: leave this one out as well."""
        now = self._clock()
        with self._lock:
            start, logged, unsaid = self._windows.get(key, (-_WINDOW_S, 0, 0))
            if now - start >= _WINDOW_S:
                self._windows[key] = now, 1, 0
                return unsaid
            if logged < self._lines:
                self._windows[key] = start, logged + 1, unsaid
                return 0
            self._windows[key] = start, logged, unsaid + 1
            return None


def configure(form: Form, level: str, process: str = "") -> None:
    """Send structlog and the standard library's logging to standard error; every line names the process."""
    _install(form, level, process, _Direct(), colors=_has_terminal(), limits=())


def _has_terminal() -> bool:
    # A process that was started without a standard error has None here, whatever its type says.
    return bool(sys.stderr) and sys.stderr.isatty()


def configure_server(form: Form, level: str, process: str, fd: int) -> None:
    """Do as `configure`, but for a server: lines go to `fd` by a thread, are limited, and never block."""

    def render_dropped(count: int) -> str:
        line: structlog.typing.EventDict = {"event": "log lines dropped", "count": count}
        for processor in (*_common(process), *_ending(form, colors=False)):
            line = processor(None, "warning", line)  # type: ignore[assignment] # the last one returns the text
        return f"{line}\n"

    writer = LogWriter(fd, render_dropped)
    limit = _Limit(writer)
    _install(form, level, process, writer, colors=os.isatty(fd), limits=(limit,))


def _install(
    form: Form, level: str, process: str, sink: _Sink, *, colors: bool, limits: tuple[_Limit, ...]
) -> None:
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared = _common(process)
    if form == "json":
        shared.append(structlog.processors.format_exc_info)
    ending = _ending(form, colors=colors)
    structlog.configure(
        processors=[*limits, *shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Factory(sink),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast("TextIO", sink))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[_plain, *ending], foreign_pre_chain=shared)
    )
    for limit in limits:
        handler.addFilter(limit.filter)
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _common(process: str) -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        *([_naming(process)] if process else []),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _ending(form: Form, *, colors: bool) -> list[structlog.typing.Processor]:
    if form == "json":
        return [_shorten, structlog.processors.JSONRenderer()]
    # Not the default with the values of all local variables: they are callers' data, and long.
    text = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
    return [_shorten, _escape, text]


def _naming(process: str) -> structlog.typing.Processor:
    def name(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        line["process"] = process
        return line

    return name


def _plain(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Remove what structlog hands from the standard library's records to its own processors."""
    return structlog.stdlib.ProcessorFormatter.remove_processors_meta(None, "", line)


def _shorten(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Limit the length of each field."""
    for key, value in line.items():
        if isinstance(value, str) and len(value) > _MAX_FIELD:
            half = _MAX_FIELD // 2
            line[key] = f"{value[:half]} … {len(value) - 2 * half} characters … {value[-half:]}"
    return line


def _escape(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape control characters, which JSON has escapes for and text has not; tracebacks keep their lines."""
    for key, value in line.items():
        if isinstance(value, str) and key not in _EXCEPTION:
            line[key] = value.translate(_ESCAPES)
    return line


class _Limit:
    """Drops lines of one kind over `_LINES_PER_S` a second; the next one has their number as `unsaid`.

    Those of level debug were asked for by the operator, and have no limit but the writer's queue.
    """

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._sparse = Sparse(lines=_LINES_PER_S)

    def __call__(
        self, _logger: object, method: str, line: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if method == "debug":
            return line
        unsaid = self._sparse.due((line.get("event"), line.get("code"), line.get("model")))
        if unsaid is None:
            self._writer.count_dropped("limit")
            raise structlog.DropEvent
        if unsaid:
            line["unsaid"] = line.get("unsaid", 0) + unsaid
        return line

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line of the standard library's logging is written: by logger, not by text."""
        if self._sparse.due(record.name) is not None:
            return True
        self._writer.count_dropped("limit")
        return False


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part of the server."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


def dropped() -> Mapping[Reason, int]:
    """Return how many lines this process has dropped, by reason."""
    writer = _writer()
    return dict.fromkeys(REASONS, 0) if writer is None else writer.dropped


def count_dropped(reason: Reason, count: int = 1) -> None:
    """Count lines that are left out before they come here."""
    writer = _writer()
    if writer is not None:
        writer.count_dropped(reason, count)


def stderr_fd() -> int:
    """Return the descriptor of standard error as the process was given it, for a child process."""
    writer = _writer()
    return _STDERR if writer is None else writer.fd


def drain() -> None:
    """Wait a short time for lines to be written: what is called before a process ends."""
    writer = _writer()
    if writer is not None:
        writer.drain()


def leave(code: int) -> NoReturn:
    """End the process at once, threads of libraries included, once its last lines are written."""
    drain()
    os._exit(code)


def fail(form: Form, text: str) -> None:
    """Tell why the server ends, whatever the log's level, and wait a short time for it to be written."""
    if form == "json":
        get("server").critical("server failed", error=text)
    else:
        sink = structlog.get_config()["logger_factory"]
        written = sink.sink if isinstance(sink, _Factory) else _Direct()
        lines = (line.translate(_ESCAPES) for line in text.split("\n"))
        written.write("pixvec-server: {}\n".format("\n".join(lines)))
    drain()


def _writer() -> LogWriter | None:
    factory = structlog.get_config()["logger_factory"]
    sink = factory.sink if isinstance(factory, _Factory) else None
    return sink if isinstance(sink, LogWriter) else None
