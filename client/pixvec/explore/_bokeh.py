"""What the page takes from Bokeh: its script, and palettes."""

from pathlib import Path

from pixvec._errors import InputError

# Without bokeh-gl: measured, drawing on a canvas starts sooner and needs no graphics card.
SCRIPTS = ("bokeh.min.js", "bokeh-api.min.js")


def scripts() -> dict[str, Path]:
    """Return the scripts by name. Raises InputError when Bokeh is not installed."""
    try:
        from bokeh.util.paths import bokehjs_path  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _missing() from error
    folder = bokehjs_path() / "js"
    return {name: folder / name for name in SCRIPTS}


def palette(name: str) -> list[str]:
    """Return the largest palette of a name, as "#rrggbb". Raises InputError when Bokeh is not installed."""
    try:
        from bokeh import palettes  # noqa: PLC0415 - optional
    except ImportError as error:
        raise _missing() from error
    found = getattr(palettes, name)
    return list(found[max(found)] if isinstance(found, dict) else found)


def _missing() -> InputError:
    return InputError("the explorer needs Bokeh: pip install 'pixvec[explore]'")
