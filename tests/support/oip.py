"""A plain caller of the Open Inference Protocol: the server's own messages, under the public paths."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from pixvec_server.oip import inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NAME = "inference.GRPCInferenceService"
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}


class Caller:
    """Calls any method by name: `caller.ModelReady(name="tiny")`, or with a whole message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, method: str) -> Any:
        request, response = (
            getattr(pb, kind.name) for kind in (METHODS[method].input_type, METHODS[method].output_type)
        )
        make = self._channel.stream_stream if method == "ModelStreamInfer" else self._channel.unary_unary
        call = make(f"/{NAME}/{method}", request.SerializeToString, response.FromString)

        def ask(message: Any = None, **fields: Any) -> Any:
            timeout = fields.pop("timeout", 20)
            return call(request(**fields) if message is None else message, timeout=timeout)

        return ask

    def vectors(self, request: pb.ModelInferRequest) -> Any:
        """Return the first output of a ModelInfer."""
        return vectors(self.ModelInfer(request))


@contextmanager
def caller(target: str, *options: tuple[str, Any]) -> Iterator[Caller]:
    """Open a channel of one's own for the block."""
    everything = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1), *options]
    with grpc.insecure_channel(target, options=everything) as channel:
        yield Caller(channel)


def items(data: Sequence[bytes]) -> bytes:
    """Write a BYTES tensor: each item after its length."""
    return b"".join(struct.pack("<I", len(item)) + item for item in data)


def of_bytes(
    model: str, data: Sequence[bytes], tensor: str = "image", *, outputs: Iterable[str] = (), **fields: Any
) -> pb.ModelInferRequest:
    """Ask a model for images' or texts' vectors."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[items(data)], **fields)
    request.inputs.add(name=tensor, datatype="BYTES", shape=[len(data), 1])
    for name in outputs:
        request.outputs.add(name=name)
    return request


def of_pixels(model: str, pixels: Any, **fields: Any) -> pb.ModelInferRequest:
    """Ask a model for the vectors of (n, height, width, 3) uint8 values."""
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[pixels.tobytes()], **fields)
    request.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    return request


def vectors(response: pb.ModelInferResponse, output: int = 0) -> Any:
    """Return one output as an array."""
    raw = np.frombuffer(response.raw_output_contents[output], "<f4")
    return raw.reshape(tuple(response.outputs[output].shape))
