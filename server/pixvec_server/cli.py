"""The `pixvec-server` command."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from pixvec_server import __version__, log
from pixvec_server import config as configuration
from pixvec_server.errors import SetupError

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
        typer.Option(help="NAME, or NAME=PATH of a bundle; repeatable, the first is the default."),
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
    decode: Annotated[str | None, typer.Option(help="exact, or fast for large JPEGs.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Items of a batch; 0: by device.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Bearer tokens, one a line.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve models until SIGTERM. Flags go before PIXVEC_SECTION__KEY, which goes before --config."""
    from pixvec_server.app import App

    flags: dict[str, Any] = {
        "model.names": model,
        "server.host": host,
        "server.port": port,
        "server.metrics_port": metrics_port,
        "model.backend": backend,
        "model.device": device,
        "model.precision": precision,
        "decode.mode": decode,
        "batch.max_size": max_batch,
        "server.tls_cert_file": tls_cert,
        "server.tls_key_file": tls_key,
        "server.token_file": token_file,
        "log.format": log_format,
        "log.level": log_level,
    }

    async def run() -> None:
        await App(settings).run()

    try:
        settings = configuration.load(config, flags)
        log.configure(settings.log.format, settings.log.level)
        asyncio.run(run())
    except SetupError as exc:
        _fail(exc)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the models that are known by name."""
    from pixvec_server import bundle, catalog, provision

    cache = configuration.cache_folder()
    rows = [
        {
            "name": preset.name,
            "aliases": list(preset.aliases),
            "input": f"{preset.height}x{preset.width}",
            "parameters": preset.parameters,
            "source": preset.source,
            "licence": preset.licence,
            "cached": (provision.cached(preset.name, cache) / bundle.MANIFEST).is_file(),
        }
        for preset in catalog.presets().values()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "input", "parameters", "source", "licence", "cached")
    for row in rows:
        cells = ("name", "input", "parameters", "source", "licence", "cached")
        table.add_row(*(str(row[cell]) for cell in cells))
    # Piped, a table keeps its lines whole.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A name of `pixvec-server models`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle; must not exist.")],
) -> None:
    """Make a bundle: the model as a graph that needs no torch, checked against torch before it is kept."""
    from pixvec_server import catalog

    try:
        preset = catalog.find(model)
        try:
            from pixvec_server.export import export as make
        except ModuleNotFoundError as exc:
            raise SetupError(f"export needs {exc.name}: pip install 'pixvec[torch,cpu]'") from exc
        made = make(preset, output, lambda text: print(text, file=sys.stderr))
    except SetupError as exc:
        _fail(exc)
    parity = made.manifest.parity
    checked = "not checked: install pixvec[cpu]" if parity is None else f"cosine {parity:.7f} at worst"
    print(f"{output}: {made.manifest.name}, agreement with torch {checked}")


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


def _fail(exc: SetupError) -> NoReturn:
    print(f"pixvec-server: {exc}", file=sys.stderr)
    raise typer.Exit(1)
