from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT32: _ClassVar[Encoding]
    ENCODING_FLOAT16: _ClassVar[Encoding]
    ENCODING_BFLOAT16: _ClassVar[Encoding]
    ENCODING_INT8: _ClassVar[Encoding]
    ENCODING_UINT8: _ClassVar[Encoding]
    ENCODING_BINARY: _ClassVar[Encoding]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_UNDECODABLE: _ClassVar[Reason]
    REASON_UNSUPPORTED_FORMAT: _ClassVar[Reason]
    REASON_TOO_LARGE: _ClassVar[Reason]
    REASON_BAD_OPTION: _ClassVar[Reason]
    REASON_UNKNOWN_FIELD: _ClassVar[Reason]
    REASON_MODEL_NOT_FOUND: _ClassVar[Reason]
    REASON_MODEL_NOT_READY: _ClassVar[Reason]
    REASON_SPACE_MISMATCH: _ClassVar[Reason]
    REASON_OVERLOADED: _ClassVar[Reason]
    REASON_QUOTA_EXCEEDED: _ClassVar[Reason]
    REASON_DEADLINE: _ClassVar[Reason]
    REASON_DRAINING: _ClassVar[Reason]
    REASON_NON_FINITE: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]

class Metric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_UNSPECIFIED: _ClassVar[Metric]
    METRIC_COSINE: _ClassVar[Metric]
    METRIC_DOT: _ClassVar[Metric]
    METRIC_EUCLIDEAN: _ClassVar[Metric]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_READY: _ClassVar[State]
    STATE_LOADING: _ClassVar[State]
    STATE_UNLOADED: _ClassVar[State]
    STATE_FAILED: _ClassVar[State]
ENCODING_UNSPECIFIED: Encoding
ENCODING_FLOAT32: Encoding
ENCODING_FLOAT16: Encoding
ENCODING_BFLOAT16: Encoding
ENCODING_INT8: Encoding
ENCODING_UINT8: Encoding
ENCODING_BINARY: Encoding
REASON_UNSPECIFIED: Reason
REASON_UNDECODABLE: Reason
REASON_UNSUPPORTED_FORMAT: Reason
REASON_TOO_LARGE: Reason
REASON_BAD_OPTION: Reason
REASON_UNKNOWN_FIELD: Reason
REASON_MODEL_NOT_FOUND: Reason
REASON_MODEL_NOT_READY: Reason
REASON_SPACE_MISMATCH: Reason
REASON_OVERLOADED: Reason
REASON_QUOTA_EXCEEDED: Reason
REASON_DEADLINE: Reason
REASON_DRAINING: Reason
REASON_NON_FINITE: Reason
REASON_INTERNAL: Reason
METRIC_UNSPECIFIED: Metric
METRIC_COSINE: Metric
METRIC_DOT: Metric
METRIC_EUCLIDEAN: Metric
STATE_UNSPECIFIED: State
STATE_READY: State
STATE_LOADING: State
STATE_UNLOADED: State
STATE_FAILED: State

class EmbedRequest(_message.Message):
    __slots__ = ("input", "targets")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    input: Input
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("embedded", "report")
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    embedded: Embedded
    report: Report
    def __init__(self, embedded: _Optional[_Union[Embedded, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class EmbedBatchRequest(_message.Message):
    __slots__ = ("inputs", "targets")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    def __init__(self, inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ...) -> None: ...

class EmbedBatchResponse(_message.Message):
    __slots__ = ("results", "report")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[Result]
    report: Report
    def __init__(self, results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("id", "inputs", "targets")
    ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    id: str
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    def __init__(self, id: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("id", "results", "report")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    id: str
    results: _containers.RepeatedCompositeFieldContainer[Result]
    report: Report
    def __init__(self, id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("image", "pixels", "text", "regions", "prompt")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    pixels: Tensor
    text: str
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    prompt: str
    def __init__(self, image: _Optional[bytes] = ..., pixels: _Optional[_Union[Tensor, _Mapping]] = ..., text: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., prompt: _Optional[str] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("left", "top", "right", "bottom", "whole")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    right: int
    bottom: int
    whole: bool
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., right: _Optional[int] = ..., bottom: _Optional[int] = ..., whole: bool = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("model", "output", "dimensions", "normalize", "encoding", "space")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    model: str
    output: str
    dimensions: int
    normalize: bool
    encoding: Encoding
    space: str
    def __init__(self, model: _Optional[str] = ..., output: _Optional[str] = ..., dimensions: _Optional[int] = ..., normalize: bool = ..., encoding: _Optional[_Union[Encoding, str]] = ..., space: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("encoding", "shape", "data", "scale")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    encoding: Encoding
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    scale: float
    def __init__(self, encoding: _Optional[_Union[Encoding, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., scale: _Optional[float] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("embedded", "error")
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    embedded: Embedded
    error: Error
    def __init__(self, embedded: _Optional[_Union[Embedded, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Embedded(_message.Message):
    __slots__ = ("embeddings", "source")
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    source: Source
    def __init__(self, embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ..., source: _Optional[_Union[Source, _Mapping]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("region", "target", "vector", "error")
    REGION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    region: int
    target: int
    vector: Tensor
    error: Error
    def __init__(self, region: _Optional[int] = ..., target: _Optional[int] = ..., vector: _Optional[_Union[Tensor, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("width", "height", "format", "frames", "truncated")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    format: str
    frames: int
    truncated: bool
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., format: _Optional[str] = ..., frames: _Optional[int] = ..., truncated: bool = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "reason", "message", "retry_after")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: Reason
    message: str
    retry_after: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[Reason, str]] = ..., message: _Optional[str] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("origins", "usage", "timing")
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    origins: _containers.RepeatedCompositeFieldContainer[Origin]
    usage: Usage
    timing: Timing
    def __init__(self, origins: _Optional[_Iterable[_Union[Origin, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("model", "space", "build", "normalized")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    model: str
    space: str
    build: str
    normalized: bool
    def __init__(self, model: _Optional[str] = ..., space: _Optional[str] = ..., build: _Optional[str] = ..., normalized: bool = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("vectors", "pixels", "tokens", "cached")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    vectors: int
    pixels: int
    tokens: int
    cached: int
    def __init__(self, vectors: _Optional[int] = ..., pixels: _Optional[int] = ..., tokens: _Optional[int] = ..., cached: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("decode_ns", "queue_ns", "compute_ns", "total_ns")
    DECODE_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    decode_ns: int
    queue_ns: int
    compute_ns: int
    total_ns: int
    def __init__(self, decode_ns: _Optional[int] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., total_ns: _Optional[int] = ...) -> None: ...

class SimilarityRequest(_message.Message):
    __slots__ = ("queries", "candidates", "target", "metric", "top_k")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[Operand]
    candidates: _containers.RepeatedCompositeFieldContainer[Operand]
    target: Target
    metric: Metric
    top_k: int
    def __init__(self, queries: _Optional[_Iterable[_Union[Operand, _Mapping]]] = ..., candidates: _Optional[_Iterable[_Union[Operand, _Mapping]]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., metric: _Optional[_Union[Metric, str]] = ..., top_k: _Optional[int] = ...) -> None: ...

class SimilarityResponse(_message.Message):
    __slots__ = ("rows", "report")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    report: Report
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., report: _Optional[_Union[Report, _Mapping]] = ...) -> None: ...

class Operand(_message.Message):
    __slots__ = ("input", "vector", "space")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    input: Input
    vector: Tensor
    space: str
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., vector: _Optional[_Union[Tensor, _Mapping]] = ..., space: _Optional[str] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("indices", "scores")
    INDICES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    scores: bytes
    def __init__(self, indices: _Optional[_Iterable[int]] = ..., scores: _Optional[bytes] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "limits", "server_version")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    limits: Limits
    server_version: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    limits: Limits
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "aliases", "state", "build", "licence", "outputs", "prompts", "max_text_tokens", "logit_scale", "logit_bias", "parity", "backend", "device", "precision", "preprocessing", "input_size", "selection")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SCALE_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    state: State
    build: str
    licence: str
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    prompts: _containers.RepeatedScalarFieldContainer[str]
    max_text_tokens: int
    logit_scale: float
    logit_bias: float
    parity: float
    backend: str
    device: str
    precision: str
    preprocessing: str
    input_size: _containers.RepeatedScalarFieldContainer[int]
    selection: str
    def __init__(self, name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[State, str]] = ..., build: _Optional[str] = ..., licence: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., prompts: _Optional[_Iterable[str]] = ..., max_text_tokens: _Optional[int] = ..., logit_scale: _Optional[float] = ..., logit_bias: _Optional[float] = ..., parity: _Optional[float] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., preprocessing: _Optional[str] = ..., input_size: _Optional[_Iterable[int]] = ..., selection: _Optional[str] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("name", "space", "shape", "dimensions", "normalized", "int8_scales")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    INT8_SCALES_FIELD_NUMBER: _ClassVar[int]
    name: str
    space: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dimensions: _containers.RepeatedScalarFieldContainer[int]
    normalized: bool
    int8_scales: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., space: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dimensions: _Optional[_Iterable[int]] = ..., normalized: bool = ..., int8_scales: _Optional[_Iterable[float]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("request_bytes", "inputs", "regions", "targets", "image_bytes", "image_pixels", "similarity_cells", "formats", "image_side", "image_aspect", "frames", "vectors", "response_bytes")
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_CELLS_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIDE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ASPECT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    request_bytes: int
    inputs: int
    regions: int
    targets: int
    image_bytes: int
    image_pixels: int
    similarity_cells: int
    formats: _containers.RepeatedScalarFieldContainer[str]
    image_side: int
    image_aspect: float
    frames: int
    vectors: int
    response_bytes: int
    def __init__(self, request_bytes: _Optional[int] = ..., inputs: _Optional[int] = ..., regions: _Optional[int] = ..., targets: _Optional[int] = ..., image_bytes: _Optional[int] = ..., image_pixels: _Optional[int] = ..., similarity_cells: _Optional[int] = ..., formats: _Optional[_Iterable[str]] = ..., image_side: _Optional[int] = ..., image_aspect: _Optional[float] = ..., frames: _Optional[int] = ..., vectors: _Optional[int] = ..., response_bytes: _Optional[int] = ...) -> None: ...
