"""Models by name: what `catalog.toml` says of each."""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pixvec_server.bundle import PreprocessRecord
from pixvec_server.errors import CatalogError


class Preset(BaseModel):
    """One model of the catalogue. `mean` and `std` are per channel, on a 0 to 1 scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    source: str
    architecture: str
    licence: str
    parameters: int = Field(gt=0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    height: int
    width: int
    crop: float
    interpolation: str

    @property
    def preprocess(self) -> PreprocessRecord:
        """What happens to an image before the graph."""
        return PreprocessRecord.model_validate(
            {key: getattr(self, key) for key in ("height", "width", "crop", "interpolation")}
        )


@cache
def presets() -> dict[str, Preset]:
    """Return every model of the catalogue by its own name."""
    tables = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
    return {name: Preset(name=name, **table) for name, table in tables.items()}


def find(name: str) -> Preset:
    """Return a model by name or alias, in any case. Raises CatalogError that suggests the nearest name."""
    wanted = name.lower()
    for preset in presets().values():
        if wanted in (preset.name, *preset.aliases):
            return preset
    near = difflib.get_close_matches(wanted, presets(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(presets())}"
    raise CatalogError(f"no model is called {name!r}: {hint}")
