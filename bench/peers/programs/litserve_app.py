"""LitServe with its batching: pictures are read, and embedded, in its one worker.

LitServe hands annotations on to FastAPI as they are: they must not be put off.
"""
# ruff: noqa: ANN401 - these are the types of libraries that are not here

import sys
from typing import Annotated, Any

import embedding  # type: ignore[import-not-found]  # of the peers' environments, as the next three
import litserve  # type: ignore[import-not-found]
import numpy as np
from fastapi import Body, Response  # type: ignore[import-not-found]


class Embed(litserve.LitAPI):  # type: ignore[misc]
    """Files in, vectors out."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the graph."""
        self._engine, self._read = embedding.engine(), embedding.reader()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        """Read one picture."""
        return self._read(request)

    def batch(self, inputs: list[Any]) -> Any:
        """Stack what was read."""
        return np.stack(inputs)

    def predict(self, batch: Any) -> Any:
        """Embed a batch."""
        return self._engine(batch)

    def unbatch(self, output: Any) -> Any:
        """Take a batch's vectors apart."""
        return list(output)

    def encode_response(self, output: Any) -> Response:
        """Answer float32 as it is."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Embed(max_batch_size=32, batch_timeout=0.005, api_path="/inference")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
