"""What is written and read in each protocol: requests before a measurement, answers after it.

A picture is a file's bytes, or pixels: (height, width, 3) uint8.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.oip import inference_pb2 as oip
from pixvec_server.types import F32, U8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Picture: TypeAlias = bytes | U8
Protocol: TypeAlias = Literal["embed", "embed_batch", "embed_stream", "infer", "http"]
_SERVICE = "/pixvec.v1.EmbeddingService/"


@dataclass(frozen=True, slots=True)
class Wire:
    """One protocol. encode: (model, pictures) to a body; decode: an answer to vectors, None for a failure."""

    transport: Literal["unary", "stream", "http"]
    path: str
    encode: Callable[[str, Sequence[Picture]], bytes]
    decode: Callable[[bytes], list[F32 | None]]


def _input(picture: Picture) -> pb.Input:
    if isinstance(picture, bytes):
        return pb.Input(image=picture)
    tensor = pb.Tensor(encoding=pb.ENCODING_UINT8, shape=picture.shape, data=picture.tobytes())
    return pb.Input(pixels=tensor)


def _targets(model: str) -> list[pb.Target]:
    return [pb.Target(model=model)]


def _embed(model: str, pictures: Sequence[Picture]) -> bytes:
    [picture] = pictures
    return pb.EmbedRequest(input=_input(picture), targets=_targets(model)).SerializeToString()


def _embed_batch(model: str, pictures: Sequence[Picture]) -> bytes:
    inputs = [_input(picture) for picture in pictures]
    return pb.EmbedBatchRequest(inputs=inputs, targets=_targets(model)).SerializeToString()


def _embed_stream(model: str, pictures: Sequence[Picture]) -> bytes:
    inputs = [_input(picture) for picture in pictures]
    return pb.EmbedStreamRequest(inputs=inputs, targets=_targets(model)).SerializeToString()


def _vector(embedded: pb.Embedded) -> F32 | None:
    if not embedded.embeddings or embedded.embeddings[0].WhichOneof("outcome") != "vector":
        return None
    return np.frombuffer(embedded.embeddings[0].vector.data, "<f4")


def _of_results(results: Iterable[pb.Result]) -> list[F32 | None]:
    return [_vector(result.embedded) for result in results]


def _infer(model: str, pictures: Sequence[Picture]) -> bytes:
    """Write a ModelInfer: files as BYTES `image`, each after its length; pixels as UINT8 `pixels`."""
    request = oip.ModelInferRequest(model_name=model)
    request.outputs.add(name="embedding")
    files = [picture for picture in pictures if isinstance(picture, bytes)]
    if files:
        request.inputs.add(name="image", datatype="BYTES", shape=[len(files), 1])
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(file)) + file for file in files))
    else:
        stacked = np.stack([picture for picture in pictures if not isinstance(picture, bytes)])
        request.inputs.add(name="pixels", datatype="UINT8", shape=stacked.shape)
        request.raw_input_contents.append(stacked.tobytes())
    return request.SerializeToString()


def _inferred(answer: bytes) -> list[F32 | None]:
    response = oip.ModelInferResponse.FromString(answer)
    if not response.raw_output_contents:
        return [None]
    rows = np.frombuffer(response.raw_output_contents[0], "<f4")
    return list(rows.reshape(tuple(response.outputs[0].shape)))


def _file(_model: str, pictures: Sequence[Picture]) -> bytes:
    [picture] = pictures
    return picture if isinstance(picture, bytes) else picture.tobytes()


def _floats(answer: bytes) -> list[F32 | None]:
    return [np.frombuffer(answer, "<f4") if answer else None]


WIRES: dict[Protocol, Wire] = {
    "embed": Wire(
        "unary",
        _SERVICE + "Embed",
        _embed,
        lambda answer: [_vector(pb.EmbedResponse.FromString(answer).embedded)],
    ),
    "embed_batch": Wire(
        "unary",
        _SERVICE + "EmbedBatch",
        _embed_batch,
        lambda answer: _of_results(pb.EmbedBatchResponse.FromString(answer).results),
    ),
    "embed_stream": Wire(
        "stream",
        _SERVICE + "EmbedStream",
        _embed_stream,
        lambda answer: _of_results(pb.EmbedStreamResponse.FromString(answer).results),
    ),
    "infer": Wire("unary", "/inference.GRPCInferenceService/ModelInfer", _infer, _inferred),
    "http": Wire("http", "/inference", _file, _floats),
}
