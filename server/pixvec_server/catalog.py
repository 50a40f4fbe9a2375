"""Models by name: what `catalog.toml` says of each, and names that only timm knows."""

from __future__ import annotations

import difflib
import fnmatch
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from pixvec_server.errors import CatalogError
from pixvec_server.spec import NAME, ModelSpec, Preprocess, Profile

Table: TypeAlias = dict[str, Any]
_INPUT, _PROFILE = "input", "profile"


@cache
def _tables() -> Table:
    tables: Table = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
    return tables


@cache
def profiles() -> dict[str, Profile]:
    """Return every preprocessing profile by name."""
    return {name: Profile(**table) for name, table in _tables()["profile"].items()}


@cache
def presets() -> dict[str, ModelSpec]:
    """Return every model of the catalogue by its own name."""
    return {name: _preset(name, table) for name, table in _tables()["model"].items()}


def profile_of(name: str) -> str:
    """Return the name of the profile that a preset is written with."""
    return str(_tables()["model"][name][_PROFILE])


def matching(pattern: str) -> list[ModelSpec]:
    """Return the presets whose name or alias matches a shell pattern, in any case."""
    wanted = pattern.lower()
    return [
        preset
        for preset in presets().values()
        if any(fnmatch.fnmatchcase(name.lower(), wanted) for name in (preset.name, *preset.aliases))
    ]


def find(name: str) -> ModelSpec:
    """Return a preset by name or alias, in any case. Raises CatalogError that suggests the nearest name."""
    found = _names().get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), _names(), n=6, cutoff=0.4)
        close = list(dict.fromkeys(_names()[alias] for alias in near))[:3]
        hint = f"did you mean {', '.join(close)}?" if close else "`pixvec-server models` lists all"
        raise CatalogError(f"no model is called {name!r}: {hint} (any other of timm is timm:NAME.TAG)")
    return presets()[found]


def of_source(source: str, name: str = "") -> ModelSpec:
    """Return the spec of a source that need not be listed; a listed one brings what is known of it.

    Raises CatalogError for a name or source that is malformed.
    """
    listed = next((p for p in presets().values() if p.source == source), None)
    given = name.lower() or (listed.name if listed else slug(source))
    base = listed.model_dump(exclude={"aliases"}) if listed else {"source": source}
    return checked({**base, "name": given}, f"{name}={source}" if name else source)


def changed(spec: ModelSpec, changes: Table, where: str) -> ModelSpec:
    """Return a spec with settings applied; `profile` keeps the size, `input` changes it.

    Raises CatalogError that names the setting.
    """
    table = {**spec.model_dump(), **{k: v for k, v in changes.items() if k not in (_PROFILE, _INPUT)}}
    if {_PROFILE, _INPUT} & changes.keys():
        table["preprocess"] = _with_profile(spec, changes, where)
    return checked(table, where)


def profile(name: str) -> Profile:
    """Return a profile by name. Raises CatalogError that suggests the nearest."""
    if name not in profiles():
        near = difflib.get_close_matches(name, profiles(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(profiles())}"
        raise CatalogError(f"no profile is called {name!r}: {hint}")
    return profiles()[name]


def checked(table: Table, where: str) -> ModelSpec:
    """Return the spec that a table describes. Raises CatalogError that names the key at fault."""
    try:
        return ModelSpec(**table)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(map(str, first["loc"])) or "spec"
        message = first["msg"].removeprefix("Value error, ")
        raise CatalogError(f"{where}: {key} = {first.get('input')!r}: {message}") from exc


def slug(source: str) -> str:
    """Make a name that is allowed of a source: `timm:vit_tiny_patch16_224.augreg_in21k` without its kind."""
    words = re.sub(r"[^a-z0-9._-]+", "-", source.partition(":")[2].lower()).strip("-._")[-64:].lstrip("-._")
    if not re.match(NAME, words):
        raise CatalogError(f"{source!r}: no name can be made of it: give NAME={source}")
    return words


def _preset(name: str, table: Table) -> ModelSpec:
    fields = {
        key: value for key, value in table.items() if key not in (_INPUT, _PROFILE, *Profile.model_fields)
    }
    own = {key: value for key, value in table.items() if key in Profile.model_fields}
    base = profiles()[table[_PROFILE]].model_dump() | own
    size = {"height": table[_INPUT], "width": table[_INPUT]}
    return ModelSpec(name=name, preprocess=Preprocess(**base, **size), **fields)


def _with_profile(spec: ModelSpec, changes: Table, where: str) -> Table:
    size = int(changes.get(_INPUT) or (spec.preprocess.height if spec.preprocess else 0))
    if not size:
        raise CatalogError(f"{where}: a profile needs the input's side in pixels: set input")
    if _PROFILE in changes:
        base = profile(changes[_PROFILE]).model_dump()
    else:
        assert spec.preprocess is not None
        base = spec.preprocess.model_dump(exclude={"height", "width", "short_side"})
    return {**base, "height": size, "width": size}


@cache
def _names() -> dict[str, str]:
    """Every name and alias in lower case, and the preset that it leads to."""
    names = {name.lower(): name for name in presets()}
    for name, preset in presets().items():
        for alias in preset.aliases:
            if names.setdefault(alias.lower(), name) != name:
                raise CatalogError(f"catalog.toml: {alias} leads to {names[alias.lower()]} and to {name}")
    return names
