"""Every call of tritonclient that pixvec answers: TARGET IMAGE IMAGE IMAGE, and what came of it as JSON.

Runs in an environment of tritonclient's own, see test_tritonclient.py.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found] # lives in an environment of its own
import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found] # as above
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found] # as above

WAIT_S = 20


def _input(data: list[bytes]) -> Any:
    given = triton.InferInput("image", [len(data), 1], "BYTES")
    given.set_data_from_numpy(np.array(data, dtype=np.object_).reshape(-1, 1))
    return given


def _rows(result: Any, output: str = "embedding") -> list[list[float]]:
    rows: list[list[float]] = result.as_numpy(output).tolist()
    return rows


def _error(ask: Any) -> dict[str, str]:
    try:
        ask()
    except InferenceServerException as exc:
        return {"status": str(exc.status()), "message": str(exc.message())}
    return {"status": "none", "message": ""}


def _infer(client: Any, data: list[bytes]) -> dict[str, Any]:
    result = client.infer("tiny", [_input(data)], request_id="mine", priority=1, timeout=5_000_000)
    response = result.get_response()
    pixels = np.random.default_rng(3).integers(0, 256, (2, 20, 30, 3), np.uint8)
    given = triton.InferInput("pixels", pixels.shape, "UINT8")
    given.set_data_from_numpy(pixels)
    outputs = [triton.InferRequestedOutput("features"), triton.InferRequestedOutput("embedding")]
    both = client.infer("tiny", [_input(data[:1])], outputs=outputs, parameters={"normalize": False})
    return {
        "batch": _rows(result),
        "dtype": str(result.as_numpy("embedding").dtype),
        "id": response.id,
        "space": response.parameters["space"].string_param,
        "pixels": _rows(client.infer("tiny_pixels", [given])),
        "features": list(both.as_numpy("features").shape),
        "unscaled": _rows(both),
        "gzip": _rows(client.infer("tiny", [_input(data)], compression_algorithm="gzip")),
        "deadline": _rows(client.infer("tiny", [_input(data)], client_timeout=10.0)),
    }


def _later(client: Any, data: list[bytes]) -> list[list[list[float]]]:
    answers: queue.Queue[Any] = queue.Queue()
    for item in data:
        client.async_infer(
            "tiny", [_input([item])], callback=lambda result, error: answers.put((result, error))
        )
    got = [answers.get(timeout=WAIT_S) for _ in data]
    return [_rows(result) if error is None else [] for result, error in got]


def _stream(client: Any, data: list[bytes]) -> list[dict[str, Any]]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    sent = [data[:1], data, [b"no image"], data[1:2], data[2:3]]
    for i, items in enumerate(sent):
        client.async_stream_infer(
            "tiny", [_input(items)], request_id=f"message-{i}", enable_empty_final_response=i == 1
        )
    got = []
    for _ in sent:
        result, error = answers.get(timeout=WAIT_S)
        if error is None:
            response = result.get_response()
            final = "triton_final_response" in response.parameters
            got.append({"id": response.id, "rows": _rows(result), "final": final})
        else:
            got.append({"error": str(error.message())})
    client.stop_stream()
    return got


def _about(client: Any) -> dict[str, Any]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("tiny"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata("tiny_pixels", "1", as_json=True),
        "config": client.get_model_config("tiny", as_json=True),
        "statistics": client.get_inference_statistics("tiny", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }


def _errors(client: Any, data: list[bytes]) -> dict[str, Any]:
    small = triton.InferInput("image", [1], "INT32")
    small.set_data_from_numpy(np.zeros(1, np.int32))
    region = _input(data[:1])
    region.set_shared_memory("region", 16)
    ranked = [triton.InferRequestedOutput("embedding", class_count=3)]
    return {
        "model": _error(lambda: client.infer("nobody", [_input(data)])),
        "version": _error(lambda: client.infer("tiny", [_input(data)], model_version="2")),
        "image": _error(lambda: client.infer("tiny", [_input([data[0], b"no image"])])),
        "datatype": _error(lambda: client.infer("tiny", [small])),
        "parameter": _error(lambda: client.infer("tiny", [_input(data)], parameters={"colour": "red"})),
        "sequence": _error(lambda: client.infer("tiny", [_input(data)], sequence_id=7, sequence_start=True)),
        "classification": _error(lambda: client.infer("tiny", [_input(data)], outputs=ranked)),
        "region": _error(lambda: client.infer("tiny", [region])),
        "load": _error(lambda: client.load_model("tiny")),
        "unload": _error(lambda: client.unload_model("tiny")),
        "memory": _error(client.get_system_shared_memory_status),
        "cuda": _error(client.get_cuda_shared_memory_status),
        "trace": _error(lambda: client.get_trace_settings("tiny")),
        "logging": _error(client.get_log_settings),
    }


async def _aio(target: str, data: list[bytes]) -> list[list[float]]:
    async with triton_aio.InferenceServerClient(target) as client:
        return _rows(await client.infer("tiny", [_input(data)]))


def main(target: str, *files: str) -> None:
    data = [Path(file).read_bytes() for file in files]
    with triton.InferenceServerClient(target) as client:
        told = {
            "infer": _infer(client, data),
            "later": _later(client, data),
            "stream": _stream(client, data),
            "about": _about(client),
            "errors": _errors(client, data),
            "aio": asyncio.run(_aio(target, data)),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
