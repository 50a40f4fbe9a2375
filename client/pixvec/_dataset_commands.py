"""`pixvec dataset`: a folder of vectors that is kept up to date with the images that they are of."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ._console import (
    INTERRUPTED,
    SOME_FAILED,
    JsonOption,
    ModelOption,
    TimeoutOption,
    TlsOption,
    TokenOption,
    complain,
    connect,
    print_table,
    progress_bar,
    say,
)
from ._errors import InputError, PixvecError
from ._omissions import lines
from ._urls import shown

if TYPE_CHECKING:
    from .dataset import Counts

_SHOWN_FAILURES = 20

dataset = typer.Typer(help="Embed a whole dataset once, and keep it fresh.", no_args_is_help=True)


class Taken(StrEnum):
    """What is embedded of a source."""

    images = "images"
    objects = "objects"
    both = "both"


@dataset.command("embed")
def embed(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of images (a folder's name is its images' class), a .csv or .tsv of label and "
            "path, a pair of .npy files, a COCO .json, a Pascal VOC or Supervisely project, a .tar or "
            ".parquet file."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the dataset; made if it is not there.")],
    target: Annotated[
        str,
        typer.Option(
            "--target",
            envvar="PIXVEC_TARGET",
            metavar="HOST:PORT",
            help="The server; without one, a server is started here for the run.",
        ),
    ] = "",
    model: ModelOption = "",
    output_name: Annotated[str, typer.Option(help="Output of the model.")] = "embedding",
    dimensions: Annotated[
        int | None, typer.Option(help="Cut the vectors to one of the model's sizes.", min=1)
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Unit length; default: the model's.")
    ] = None,
    instances: Annotated[
        Taken, typer.Option(help="Whole images, annotated objects, or both.")
    ] = Taken.images,
    expand_px: Annotated[
        int, typer.Option(help="Grow objects' boxes by so many pixels on all sides; negative: shrink.")
    ] = 0,
    kind: Annotated[str, typer.Option(help="The source's form, where its name does not tell.")] = "",
    path_column: Annotated[str | None, typer.Option(help="Of a table: name or index.")] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Of a table: name or index; of a Supervisely project: a tag.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a Supervisely project's datasets, or of VOC's ImageSets/Main: only this one; repeatable."
        ),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Of images in flat rows of a .npy file.", min=1)] = None,
    width: Annotated[int | None, typer.Option(help="Of images in flat rows of a .npy file.", min=1)] = None,
    channels: Annotated[int, typer.Option(help="Of images in flat rows of a .npy file.", min=1)] = 3,
    strict: Annotated[
        bool, typer.Option("--strict", help="Know a changed file by its content, not by size and time.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Compute everything anew.")] = False,
    allow_build_drift: Annotated[
        bool, typer.Option("--allow-build-drift", help="Keep what another build of the same space has made.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of the server started here: cpu or cuda[:INDEX].")] = "",
    weights: Annotated[
        str, typer.Option(help="Of the server started here: none for seeded random ones, or a checkpoint.")
    ] = "",
    batch_size: Annotated[int, typer.Option(help="Images of one request, at most.", min=1)] = 32,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Embed what is new or changed in a source; run it again whenever the source has changed.

    Files and annotations that are left out are counted at the end, by reason; they do not change the exit
    code, but for --instances objects where no object is left.

    Exit code: 0 every image worked, 3 some failed, 1 none worked, 130 interrupted (the next run goes on).
    """
    from . import dataset as datasets

    if not source:
        raise typer.BadParameter("it is empty: name a folder or a file", param_hint="SOURCE")
    if target and (device or weights):
        given = "--device" if device else "--weights"
        raise InputError(f"{given} is of a server that is started here, and --target names one: {target}")
    settings = datasets.EmbedSettings(
        model=model if target else "",  # a server that is started here has only that one
        output=output_name,
        dimensions=dimensions,
        normalize=normalize,
        instances=instances.value,
        expand_px=expand_px,
        force=force,
        allow_build_drift=allow_build_drift,
        batch_size=batch_size,
    )
    options = datasets.SourceOptions(
        strict=strict,
        kind=kind,
        path_column=path_column,
        label_column=label_column,
        splits=tuple(split or ()),
        height=height,
        width=width,
        channels=channels,
    )
    opened = datasets.open_source(source, options)
    try:
        with ExitStack() as stack:
            if not target:
                say("starting a server for this run")
                target = stack.enter_context(datasets.local_server(model, device, weights))
            client = stack.enter_context(connect(target, tls_ca, token_file, timeout, priority="bulk"))
            progress = stack.enter_context(progress_bar("embedding"))
            counts = datasets.embed(opened, out, client, settings, progress=progress)
    except KeyboardInterrupt:
        complain(f"interrupted: {_kept(out)}")
        raise typer.Exit(INTERRUPTED) from None
    except PixvecError:
        if any(out.glob("parts/*")):
            say(_kept(out))
        raise
    _report(counts, out, as_json=as_json)


def _kept(out: Path) -> str:
    return f"what was computed is kept in {out}, and the same command goes on from there"


def _named(image: str, marked: str | None) -> str:
    """Return how a row is named to people: by its image, and its object if it is one."""
    return shown(image) if marked is None else f"{shown(image)}, object {shown(marked)}"


FolderArgument: TypeAlias = Annotated[Path, typer.Argument(help="Folder of a dataset.", metavar="DIR")]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Of whatever is drawn by chance.", min=0)]


@dataset.command("project")
def project(
    folder: FolderArgument,
    *,
    method: Annotated[str, typer.Option(help="umap, pca, tsne, pca-umap or pca-tsne.")] = "umap",
    metric: Annotated[str, typer.Option(help="euclidean or cosine; PCA ignores it.")] = "euclidean",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Lay a dataset out as a map, and keep it beside the vectors as long as they are the same."""
    from . import dataset as datasets

    xy = datasets.project(folder, method, metric, seed=seed, progress=say)
    say(f"{folder}: a map of {len(xy)} rows by {method}")
    if as_json:
        print(json.dumps({"method": method, "metric": metric, "rows": len(xy)}))


@dataset.command("analyse")
def analyse(
    folder: FolderArgument,
    *,
    k: Annotated[int, typer.Option("-k", help="Nearest neighbours of each row.", min=1)] = 10,
    metric: Annotated[str, typer.Option(help="cosine or euclidean.")] = "cosine",
    duplicates_below: Annotated[
        float, typer.Option(help="Rows no farther apart are near copies.", min=0)
    ] = 0.02,
    clusters: Annotated[
        int | None, typer.Option(help="How many; by default as many as there are dense places.", min=1)
    ] = None,
    seed: SeedOption = 0,
    show: Annotated[int, typer.Option(help="Rows of each list.", min=0)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Find outliers, near copies, doubtful classes and clusters; all of it goes into analysis.parquet."""
    from . import dataset as datasets

    found = datasets.analyse(
        folder,
        k=k,
        metric=metric,
        duplicates_below=duplicates_below,
        clusters=clusters,
        seed=seed,
        progress=say,
    )
    told = datasets.summary(datasets.read(folder).rows, found, show)
    if as_json:
        print(json.dumps(told))
        return
    for name in ("outliers", "doubtful_labels"):
        if rows := [
            (_named(one["id"], one["object"]), one["class"] or "", f"{one['score']:.3f}")
            for one in told[name]
        ]:
            print_table((name.replace("_", " "), "class", "score"), rows)
    if told["near_copies"]:
        groups = [[_named(one["id"], one["object"]) for one in group] for group in told["near_copies"]]
        print_table(("near copies", "of"), ((", ".join(others), first) for first, *others in groups))
    say(
        f"{told['rows']} rows; {told['duplicate_groups']} groups of near copies hold {told['duplicates']} "
        f"rows; {told['clusters']} clusters, {told['unclustered']} rows in none"
    )


@dataset.command("evaluate")
def evaluate(
    folder: FolderArgument,
    *,
    against: Annotated[
        Path | None, typer.Option(help="Another dataset of the same images, to compare neighbourhoods with.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours that vote, and that are compared.", min=1)] = 5,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve and the scores: a .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well the vectors keep the classes together, by the classes that the dataset has."""
    from . import dataset as datasets

    if against is not None:
        told = datasets.compare(folder, against, k=k)
    else:
        report = datasets.evaluate(folder, k=k, progress=say)
        told = report.as_dict()
        if plot is not None:
            datasets.evaluation.plot(report, plot)
    if as_json:
        print(json.dumps(told))
        return
    print_table(
        ("measure", "value"),
        ((name, f"{value:.6f}" if isinstance(value, float) else str(value)) for name, value in told.items()),
    )


@dataset.command("export")
def export(
    folder: FolderArgument,
    *,
    form: Annotated[str, typer.Option("--format", help="npy, csv, npys, tensorboard, atlas or supervisely.")],
    out: Annotated[Path, typer.Option("--out", help="File, folder, or for npy the files' common beginning.")],
) -> None:
    """Write a dataset in the form of another program."""
    from . import dataset as datasets

    with progress_bar("writing rows") as progress:
        files = datasets.export(folder, form, out, progress=progress)
    say(f"wrote {len(files)} files: {', '.join(map(str, files[:4]))}{' …' if len(files) > 4 else ''}")


@dataset.command("explore")
def explore(
    folder: FolderArgument,
    *,
    page: Annotated[
        Path | None,
        typer.Option("--export", help="Write the page into this folder, to be opened from disk, and stop."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            envvar="PIXVEC_TARGET",
            metavar="HOST:PORT",
            help="The server that embeds images and texts to search by; without one there is no search.",
        ),
    ] = "",
    fetch: Annotated[
        bool, typer.Option("--fetch/--no-fetch", help="Get the images that are known by a URL.")
    ] = True,
    port: Annotated[
        int, typer.Option(help="Of the page, on loopback; 0: any free one.", min=0, max=65_535)
    ] = 0,
    tls_ca: TlsOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 60.0,
) -> None:
    """Show a dataset as a map of its images in a browser: every map that was made, else one by PCA."""
    from . import dataset as datasets
    from . import explore as explorers

    held, maps, columns = datasets.shown(folder)
    if page is not None:
        with progress_bar("writing images") as progress:
            built = explorers.build(held, maps, columns, page, fetch=fetch, progress=progress)
        say(f"open {built.page}")
        if built.missing:
            first, why = next(iter(built.missing.items()))
            say(f"{len(built.missing)} images cannot be read, and are not in it; {shown(first)}: {why}")
            raise typer.Exit(SOME_FAILED)
        return
    with ExitStack() as stack:
        client = stack.enter_context(connect(target, tls_ca, token_file, timeout)) if target else None
        explorer = stack.enter_context(
            explorers.serve(held, maps, columns, port=port, client=client, fetch=fetch)
        )
        say(f"open {explorer.url} (Ctrl-C ends it)")
        try:
            explorer.wait()
        except KeyboardInterrupt:
            say("ended")


def datasets_by_space(folder: Path) -> dict[str, list[str]]:
    """Return the datasets that a folder is or holds, by the space of their vectors. Raises InputError."""
    found: dict[str, list[str]] = {}
    for file in sorted([folder / "dataset.json", *folder.glob("*/dataset.json")]):
        if file.is_file():
            try:
                space = json.loads(file.read_text(encoding="utf-8"))["origin"]["space"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{file} is no description of a dataset: {error!r}") from error
            found.setdefault(space, []).append(str(file.parent))
    return found


def _report(counts: "Counts", out: Path, *, as_json: bool) -> None:
    from .dataset import read

    if as_json:
        print(json.dumps(asdict(counts)))
    elif not (counts.embedded or counts.removed or counts.failed):
        say(f"{out} is up to date: {counts.total} rows, nothing to embed")
    else:
        say(
            f"{out}: {counts.total} rows; embedded {counts.embedded}, reused {counts.reused}, "
            f"removed {counts.removed}, failed {counts.failed}"
        )
    if counts.skipped:
        say(f"{counts.skipped} objects of under 9 square pixels, or outside of their image, were skipped")
    for line in lines(counts.left_out):
        say(line)
    if counts.failed:
        failed = read(out).failed
        for row in failed[:_SHOWN_FAILURES]:
            complain(f"{_named(row.id, row.object)}: {row.error}")
        if len(failed) > _SHOWN_FAILURES:
            say(f"and {len(failed) - _SHOWN_FAILURES} more: the rows of {out} whose status is failed")
        raise typer.Exit(SOME_FAILED if counts.failed < counts.total else 1)
