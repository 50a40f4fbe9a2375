"""Every setting of the server: default < TOML file < PIXVEC_SECTION__KEY < flags.

Only environment names with a double underscore are read: a Kubernetes Service called `pixvec` puts
`PIXVEC_PORT=tcp://…` into every pod. The exceptions are `PIXVEC_CACHE` and, for tests, `PIXVEC_TEST_CPU`. An
unknown key is an error with a suggestion. `pixvec-server config` prints the reference, made from the fields
below.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pixvec_server.errors import ConfigError
from pixvec_server.spec import Layer, Pool, TowerName

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

PREFIX = "PIXVEC_"
TEST_CPU = "PIXVEC_TEST_CPU"
DEFAULT_MODEL = "efficientnet_lite0"
Port = Annotated[int, Field(ge=0, le=65535)]
MiB = 1 << 20
# Followed by a port, gRPC reads these as a scheme: `unix:7` is a file.
_GRPC_SCHEMES = {"unix", "unix-abstract", "vsock", "dns", "ipv4", "ipv6"}
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TABLES = "models"  # the section that holds one table for each model


class Section(BaseModel):
    """One table of the configuration: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_null_byte(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file or a flag gives
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a null byte, which no path, address or name has")
        return value


class ServerSection(Section):
    """Where the server listens and how it stops."""

    host: str = Field("0.0.0.0", description="Address of the gRPC port.")  # noqa: S104 - a server in a pod
    port: Port = Field(50051, description="gRPC port. 0: any free one, see the log's `serving` line.")
    metrics_host: str = Field("0.0.0.0", description="Address of the metrics port.")  # noqa: S104 - as above
    metrics_port: Port = Field(9090, description="Prometheus port. 0: any free one.")
    open_inference: bool = Field(
        True,
        description="Answer the Open Inference Protocol (inference.GRPCInferenceService) on the same port: "
        "tritonclient, KServe, perf_analyzer.",
    )
    reflection: bool = Field(True, description="Answer gRPC reflection, so that grpcurl needs no proto file.")
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; turns TLS on.")
    tls_key_file: Path | None = Field(None, description="PEM private key of tls_cert_file.")
    token_file: Path | None = Field(
        None,
        description="Bearer tokens, one a line; `#` begins a comment line. Any of them opens every method. "
        "Health stays open.",
    )
    default_deadline_s: float = Field(
        30.0, gt=0, description="Deadline of a call, or of a stream's message, that brings none."
    )
    max_deadline_s: float = Field(300.0, gt=0, description="A longer deadline is cut to this.")
    send_margin_ms: float = Field(
        50.0,
        ge=0,
        description="EmbedBatch answers this long before its deadline, with what is done. "
        "Raise it on slow links.",
    )
    stream_window: int = Field(
        8, ge=1, description="Messages of one stream that are read but not yet answered and sent."
    )
    lame_duck_s: float = Field(
        5.0,
        ge=0,
        description="After SIGTERM: say NOT_SERVING and keep serving, until load balancers have noticed. "
        "Readiness period x failureThreshold + a few seconds in Kubernetes. 0: none.",
    )
    drain_s: float = Field(25.0, ge=0, description="After the lame duck: calls in hand get this long to end.")
    frontends: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that answer calls and decode, in front of one that runs the models. 0: one "
        "process does both. For devices that are faster than one Python process can feed "
        "(docs/operations.md). Linux only.",
    )

    @field_validator("host", "metrics_host")
    @classmethod
    def _host_is_an_address(cls, host: str) -> str:
        if host in _GRPC_SCHEMES or (not _HOST_NAME.fullmatch(host) and not _is_ip(host)):
            raise ValueError(
                "not an address of this host: give an IP address without brackets or a host name, and the "
                "port by its own setting"
            )
        return host

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port and self.port == self.metrics_port:
            raise ValueError(f"port and metrics_port are both {self.port}: give two ports")
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file come together: set both or neither")
        return self


class ModelSection(Section):
    """Which models are served, and on what."""

    names: tuple[str, ...] = Field(
        (),
        description="NAME of the catalogue, NAME=SOURCE or SOURCE (timm:…, open_clip:…, hf:…, file:…, "
        "wheel:… or the path of a bundle), each with ?key=value&… of [models.NAME]; the first is the "
        "default. None: those of [models.*], else efficientnet_lite0.",
    )
    load: Literal["start", "first_use"] = Field(
        "start", description="When a model comes into memory. first_use: its first caller waits for it."
    )
    idle_unload_s: float = Field(
        0.0,
        ge=0,
        description="Release a model that nobody used for this long; the next use loads it. 0: never.",
    )
    offline: bool = Field(False, description="Take weights from the hub's cache on this machine alone.")
    backend: str = Field(
        "auto",
        pattern=r"^(auto|onnx|openvino|torch|[\w.]+:\w+)$",
        description="Engine: auto, onnx, openvino, torch, or MODULE:CLASS of your own (docs/backends.md). "
        "auto: what `pixvec-server tune` found, else the first of a fixed order that is faithful here.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda or cuda:INDEX. auto: cuda when a device and its engine are here, else cpu.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the network. auto: that of the bundle, fp32 unless it was exported "
        "otherwise. bf16 on a CPU needs a processor that computes it (docs/backends.md).",
    )
    threads: int = Field(
        0, ge=0, description="Processors of the engine on a CPU. 0: those that the container may use."
    )
    cuda_graph: bool = Field(
        False,
        description="On CUDA, onnx and torch: capture the network once for each of the batch sizes 1, 2, 4 … "
        "batch.max_size and replay it; smaller batches are filled up. Saves launches, which small batches "
        "wait for; costs memory and start-up time, with onnx the weights once for each instance "
        "(docs/gpu.md).",
    )
    tensorrt: bool = Field(
        False,
        description="On CUDA, onnx: run the network by TensorRT, whose engine is built at the first start, "
        "in minutes, and kept in the cache folder. `build` names it: its vectors are not quite the same "
        "(docs/gpu.md).",
    )


class ModelSettings(Section):
    """One table [models.NAME]: what the catalogue or the source says, said otherwise."""

    source: str | None = Field(None, description="KIND:WHERE as in model.names, or a bundle's folder.")
    architecture: str | None = Field(None, description="timm's name, for a source that is weights alone.")
    weights: str | None = Field(
        None, description="pretrained; none (seeded random); or the path of a .safetensors or .pt checkpoint."
    )
    allow_pickle: bool | None = Field(
        None, description="Read .pt and the like, by the unpickler that runs no code."
    )
    layer: Layer | None = Field(None, description="Which vector is the embedding.")
    pool: Pool | None = Field(
        None, description="How `pooled` is made of the map; own: as the network does it."
    )
    projection: str | None = Field(
        None,
        description="Dimensions of a seeded random, untrained layer; or a checkpoint of weight and bias.",
    )
    normalize: bool | None = Field(
        None, description="Whether the embedding comes with length 1 unless asked."
    )
    profile: str | None = Field(None, description="A preprocessing profile of docs/models.md.")
    input: int | None = Field(None, ge=1, le=4096, description="Side of the network's input in pixels.")
    towers: tuple[TowerName, ...] | None = Field(None, description="image, or image and text.")
    load: Literal["start", "first_use"] | None = Field(None, description="As model.load, for this one.")
    idle_unload_s: float | None = Field(None, ge=0, description="As model.idle_unload_s, for this one.")

    @field_validator("projection", mode="before")
    @classmethod
    def _number_or_path(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class BatchSection(Section):
    """How single images become batches."""

    max_size: int = Field(
        0, ge=0, le=1024, description="Items of a batch. 0: as tuned, else 8 on a CPU, 32 on CUDA."
    )
    max_delay_ms: float = Field(
        0.0,
        ge=0,
        description="Hold a batch back for this long from its oldest item's arrival. 0: an idle engine never "
        "waits; a busy one lets the batch grow anyway.",
    )
    instances: int = Field(
        0,
        ge=0,
        le=16,
        description="Batches in flight for each model. 0: as tuned, else 2 on CUDA, and on a CPU one for "
        "each processor, at most 4, and for OpenVINO as many again that stand ready; 1 for a bundle over "
        "256 MiB, which is not loaded twice, and for torch. A batch alone on a CPU gets an engine on all "
        "processors.",
    )
    max_queue_items: int = Field(
        1024, ge=1, description="Vectors in hand, all models together; more is refused at once."
    )
    max_queue_bytes: int = Field(256 * MiB, ge=MiB, description="Input bytes in hand, all models together.")


class CacheSection(Section):
    """What is kept of the answers."""

    max_bytes: int = Field(
        0,
        ge=0,
        description="Memory for outputs of images and texts that may come again, those left longest out "
        "first: a hit is answered without decoding. 1,280 numbers take 5,760 bytes. 0: nothing is kept.",
    )


class DecodeSection(Section):
    """How images become pixels."""

    threads: int = Field(
        0, ge=0, description="Decode threads, shared by all models. 0: processors of the container."
    )
    mode: Literal["exact", "fast"] = Field(
        "exact",
        description="exact: JPEG in full. fast: a large JPEG at 1/2, 1/4 or 1/8, never below twice the "
        "network's input; about 0.9995 in cosine, and 3 in 100 nearest neighbours change.",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="cpu, cuda or cuda:INDEX. cuda: JPEG by nvJPEG, what it refuses and all else on the CPU, "
        "as is every resize; `build` names it. Needs pixvec[gpu-decode] and 16 or more decode.threads, which "
        "are what fills its batches (docs/gpu.md).",
    )
    background: str = Field(
        "#ffffff", pattern=r"^#[0-9a-fA-F]{6}$", description="Colour under transparent pixels, #RRGGBB."
    )
    frames: Literal["first", "mean"] = Field(
        "first", description="Of an animation: its first frame, or the mean of its frames."
    )
    color: Literal["ignore", "srgb"] = Field(
        "ignore",
        description="An embedded ICC profile. ignore: it changes nothing, as in the libraries that trained "
        "the models. srgb: pixels are converted from it to sRGB; `build` records it (docs/images.md).",
    )
    max_pixels_in_hand: int = Field(
        400_000_000,
        ge=1_000_000,
        description="Pixels being decoded at one time, all threads together, of 4 bytes; those with alpha or "
        "16 bits count twice, a mean of frames four times. More wait for their turn.",
    )


class LimitsSection(Section):
    """What one request may hold; the server advertises these in ListModels."""

    request_bytes: int = Field(64 * MiB, ge=MiB, le=2**31 - 2**17, description="Bytes of one message.")
    inputs: int = Field(256, ge=1, description="Inputs of one message.")
    regions: int = Field(64, ge=1, description="Regions of one input.")
    targets: int = Field(8, ge=1, description="Targets of one request.")
    vectors: int = Field(1024, ge=1, description="Regions x targets, summed over the inputs of one request.")
    image_bytes: int = Field(32 * MiB, ge=1024, description="Bytes of one encoded image or pixel tensor.")
    image_pixels: int = Field(50_000_000, ge=4096, le=178_000_000, description="Width x height of one frame.")
    image_side: int = Field(20_000, ge=64, description="Pixels of an image's longer side.")
    image_aspect: float = Field(100.0, ge=1, description="Longer side : shorter side.")
    frames: int = Field(64, ge=1, le=256, description="Frames that are read of an animation.")
    similarity_cells: int = Field(1_000_000, ge=1, description="Queries x candidates of one Similarity call.")
    response_bytes: int = Field(64 * MiB, ge=MiB, description="Vector bytes of one response.")
    formats: tuple[Literal["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"], ...] = Field(
        ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"),
        min_length=1,
        description="Formats that are decoded.",
    )


class LogSection(Section):
    """What is written to standard error."""

    format: Literal["text", "json"] = Field("text", description="text for people, json for collectors.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug adds a line for every call; failed calls are warnings."
    )


class Config(Section):
    """The whole configuration."""

    server: ServerSection = ServerSection()
    model: ModelSection = ModelSection()
    models: dict[str, ModelSettings] = {}
    batch: BatchSection = BatchSection()
    cache: CacheSection = CacheSection()
    decode: DecodeSection = DecodeSection()
    limits: LimitsSection = LimitsSection()
    log: LogSection = LogSection()

    @property
    def served(self) -> tuple[str, ...]:
        """The models to serve, as `--model` would name them."""
        return self.model.names or tuple(self.models) or (DEFAULT_MODEL,)

    @model_validator(mode="after")
    def _settings_of_cuda_agree(self) -> Self:
        if self.model.cuda_graph and self.model.tensorrt:
            raise ValueError("model.cuda_graph and model.tensorrt are both true: choose one")
        if self.decode.device != "cpu" and self.decode.mode == "fast":
            raise ValueError(
                f"decode.device = {self.decode.device} decodes in full: set decode.mode = exact, or "
                "decode on the cpu"
            )
        return self

    @model_validator(mode="after")
    def _limits_fit_the_queue(self) -> Self:
        for limit, room in (("vectors", "max_queue_items"), ("request_bytes", "max_queue_bytes")):
            if getattr(self.limits, limit) > getattr(self.batch, room):
                raise ValueError(
                    f"limits.{limit} is over batch.{room}: a request that keeps the limits could never enter"
                )
        return self


def load(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Merge defaults, a TOML file, the environment and flags (`{"server.port": 1}`; None means not given).

    Raises ConfigError that names the source's key, its value and the nearest known key.
    """
    merged: dict[str, dict[str, Any]] = {}
    env = os.environ if environ is None else environ
    is_baseline_cpu(env)  # a misspelled value is an error, not another processor
    sources = (
        _from_file(file),
        _from_environment(env),
        ((key.split(".", 1)[0], key.split(".", 1)[1], value) for key, value in (flags or {}).items()),
    )
    for source in sources:
        for section, key, value in source:
            if value is not None:
                merged.setdefault(section, {})[key] = value
    try:
        return Config(**merged)
    except ValidationError as exc:
        raise ConfigError("\n".join(_explain(error) for error in exc.errors())) from exc


def cache_folder(environ: Mapping[str, str] | None = None) -> Path:
    """Return PIXVEC_CACHE, or `pixvec` in the user's cache folder."""
    env = os.environ if environ is None else environ
    if chosen := env.get("PIXVEC_CACHE"):
        return Path(chosen)
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixvec"


def is_baseline_cpu(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether PIXVEC_TEST_CPU is `baseline`: behave as on a processor without bf16, AVX-512 and AMX.

    For tests of what such a processor is answered. Raises ConfigError for any other value.
    """
    env = os.environ if environ is None else environ
    value = env.get(TEST_CPU, "")
    if value not in ("", "baseline"):
        raise ConfigError(f"{TEST_CPU} = {value!r}: the one value is 'baseline'; unset it for this processor")
    return value == "baseline"


def prepare_hub(*, offline: bool) -> None:
    """Set the hub's library up, here and in the processes that make bundles, before it is imported."""
    disable_telemetry()
    os.environ["TQDM_POSITION"] = "-1"  # its progress bars also where no terminal is: in our log
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def disable_telemetry() -> None:
    """Keep libraries from reporting to their makers, here and in child processes; before they are imported.

    onnxruntime's Linux wheels look up and call a collector of Microsoft's unless ORT_DISABLE_TELEMETRY is set
    when the library is loaded; its own `disable_telemetry_events` comes too late for that.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def prepare_tensorrt() -> None:
    """Have fp32 computed in fp32, which onnxruntime's provider has no setting for; before it is imported."""
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


def reference() -> str:
    """Return every setting with its default and meaning, as Markdown."""
    lines = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for section, key, field in _fields():
        default = field.get_default(call_default_factory=True)
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        text = "none" if shown is None else f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"
        meaning = str(field.description).replace("|", "\\|")
        lines.append(
            f"| `{section}.{key}` | `{PREFIX}{section.upper()}__{key.upper()}` | {text} | {meaning} |"
        )
    lines += [
        f"| `models.NAME.{key}` | | the catalogue's | {field.description} |"
        for key, field in ModelSettings.model_fields.items()
    ]
    return "\n".join(lines)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _fields() -> Iterator[tuple[str, str, Any]]:
    for section, field in Config.model_fields.items():
        if section == _TABLES:
            continue
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Section)
        for key, inner in field.annotation.model_fields.items():
            yield section, key, inner


def _from_file(file: Path | None) -> Iterator[tuple[str, str, Any]]:
    if file is None:
        return
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"--config {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--config {file}: not TOML: {exc}") from exc
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"--config {file}: `{section}` must be a table, as in [server]")
        for key, value in table.items():
            yield section, key, value


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    lists = {(section, key) for section, key, field in _fields() if "tuple" in str(field.annotation)}
    for name, value in environ.items():
        if name.startswith(PREFIX) and "__" in name:
            section, _, key = name.removeprefix(PREFIX).lower().partition("__")
            if not section or not key:
                raise ConfigError(f"{name}: settings are called {PREFIX}SECTION__KEY")
            parts = [part.strip() for part in value.split(",") if part.strip()]
            yield section, key, parts if (section, key) in lists else value


def _explain(error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        given = error.get("input")
        shown = f" = {given!r}" if isinstance(given, str | int | float) else ""
        return f"{path or 'configuration'}{shown}: {error['msg'].removeprefix('Value error, ')}"
    if path.startswith(f"{_TABLES}."):
        return f"unknown setting {path}: [models.NAME] has {', '.join(ModelSettings.model_fields)}"
    known = [f"{section}.{key}" for section, key, _ in _fields()]
    near = difflib.get_close_matches(path, known + list(Config.model_fields), n=1)
    hint = f"did you mean {near[0]}?" if near else "`pixvec-server config` lists every setting"
    return f"unknown setting {path}: {hint}"
