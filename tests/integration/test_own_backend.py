"""docs/backends.md's own backend, served."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from support import photos
from support.servers import ROOT, Server, serve

from pixvec.v1 import embedding_pb2 as pb

REQUEST = pb.EmbedRequest(input=pb.Input(image=photos.jpeg("rocket.jpg")))


def _vector(server: Server) -> tuple[np.ndarray, str]:
    answer = server.stub().Embed(REQUEST, timeout=10)
    data = answer.embedded.embeddings[0].vector.data
    return np.frombuffer(data, "<f4"), answer.report.origins[0].build


def test_the_pages_backend_serves(tiny_server: Server, tiny_bundle: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.py").write_text(program, encoding="utf-8")
    flags = ("--model", f"tiny={tiny_bundle}", "--backend", "mine:Reference")
    with serve(*flags, env={"PYTHONPATH": str(tmp_path)}) as server:
        vector, build = _vector(server)
    expected, known = _vector(tiny_server)
    assert np.allclose(vector, expected, atol=1e-5)
    assert "/mine:Reference-fp32/" in build
    assert build != known
