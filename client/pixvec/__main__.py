"""The `pixvec` command, which needs more than the client: `pip install 'pixvec[cli]'`."""

import sys


def main() -> None:
    """Run the command, or say what to install when its extras are missing (exit code 2)."""
    try:
        from .cli import app  # noqa: PLC0415 - the command line is optional
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.stderr.write(f"pixvec needs {error.name}: pip install 'pixvec[cli]'\n")
        raise SystemExit(2) from error
    app()


if __name__ == "__main__":
    main()
