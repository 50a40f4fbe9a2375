"""One process that holds pixvec, its server and tritonclient: ORDER TARGET IMAGE, and three answers as JSON.

ORDER says who is imported first: `pixvec` or `tritonclient`. Two copies of the same messages in protobuf's
default pool would end the second import.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np

ORDERS = {
    "pixvec": ("pixvec", "pixvec.v1", "pixvec_server", "pixvec_server.rpc.server", "tritonclient.grpc"),
    "tritonclient": ("tritonclient.grpc", "pixvec_server.rpc.server", "pixvec_server", "pixvec.v1", "pixvec"),
}
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def main(order: str, target: str, file: str) -> None:
    modules = {name: importlib.import_module(name) for name in ORDERS[order]}
    private: Any = importlib.import_module("pixvec_server.oip.inference_pb2")
    pixvec: Any = modules["pixvec"]
    triton: Any = modules["tritonclient.grpc"]
    data = Path(file).read_bytes()
    with pixvec.Client(target) as client:
        natively = client.embed(data).tolist()
    given = triton.InferInput("image", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[data]], dtype=np.object_))
    with triton.InferenceServerClient(target) as client:
        theirs = client.infer("tiny", [given]).as_numpy("embedding")[0].tolist()
    request = private.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(data)
    with grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary(
            METHOD, private.ModelInferRequest.SerializeToString, private.ModelInferResponse.FromString
        )
        raw = ask(request, timeout=20).raw_output_contents[0]
    ours = np.frombuffer(raw, "<f4").tolist()
    print(json.dumps({"pixvec": natively, "tritonclient": theirs, "plain": ours}))


if __name__ == "__main__":
    main(*sys.argv[1:])
