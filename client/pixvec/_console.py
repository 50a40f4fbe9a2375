"""What every command shares: options, the client, words on the terminal, and how errors end."""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from ._client import Client
from ._errors import AuthenticationError, BadOptionError, ConnectionFailedError, PixvecError
from ._target import parse_target
from ._urls import escaped

# Exit codes.
SOME_FAILED, INTERRUPTED = 3, 130

TargetOption: TypeAlias = Annotated[
    str, typer.Option("--target", envvar="PIXVEC_TARGET", metavar="HOST:PORT", help="The server.")
]
ModelOption: TypeAlias = Annotated[
    str, typer.Option(help="Model name or alias; the server's first by default.", show_default=False)
]
TlsOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="PEM file of the CA that signed the server's certificate; turns TLS on.")
]
TokenOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="File with the bearer token; else the variable PIXVEC_TOKEN.")
]


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} is no number of seconds")
    return seconds


TimeoutOption: TypeAlias = Annotated[
    float, typer.Option(help="Seconds for each request.", min=0.001, callback=_finite)
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


class Commands(TyperGroup):
    """Turns an error of ours, or of a file, into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's own signature
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ConnectionFailedError as error:
            complain(str(error))
            say("Start one with `pixvec-server serve`, or name one by --target (and --tls-ca).")
        except AuthenticationError as error:
            complain(f"{error} (--token-file, or the variable PIXVEC_TOKEN)")
        except (PixvecError, OSError) as error:
            complain(str(error))
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(1)


def connect(
    target: str,
    tls_ca: Path | None,
    token_file: Path | None,
    timeout: float,
    **more: Any,  # noqa: ANN401 - Client's own
) -> Client:
    """Return a client of the server that the options name; exit code 2 when --target is no address."""
    try:
        parse_target(target)
    except BadOptionError as error:
        raise typer.BadParameter(str(error), param_hint="--target") from error
    token = token_file.read_text().strip() if token_file else os.environ.get("PIXVEC_TOKEN")
    return Client(target, tls=tls_ca or False, token=token or None, timeout=timeout, **more)


def print_table(
    heads: Iterable[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    min_width: int | None = None,
) -> None:
    """Print a table on stdout. A cell that is a str is one line; a Text may have lines and colors."""
    table = Table()
    for head in heads:
        table.add_column(Text(escaped(head)), overflow="fold", min_width=min_width)
    for row in rows:
        table.add_row(*(Text(escaped(cell)) if isinstance(cell, str) else cell for cell in row))
    Console(highlight=False).print(table)


class _Rate(ProgressColumn):
    """Steps a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], object]]:
    """Show how far a long step is, its rate and the time left, where somebody looks; told done and total."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def say(text: str) -> None:
    """Print a line on stderr, where there is one: names in it come from archives of strangers."""
    if sys.stderr is not None:
        print(escaped(text), file=sys.stderr)


def complain(text: str) -> None:
    """Print an error on stderr."""
    say(f"error: {text}")
