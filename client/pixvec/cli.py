"""The `pixvec` command: embeds files, compares images, asks a server what it serves and how it is."""

import io
import json
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import typer
from rich.console import Console
from rich.text import Text as StyledText

from ._client import Client
from ._console import (
    INTERRUPTED,
    SOME_FAILED,
    Commands,
    JsonOption,
    ModelOption,
    TargetOption,
    TimeoutOption,
    TlsOption,
    TokenOption,
    complain,
    connect,
    print_table,
    progress_bar,
    say,
)
from ._dataset_commands import dataset, datasets_by_space
from ._errors import InputError
from ._omissions import LeftOut, lines
from ._rows import Row, Tally, row_of
from ._sinks import Held, Sink, saving, why_unwritable
from ._sources import Found, Unreadable, find
from ._types import Array, Embedding, Encoding, Metric, ModelInfo, Target, Text, TopK
from ._urls import escaped
from ._version import __version__

_TABLE_ROWS = 20
# What a similarity table needs: the widths of a row's name and of one score with its borders.
_NAME_WIDTH, _SCORE_WIDTH = 20, 9


class Priority(StrEnum):
    """The lane of a call; see Client."""

    interactive = "interactive"
    bulk = "bulk"


app = typer.Typer(cls=Commands, pretty_exceptions_enable=False, add_completion=False)
compat = typer.Typer(help="Commands of other systems, for scripts that move here.", no_args_is_help=True)
app.add_typer(dataset, name="dataset")
app.add_typer(compat, name="compat")

ImagesArgument: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs, URLs, tar archives; `-` reads a path or URL a line from stdin."
    ),
]


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
        Path | None,
        typer.Option(
            "--output", "-o", help="FILE.npy (FILE.json goes beside it), .npz, .parquet, .csv or .jsonl."
        ),
    ] = None,
    target: TargetOption = "localhost:50051",
    model: ModelOption = "",
    output_name: Annotated[str, typer.Option(help="Output of the model.")] = "embedding",
    batch_size: Annotated[int, typer.Option(help="Images of one request, at most.", min=1)] = 32,
    in_flight: Annotated[
        int | None,
        typer.Option(help="Requests under way at a time; as many as the server can use by default.", min=1),
    ] = None,
    max_side: Annotated[
        int | None,
        typer.Option(help="Make images with a longer side smaller before they are sent.", min=1),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Unit length; default: the model's.")
    ] = None,
    encoding: Annotated[Encoding, typer.Option(help="Form of the numbers.")] = "float32",
    dimensions: Annotated[
        int | None, typer.Option(help="Cut the vectors to one of the model's sizes.", min=1)
    ] = None,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    tenant: Annotated[
        str, typer.Option(help="Whose work it is, for the server's log.", show_default=False)
    ] = "",
    priority: Annotated[
        Priority, typer.Option(help="The lane that the server counts it in.")
    ] = Priority.bulk,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Embed images and save their vectors, each with its image's name and what made it.

    A bad image stops nothing: it is listed at the end, and in the file. Files that are left out, such as
    those without an image's suffix, are counted at the end, by reason; they do not change the exit code.

    Exit code: 0 every image worked, 3 some failed, 1 none worked or none was found, 130 interrupted.
    """
    if output and (reason := why_unwritable(output)):
        raise typer.BadParameter(reason, param_hint="--output")
    found = _find(paths)
    wanted = Target(model, output_name, dimensions, normalize, encoding)
    tally, held = Tally(), Held(None if as_json else _TABLE_ROWS)
    started = time.perf_counter()
    how = {"tenant": tenant or None, "priority": priority.value, "max_side": max_side}
    client = connect(target, tls_ca, token_file, timeout, **how)
    try:
        with client, saving(output) if output else nullcontext(held) as sink:
            rows = _rows(client, found, targets=[wanted], batch_size=batch_size, in_flight=in_flight)
            _harvest(rows, found.total, sink, tally)
    except KeyboardInterrupt:
        unwritten = f", {output} is not written" if output else ""
        complain(f"interrupted after {tally.total} images{unwritten}")
        raise typer.Exit(INTERRUPTED) from None
    left_out = found.omissions.all()
    _report(tally, held, output, time.perf_counter() - started, left_out, as_json=as_json)
    if tally.failed:
        raise typer.Exit(SOME_FAILED if tally.done else 1)


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
    metric: Annotated[Metric, typer.Option(help="How vectors are compared.")] = "cosine",
    top_k: Annotated[int | None, typer.Option(help="Only this many nearest of each.", min=1)] = None,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Compare every image with every other, or with sentences.

    More images than fit on the screen: the nearest five of each. --json has every score.
    """
    found = _find(images)
    with connect(target, tls_ca, token_file, timeout) as client:
        rows = list(map(_vector_row, _rows(client, found, targets=[Target(model)])))
        for line in lines(found.omissions.all()):
            say(line)
        names, embeddings = [path for path, _ in rows], [embedding for _, embedding in rows]
        chosen, k = metric, top_k
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
            _print_scores(names, scores, chosen, as_json=as_json)
        else:
            nearest = client.similarity(embeddings, embeddings, metric=chosen, model=model, top_k=k)
            _print_nearest(names, nearest, names, as_json=as_json)


@app.command()
def profile(
    image: Annotated[str, typer.Argument(help="A file or URL.")],
    *,
    calls: Annotated[int, typer.Option(help="Calls, one after the other.", min=1)] = 20,
    target: TargetOption = "localhost:50051",
    model: ModelOption = "",
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Embed one image some times and show where a call's time goes, at the client and at the server."""
    with connect(target, tls_ca, token_file, timeout) as client:
        measured = client.profile(image, calls=calls, model=model)
    print(json.dumps(asdict(measured)) if as_json else measured)


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="Name or alias of one model; all by default.")] = "",
    *,
    datasets: Annotated[
        Path | None,
        typer.Option(
            "--datasets", help="Say which datasets in this folder each model has made.", metavar="DIR"
        ),
    ] = None,
    target: TargetOption = "localhost:50051",
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """List the models that a server serves."""
    made = datasets_by_space(datasets) if datasets else {}
    with connect(target, tls_ca, token_file, timeout) as client:
        found = [client.model(name)] if name else client.models()
    if as_json:
        more = [{"datasets": _made_by(model, made)} if datasets else {} for model in found]
        listed = [asdict(model) | extra for model, extra in zip(found, more, strict=True)]
        print(json.dumps(listed[0] if name else listed, indent=2))
    elif name:
        _print_model(found[0], _made_by(found[0], made))
    else:
        _print_models(found, {model.name: _made_by(model, made) for model in found} if datasets else {})


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
    with connect(target, tls_ca, token_file, timeout) as client:
        state = client.health_state(service)
    print(json.dumps({"state": state}) if as_json else state)
    if state != "SERVING":
        raise typer.Exit(1)


@compat.command(
    "generate-embedding",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def generate_embedding(context: typer.Context) -> None:
    """Embed a csv or a pair of .npy files, with the flags of transfer-learning's script: -h lists them."""
    from .compat import transfer

    raise typer.Exit(transfer.main(context.args, progress_bar))


def _find(given: Sequence[str]) -> Found:
    if "" in given:
        raise typer.BadParameter("a word is empty: name a file, a folder, a URL or an archive")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a path is any bytes
    return find(given, sys.stdin or ())  # None where it is closed


def _rows(client: Client, found: Found, **how: Any) -> Generator[Row, None, None]:  # noqa: ANN401 - embed_iter_full's
    """Yield what comes of each image; of those under way only the names are held here."""
    names: deque[str] = deque()

    def images() -> Iterator[str | bytes | Path | Unreadable]:
        for item in found.items:
            names.append(item.name)
            yield item.image

    with closing(client.embed_iter_full(images(), **how)) as outcomes:
        for outcome in outcomes:
            yield row_of(names.popleft(), outcome)


def _harvest(rows: Generator[Row, None, None], total: int | None, sink: Sink, tally: Tally) -> None:
    with closing(rows), progress_bar("embedding") as tell:
        for row in rows:
            sink.add(row)
            tally.add(row)
            tell(tally.total, total)


def _vector_row(row: Row) -> tuple[str, Embedding]:
    if row.embedding is None:
        raise InputError(f"{row.path}: {row.error}")
    return row.path, row.embedding


def _report(
    tally: Tally,
    held: Held,
    output: Path | None,
    seconds: float,
    left_out: Sequence[LeftOut],
    *,
    as_json: bool,
) -> None:
    place = output if tally.done else None
    if as_json:
        vectors = {} if output else {"items": held.items, "vectors": held.vectors().tolist()}
        omitted = {"left_out": [asdict(one) for one in left_out]}
        print(json.dumps(tally.record() | omitted | {"output": place and str(place)} | vectors))
    elif output is None and tally.done:
        _print_vectors(held.rows, tally.done - len(held.rows))
    for complaint in tally.complaints():
        complain(complaint)
    for line in lines(left_out):
        say(line)
    done, total = tally.done, tally.total
    to = f" to {place}" if place else ""
    say(f"embedded {done} of {total} images{to} in {seconds:.2f} s ({done / seconds:.1f} images/s)")


def _print_vectors(rows: Iterable[Row], more: int) -> None:
    vectors = ((row.path, row.embedding.vector) for row in rows if row.embedding)
    shown = (
        (path, "x".join(map(str, vector.shape)), " ".join(f"{x:g}" for x in vector.flat[:4]) + " …")
        for path, vector in vectors
    )
    print_table(("image", "shape", "vector"), shown)
    if more:
        print(f"and {more} more: -o FILE keeps all")


def _print_scores(names: Sequence[str], scores: Array, metric: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"metric": metric, "images": names, "scores": scores.tolist()}))
        return
    low, high = float(np.min(scores)), float(np.max(scores))
    near = 1 if metric != "euclidean" else -1
    rows: Iterable[list[str | StyledText]] = (
        [label, *(_colored(score, low, high, near) for score in row)]
        for label, row in zip(_labels(names), scores, strict=True)
    )
    print_table((metric, *_labels(names)), rows, min_width=_SCORE_WIDTH - 3)


def _columns_that_fit() -> int:
    return (Console().width - _NAME_WIDTH) // _SCORE_WIDTH


def _labels(names: Sequence[str]) -> Sequence[str]:
    """Return the files' names without their folders, where those tell them apart."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _colored(score: float, low: float, high: float, near: int) -> StyledText:
    share = (score - low) / (high - low) if high > low else 1.0
    share = share if near > 0 else 1.0 - share
    color = "green" if share > 2 / 3 else "yellow" if share > 1 / 3 else "red"
    return StyledText(f"{score:.4f}", color)


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
        (label, StyledText("\n".join(f"{hit['score']:.4f} {escaped(hit['image'])}" for hit in hits)))
        for label, hits in zip(_labels(queries) if queries is images else queries, lists, strict=True)
    )
    print_table(("query", "nearest first"), rows)


def _made_by(model: ModelInfo, datasets: Mapping[str, Sequence[str]]) -> list[str]:
    return [folder for output in model.outputs for folder in datasets.get(output.space, ())]


def _print_models(found: Iterable[ModelInfo], datasets: Mapping[str, Sequence[str]]) -> None:
    rows = (
        (
            model.name,
            " ".join(model.aliases),
            model.state,
            " ".join(f"{output.name}:{'x'.join(map(str, output.shape))}" for output in model.outputs),
            f"{model.backend} {model.device} {model.precision}",
            model.licence,
            *([", ".join(datasets[model.name])] if datasets else []),
        )
        for model in found
    )
    more = ("datasets",) if datasets else ()
    print_table(("model", "aliases", "state", "outputs", "runs on", "licence", *more), rows)


def _print_model(model: ModelInfo, datasets: Sequence[str]) -> None:
    rows = ((name, json.dumps(value)) for name, value in asdict(model).items() if name != "outputs")
    outputs = ((f"output {output.name}", json.dumps(asdict(output))) for output in model.outputs)
    print_table(("field", "value"), (*rows, *outputs, *(("dataset", folder) for folder in datasets)))
