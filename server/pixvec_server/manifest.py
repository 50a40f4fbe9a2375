"""What bundle.json holds: a bundle's description of itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pixvec_server.spec import EMBEDDING, NAME, Frozen, ModelSpec, Preprocess

Precision = Literal["fp32", "bf16", "fp16"]


class Derived(Frozen):
    """An output that is computed after the graph: (x - mean) W of another one's vector as it is served."""

    of: str = EMBEDDING
    file: str = Field(description="npz with `mean` (n,) and `components` (dimensions, n), both float32")
    explained: float = Field(ge=0, le=1, description="share of the variance that the components keep")


class OutputRecord(Frozen):
    """One output: the shape of one item, its space, the sizes that it may be cut to (the full size first)."""

    space: str = Field(min_length=1)
    shape: tuple[int, ...] = Field(min_length=1)
    dimensions: tuple[int, ...] = ()
    normalized: bool = False
    int8_scales: tuple[float, ...] = ()
    derived: Derived | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.dimensions and (self.dimensions[0] != self.shape[0] or len(self.shape) != 1):
            raise ValueError("dimensions must begin with the full size of a vector")
        if self.int8_scales and len(self.int8_scales) != len(self.dimensions):
            raise ValueError("int8_scales must be as many as dimensions")
        return self


class TokenizerRecord(Frozen):
    """How a text becomes tokens: cleaned, cut by `file` (of tokenizers), between `begin` and `end`.

    `begin` and `end` are None where the file adds its own. `context` is the length of a row, `pad` fills it.
    """

    file: str
    clean: Literal["lower", "whitespace", "canonicalize", "none"]
    context: int = Field(ge=2, le=65536)
    begin: int | None = None
    end: int | None = None
    pad: int = 0
    specials: dict[str, int] = Field({}, description="words of a text that are tokens by themselves")


class TextRecord(Frozen):
    """The text tower: its graph, its tokenizer, and the outputs that it has too."""

    graph: str = "text.onnx"
    tokenizer: TokenizerRecord
    outputs: tuple[str, ...] = (EMBEDDING,)


class Verification(Frozen):
    """What `pixvec-server verify` found: our vectors against the upstream library's, over `count` inputs."""

    against: str
    count: int
    cosine_min: float
    cosine_mean: float
    relative_error: float = Field(description="of the vectors less their mean, Frobenius norm")
    overlap_at_10: float
    same_nearest: float
    passed: bool
    when: str
    build: str = ""


class FileRecord(Frozen):
    """One file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Frozen):
    """The contents of bundle.json."""

    format: Literal[2] = 2
    name: str = Field(pattern=NAME)
    aliases: tuple[str, ...] = ()
    source: str
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the canonical fp32 tensors")
    licence: str
    spec: ModelSpec | None = Field(None, description="what the torch backend builds it from again")
    preprocess: Preprocess
    outputs: dict[str, OutputRecord] = Field(min_length=1)
    precision: Precision = Field("fp32", description="of the graph's weights and arithmetic")
    graph: str = "image.onnx"
    text: TextRecord | None = None
    prompts: dict[str, str] = Field({}, description="name -> template; {} is the text")
    trained: bool = Field(True, description="False: random weights, whose vectors mean nothing")
    logit_scale: float | None = None
    logit_bias: float | None = None
    parity: float | None = Field(None, description="worst cosine of the graph to its source, over the probes")
    verified: dict[str, Verification] = Field({}, description="tower -> what verify found")
    files: dict[str, FileRecord] = Field(min_length=1)
    made_with: dict[str, str] = Field({}, description="library -> version")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if EMBEDDING not in self.outputs:
            raise ValueError("outputs must hold `embedding`")
        for name, record in self.outputs.items():
            if record.derived is not None and record.derived.of not in self.outputs:
                raise ValueError(f"outputs.{name} is derived of {record.derived.of!r}, which is not there")
        for needed in self._needed():
            if needed not in self.files:
                raise ValueError(f"{needed} is not among its files")
        return self

    def graph_of(self, tower: str) -> str:
        """Return the file of a tower's graph. Raises KeyError when there is no such tower."""
        if tower == "text" and self.text is not None:
            return self.text.graph
        return {"image": self.graph}[tower]

    @property
    def towers(self) -> tuple[str, ...]:
        """What it embeds: images, and maybe texts."""
        return ("image",) if self.text is None else ("image", "text")

    def _needed(self) -> list[str]:
        derived = [record.derived.file for record in self.outputs.values() if record.derived is not None]
        text = [] if self.text is None else [self.text.graph, self.text.tokenizer.file]
        return [self.graph, *text, *derived]
