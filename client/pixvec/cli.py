"""The `pixvec` command: embeds files, compares images, asks a server what it serves and how it is."""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from ._client import Client
from ._errors import AuthenticationError, ConnectionFailedError, InputError, PixvecError
from ._files import Harvest, expand, why_unwritable, without_path
from ._types import Array, Embedded, Embedding, Encoding, Metric, ModelInfo, Target, Text, TopK
from ._version import __version__

_SOME_FAILED = 3
# What a similarity table needs: the widths of a row's name and of one score with its borders.
_NAME_WIDTH, _SCORE_WIDTH = 20, 9


class _Commands(TyperGroup):
    """Turns an error of ours, or of a file, into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - Typer's own signature
        try:
            return super().invoke(ctx)
        except ConnectionFailedError as error:
            _complain(str(error))
            _say("Start one with `pixvec-server serve`, or name one by --target (and --tls-ca).")
        except AuthenticationError as error:
            _complain(f"{error} (--token-file, or the variable PIXVEC_TOKEN)")
        except (PixvecError, OSError) as error:
            _complain(str(error))
        raise typer.Exit(1)


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, add_completion=False)

ImagesArgument: TypeAlias = Annotated[
    list[str], typer.Argument(help="Files, folders, globs, URLs; `-` reads a path a line from stdin.")
]
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
TimeoutOption: TypeAlias = Annotated[float, typer.Option(help="Seconds for each request.", min=0.001)]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Images in, vectors out: a client of a pixvec server."""
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def embed(
    paths: ImagesArgument,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="FILE.npy (FILE.json goes beside it) or FILE.npz.")
    ] = None,
    target: TargetOption = "localhost:50051",
    model: ModelOption = "",
    output_name: Annotated[str, typer.Option(help="Output of the model.")] = "embedding",
    batch_size: Annotated[int, typer.Option(help="Images of one request, at most.", min=1)] = 32,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Unit length; default: the model's.")
    ] = None,
    encoding: Annotated[str, typer.Option(help="float32, float16, bfloat16, int8 or binary.")] = "float32",
    dimensions: Annotated[
        int | None, typer.Option(help="Cut the vectors to one of the model's sizes.", min=1)
    ] = None,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Embed images and save their vectors.

    The vectors are those of the items of FILE.json that are ok, in their order.

    Exit code: 0 every image worked, 3 some failed, 1 none worked.
    """
    if output and (reason := why_unwritable(output)):
        raise typer.BadParameter(reason, param_hint="--output")
    names = _expand(paths)
    wanted = Target(model, output_name, dimensions, normalize, cast("Encoding", encoding))
    started = time.perf_counter()
    with _client(target, tls_ca, token_file, timeout) as client:
        harvest = _embed_all(client, names, wanted, batch_size)
    if output is not None and harvest.embeddings:
        harvest.save(output)
    _report(harvest, output, time.perf_counter() - started, as_json=as_json)
    if harvest.failures:
        raise typer.Exit(_SOME_FAILED if harvest.embeddings else 1)


@app.command()
def similarity(
    images: ImagesArgument,
    *,
    target: TargetOption = "localhost:50051",
    model: ModelOption = "",
    text: Annotated[
        list[str] | None, typer.Option(help="Rank the images by a sentence instead; repeatable.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="Name of the model's prompt for the sentences.")] = "",
    metric: Annotated[str, typer.Option(help="cosine, dot or euclidean.")] = "cosine",
    top_k: Annotated[int | None, typer.Option(help="Only this many nearest of each.", min=1)] = None,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Compare every image with every other, or with sentences.

    More images than fit on the screen: the nearest five of each. --json has every score.
    """
    names = _expand(images)
    with _client(target, tls_ca, token_file, timeout) as client:
        outcomes = client.embed_batch_full(names, targets=[Target(model)])
        embeddings = [_embedding(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]
        chosen, k = cast("Metric", metric), top_k
        if text:
            texts = [Text(sentence, prompt) for sentence in text]
            ranked = client.similarity(
                texts, embeddings, metric=chosen, model=model, top_k=k or len(embeddings)
            )
            _print_nearest(text, ranked, names, as_json=as_json)
            return
        if k is None and not as_json and len(names) > _columns_that_fit():
            k = 5
        if k is None:
            scores = client.similarity(embeddings, embeddings, metric=chosen, model=model)
            _print_scores(names, scores, metric, as_json=as_json)
        else:
            nearest = client.similarity(embeddings, embeddings, metric=chosen, model=model, top_k=k)
            _print_nearest(names, nearest, names, as_json=as_json)


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="Name or alias of one model; all by default.")] = "",
    *,
    target: TargetOption = "localhost:50051",
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """List the models that a server serves."""
    with _client(target, tls_ca, token_file, timeout) as client:
        found = [client.model(name)] if name else client.models()
    if as_json:
        listed = [asdict(model) for model in found]
        print(json.dumps(listed[0] if name else listed, indent=2))
    elif name:
        _print_model(found[0])
    else:
        _print_models(found)


@app.command()
def health(
    *,
    service: Annotated[str, typer.Option(help="A service's full name; the whole server by default.")] = "",
    target: TargetOption = "localhost:50051",
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Ask a server whether it serves: exit code 0 when it does, else 1."""
    with _client(target, tls_ca, token_file, timeout) as client:
        state = client.health_state(service)
    print(json.dumps({"state": state}) if as_json else state)
    if state != "SERVING":
        raise typer.Exit(1)


def _client(target: str, tls_ca: Path | None, token_file: Path | None, timeout: float) -> Client:
    token = token_file.read_text().strip() if token_file else os.environ.get("PIXVEC_TOKEN")
    return Client(target, tls=tls_ca or False, token=token or None, timeout=timeout)


def _expand(given: Sequence[str]) -> list[str]:
    names = list(expand(given, sys.stdin))
    if not names:
        raise InputError(f"no images in {' '.join(given)}")
    return names


def _embed_all(client: Client, names: Sequence[str], wanted: Target, batch_size: int) -> Harvest:
    harvest = Harvest()
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("embedding", total=len(names))
        outcomes = client.embed_iter_full(names, targets=[wanted], batch_size=batch_size, in_flight=2)
        for name, outcome in zip(names, outcomes, strict=True):
            harvest.add(name, outcome)
            progress.advance(bar)
    return harvest


def _embedding(name: str, outcome: Embedded | PixvecError) -> Embedding:
    if isinstance(outcome, PixvecError):
        raise InputError(f"{name}: {without_path(outcome, name)}")
    return outcome.embeddings[0][0]


def _report(harvest: Harvest, output: Path | None, seconds: float, *, as_json: bool) -> None:
    if as_json:
        vectors = {} if output else {"vectors": harvest.vectors().tolist()}
        print(json.dumps(harvest.record() | vectors))
    elif output is None and harvest.embeddings:
        _print_vectors(harvest)
    failed: dict[str, list[str]] = defaultdict(list)
    for item in harvest.failures:
        failed[item["error"]].append(item["path"])
    for error, (first, *others) in failed.items():
        _complain(f"{first}{f' and {len(others)} others' if others else ''}: {error}")
    done, total = len(harvest.embeddings), len(harvest.items)
    place = f" to {output}" if output and done else ""
    _say(f"embedded {done} of {total} images{place} in {seconds:.2f} s ({done / seconds:.1f} images/s)")


def _print_vectors(harvest: Harvest) -> None:
    rows = (
        (path, "x".join(map(str, vector.shape)), " ".join(f"{x:g}" for x in vector.flat[:4]) + " …")
        for path, vector in zip(harvest.paths, harvest.vectors(), strict=True)
    )
    _table(("image", "shape", "vector"), rows)


def _print_scores(names: Sequence[str], scores: Array, metric: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"metric": metric, "images": names, "scores": scores.tolist()}))
        return
    low, high = float(np.min(scores)), float(np.max(scores))
    near = 1 if metric != "euclidean" else -1
    rows = (
        (label, *(_coloured(score, low, high, near) for score in row))
        for label, row in zip(_labels(names), scores, strict=True)
    )
    _table((metric, *_labels(names)), rows, markup=True, min_width=_SCORE_WIDTH - 3)


def _columns_that_fit() -> int:
    return (Console().width - _NAME_WIDTH) // _SCORE_WIDTH


def _labels(names: Sequence[str]) -> Sequence[str]:
    """Return the files' names without their folders, where those tell them apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _coloured(score: float, low: float, high: float, near: int) -> str:
    share = (score - low) / (high - low) if high > low else 1.0
    share = share if near > 0 else 1.0 - share
    colour = "green" if share > 2 / 3 else "yellow" if share > 1 / 3 else "red"
    return f"[{colour}]{score:.4f}[/]"


def _print_nearest(queries: Sequence[str], nearest: TopK, images: Sequence[str], *, as_json: bool) -> None:
    labels = images if as_json else _labels(images)
    lists = [
        [{"image": labels[i], "score": float(score)} for i, score in zip(row, scores, strict=True)]
        for row, scores in zip(*nearest, strict=True)
    ]
    if as_json:
        print(json.dumps(dict(zip(queries, lists, strict=True))))
        return
    rows = (
        (label, "\n".join(f"{hit['score']:.4f} {hit['image']}" for hit in hits))
        for label, hits in zip(_labels(queries) if queries is images else queries, lists, strict=True)
    )
    _table(("query", "nearest first"), rows)


def _print_models(found: Iterable[ModelInfo]) -> None:
    rows = (
        (
            model.name,
            " ".join(model.aliases),
            model.state,
            " ".join(f"{output.name}:{'x'.join(map(str, output.shape))}" for output in model.outputs),
            f"{model.backend} {model.device} {model.precision}",
            model.licence,
        )
        for model in found
    )
    _table(("model", "aliases", "state", "outputs", "runs on", "licence"), rows)


def _print_model(model: ModelInfo) -> None:
    rows = ((name, json.dumps(value)) for name, value in asdict(model).items() if name != "outputs")
    outputs = ((f"output {output.name}", json.dumps(asdict(output))) for output in model.outputs)
    _table(("field", "value"), (*rows, *outputs))


def _table(
    heads: Iterable[str], rows: Iterable[Sequence[str]], *, markup: bool = False, min_width: int | None = None
) -> None:
    table = Table()
    for head in heads:
        table.add_column(escape(head), overflow="fold", min_width=min_width)
    for first, *others in rows:
        table.add_row(escape(first), *(others if markup else map(escape, others)))
    Console(highlight=False).print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _complain(text: str) -> None:
    _say(f"error: {text}")
