"""Structured logs on standard error, as text or JSON, with the request's id on every line of a request."""

from __future__ import annotations

import io
import logging
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TextIO, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

_SPARSE_S = 1.0


class _Lasting(io.TextIOBase):
    """Standard error, as long as somebody reads it: a closed pipe must not fail a call or a drain."""

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if anything is left to flush to."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure(form: Literal["text", "json"], level: str, process: str = "") -> None:
    """Send structlog and the standard library's logging to standard error; every line names the process."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        *([_naming(process)] if process else []),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if form == "json" else structlog.processors.StackInfoRenderer(),
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lasting())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Lasting())
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=last, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


def _naming(process: str) -> structlog.typing.Processor:
    def name(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        line["process"] = process
        return line

    return name


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part of the server."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


class Sparse:
    """Says which of many like events are worth a line: the first of each second, by a key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def due(self, key: str) -> int | None:
        """Return how many were left out since the last line; None: leave this one out as well."""
        now = self._clock()
        at, unsaid = self._said.get(key, (-_SPARSE_S, 0))
        if now - at < _SPARSE_S:
            self._said[key] = at, unsaid + 1
            return None
        self._said[key] = now, 0
        return unsaid
