"""Entry of the `pixvec-server` command and of `python -m pixvec_server`."""

import sys


def main() -> None:
    """Run the command line; without the [server] extra, say what to install and exit with 2."""
    try:
        from pixvec_server.cli import app  # noqa: PLC0415 - the message below needs the import to fail here
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("pixvec"):
            raise
        sys.stderr.write(f"pixvec-server needs {exc.name}: pip install 'pixvec[server,cpu]'\n")
        raise SystemExit(2) from exc
    app()


if __name__ == "__main__":
    main()
