"""Similarity over images and vectors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from support import photos
from support.peak import Peak

from pixvec.v1 import embedding_pb2 as pb

if TYPE_CHECKING:
    from support.servers import Server

NAMES = ("chelsea.png", "rocket.jpg", "coffee.png", "motorcycle_left.png")


@pytest.fixture(scope="module")
def known(tiny_server: Server) -> tuple[list[Any], str]:
    """Each photograph's vector, and their space."""
    request = pb.EmbedBatchRequest(inputs=[pb.Input(image=photos.data(name)) for name in NAMES])
    answer = tiny_server.stub().EmbedBatch(request)
    vectors = [np.frombuffer(r.embedded.embeddings[0].vector.data, "<f4") for r in answer.results]
    return vectors, answer.report.origins[0].space


def _image(name: str) -> pb.Operand:
    return pb.Operand(input=pb.Input(image=photos.data(name)))


def _vector(values: Any, space: str) -> pb.Operand:
    tensor = pb.Tensor(
        encoding="ENCODING_FLOAT32", shape=[len(values)], data=np.asarray(values, "<f4").tobytes()
    )
    return pb.Operand(vector=tensor, space=space)


@pytest.mark.parametrize("metric", ["COSINE", "DOT", "EUCLIDEAN"])
def test_images_and_vectors_mix_in_every_metric(
    tiny_server: Server, known: tuple[list[Any], str], metric: str
) -> None:
    vectors, space = known
    request = pb.SimilarityRequest(
        queries=[_image(NAMES[0]), _vector(vectors[1], space)],
        candidates=[_vector(vectors[2], space), _image(NAMES[3]), _image(NAMES[0])],
        metric=f"METRIC_{metric}",
    )
    rows = tiny_server.stub().Similarity(request).rows
    left, right = np.stack([vectors[0], vectors[1]]), np.stack([vectors[2], vectors[3], vectors[0]])
    dots = left @ right.T
    expected = (
        np.linalg.norm(left[:, None] - right[None], axis=2) if metric == "EUCLIDEAN" else dots
    )  # unit vectors: the cosine is the inner product
    got = np.stack([np.frombuffer(row.scores, "<f4") for row in rows])
    assert np.allclose(got, expected, atol=1e-3)
    assert not any(row.indices for row in rows)


def test_top_k_finds_the_image_itself_first(tiny_server: Server) -> None:
    request = pb.SimilarityRequest(
        queries=[_image(NAMES[1])], candidates=[_image(name) for name in NAMES], top_k=2
    )
    [row] = tiny_server.stub().Similarity(request).rows
    scores = np.frombuffer(row.scores, "<f4")
    assert row.indices[0] == 1
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert len(row.indices) == len(scores) == 2
    assert scores[0] > scores[1]


def test_each_bad_operand_is_named(tiny_server: Server, known: tuple[list[Any], str]) -> None:
    vectors, space = known
    good = _vector(vectors[0], space)
    nan = vectors[0].copy()
    nan[5] = np.nan
    cases = [
        ([good, _vector(nan, space)], "UNDECODABLE", "candidates[1].vector.data: value 5 is nan"),
        ([good, good, _vector(vectors[0], "")], "BAD_OPTION", "candidates[2].space: a vector must name"),
        ([_vector(vectors[0], "s1-x")], "SPACE_MISMATCH", "candidates[0].space"),
        (
            [_vector(vectors[0][:5], space)],
            "BAD_OPTION",
            "[0].vector.shape: the vector has shape [5]",
        ),
        ([pb.Operand(input=pb.Input(image=b""))], "UNDECODABLE", "candidates[0].input"),
        ([pb.Operand()], "BAD_OPTION", "candidates[0].content"),
        (
            [pb.Operand(input=pb.Input(image=b"x", regions=[pb.Region(whole=True)] * 2))],
            "BAD_OPTION",
            "candidates[0].input.regions: 2 regions",
        ),
    ]
    for candidates, reason, words in cases:
        error = _refused(tiny_server, pb.SimilarityRequest(queries=[good], candidates=candidates))
        assert pb.Reason.Name(error.reason) == f"REASON_{reason}"
        assert words in error.message


def test_a_hundred_thousand_bits_cost_no_memory_and_do_not_stop_the_loop(
    tiny_server: Server, known: tuple[list[Any], str]
) -> None:
    _, space = known
    bits = pb.Tensor(encoding="ENCODING_BINARY", shape=[32], data=b"\xf0\x0f\xaa\x55")
    operand = pb.Operand(vector=bits, space=space)
    request = pb.SimilarityRequest(queries=[operand], candidates=[operand] * 100_000, top_k=3)
    stub = tiny_server.stub()
    with Peak(tiny_server.process.pid) as peak:
        answer = stub.Similarity.future(request, timeout=25)
        slowest = 0.0
        while not answer.done():
            started = time.monotonic()
            stub.GetModel(pb.GetModelRequest(), timeout=5)
            slowest = max(slowest, time.monotonic() - started)
        [row] = answer.result().rows
    assert list(row.indices) == [0, 1, 2]
    print(f"\npeak +{peak.growth / 2**20:.0f} MiB; the slowest other call took {slowest * 1000:.0f} ms")
    assert peak.growth < 128 << 20


def test_the_calls_own_options_are_checked(tiny_server: Server, known: tuple[list[Any], str]) -> None:
    vectors, space = known
    one = [_vector(vectors[0], space)]
    cells = [_vector(vectors[0], space)] * 1001
    cases = [
        (pb.SimilarityRequest(queries=one), "candidates is empty"),
        (pb.SimilarityRequest(queries=one, candidates=one, top_k=0), "top_k = 0"),
        (
            pb.SimilarityRequest(queries=one, candidates=one, target=pb.Target(output="features")),
            "target.output: features is a map",
        ),
        (pb.SimilarityRequest.FromString(b"\x98\x06\x01"), "SimilarityRequest has fields [99]"),
        (pb.SimilarityRequest(queries=cells, candidates=cells), "similarity_cells = 1000000"),
        (
            pb.SimilarityRequest(queries=one, candidates=one, target=pb.Target(encoding="ENCODING_INT8")),
            "unset target.encoding",
        ),
    ]
    for request, words in cases:
        assert words in _refused(tiny_server, request).message


def _refused(server: Server, request: pb.SimilarityRequest) -> pb.Error:
    with pytest.raises(grpc.RpcError) as caught:
        server.stub().Similarity(request, timeout=10)
    return pb.Error.FromString(dict(caught.value.trailing_metadata())["pixvec-error-bin"])
