"""Embed and EmbedBatch over a real channel, on the tiny model and on the default one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from support import photos, tiny

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.preprocess import Decoded, PreprocessSpec, fit
from pixvec_server.types import WHOLE, Region

if TYPE_CHECKING:
    from support.servers import Server

PHOTO = photos.image("chelsea.png")
PNG = photos.data("chelsea.png")
SPEC = PreprocessSpec(tiny.SIDE, tiny.SIDE)


def _expected(region: Region = WHOLE) -> Any:
    """What the tiny model makes of the photograph, in numpy."""
    pixels = fit(Decoded(PHOTO, PHOTO.width, PHOTO.height, "png"), region, SPEC)
    return (pixels.reshape(-1) / np.float32(255) - 0.5) @ tiny.WEIGHTS


def _unit(values: Any) -> Any:
    return values / np.linalg.norm(values)


def _embed(server: Server, item: pb.Input, *targets: pb.Target, **rest: Any) -> pb.EmbedResponse:
    request = pb.EmbedRequest(input=item, targets=targets)
    answer: pb.EmbedResponse = server.stub().Embed(request, timeout=20, **rest)
    return answer


def _values(embedding: pb.Embedding) -> Any:
    return np.frombuffer(embedding.vector.data, "<f4")


def _refused(server: Server, item: pb.Input, *targets: pb.Target, **rest: Any) -> tuple[str, pb.Error]:
    with pytest.raises(grpc.RpcError) as caught:
        _embed(server, item, *targets, **rest)
    trailers = dict(caught.value.trailing_metadata())
    assert trailers["x-request-id"]
    return caught.value.code().name, pb.Error.FromString(trailers["pixvec-error-bin"])


def test_the_default_answer_is_the_models_unit_vector(tiny_server: Server) -> None:
    answer = _embed(tiny_server, pb.Input(image=PNG))
    [embedding] = answer.embedded.embeddings
    assert np.allclose(_values(embedding), _unit(_expected()), atol=1e-5)
    source = answer.embedded.source
    assert (source.width, source.height, source.format, source.frames) == (451, 300, "png", 1)
    [origin] = answer.report.origins
    assert (origin.model, origin.normalized) == ("tiny", True)
    assert origin.build.startswith(f"{origin.space}/")
    assert (answer.report.usage.vectors, answer.report.usage.pixels) == (1, 451 * 300)
    timing = answer.report.timing
    assert 0 < timing.decode_ns < timing.total_ns
    assert 0 < timing.compute_ns < timing.total_ns


def test_regions_and_targets_come_from_one_decode_in_order(tiny_server: Server) -> None:
    regions = [pb.Region(whole=True), pb.Region(left=-10, top=20, right=200, bottom=220)]
    targets = [pb.Target(), pb.Target(normalize=False), pb.Target(output="features")]
    answer = _embed(tiny_server, pb.Input(image=PNG, regions=regions), *targets)
    got = answer.embedded.embeddings
    assert [(e.region, e.target) for e in got] == [(r, t) for r in range(2) for t in range(3)]
    box = Region(-10, 20, 200, 220)
    assert np.allclose(_values(got[0]), _unit(_expected()), atol=1e-5)
    assert np.allclose(_values(got[4]), _expected(box), atol=1e-4)
    assert list(got[5].vector.shape) == [3, 8, 8]
    crop = fit(Decoded(PHOTO, PHOTO.width, PHOTO.height, "png"), box, SPEC)
    assert np.allclose(_values(got[5]).reshape(3, 8, 8), crop.transpose(2, 0, 1) / 255, atol=1e-6)
    assert answer.report.usage.vectors == 6
    assert answer.report.usage.pixels == 451 * 300


def test_an_empty_region_is_an_error_of_its_own(tiny_server: Server) -> None:
    regions = [pb.Region(left=5000, right=5010, bottom=9), pb.Region(whole=True)]
    bad, good = _embed(tiny_server, pb.Input(image=PNG, regions=regions)).embedded.embeddings
    assert "regions[0]: the box (5000, 0, 5010, 9) holds no pixel" in bad.error.message
    assert good.WhichOneof("outcome") == "vector"


def test_cut_then_normalise_then_encode(tiny_server: Server) -> None:
    plain, half, int8, bits, raw = _embed(
        tiny_server,
        pb.Input(image=PNG),
        pb.Target(dimensions=16),
        pb.Target(dimensions=16, encoding="ENCODING_FLOAT16"),
        pb.Target(dimensions=16, encoding="ENCODING_INT8"),
        pb.Target(dimensions=8, encoding="ENCODING_BINARY"),
        pb.Target(dimensions=8, normalize=False),
    ).embedded.embeddings
    expected = _unit(_expected()[:16])
    assert np.allclose(_values(plain), expected, atol=1e-5)
    assert np.allclose(np.frombuffer(half.vector.data, "<f2"), expected, atol=1e-3)
    assert int8.vector.scale == pytest.approx(0.015)
    step = np.frombuffer(int8.vector.data, np.int8) * int8.vector.scale
    assert np.allclose(step, np.clip(expected, -128 * 0.015, 127 * 0.015), atol=0.0076)
    assert list(bits.vector.shape) == [8]
    assert bits.vector.data == np.packbits(_expected()[:8] > 0).tobytes()
    assert np.allclose(_values(raw), _expected()[:8], atol=1e-4)


def test_decoded_pixels_give_the_files_vector(tiny_server: Server) -> None:
    array = np.asarray(PHOTO)
    tensor = pb.Tensor(encoding="ENCODING_UINT8", shape=array.shape, data=array.tobytes())
    a = _embed(tiny_server, pb.Input(pixels=tensor))
    b = _embed(tiny_server, pb.Input(image=PNG))
    assert a.embedded.embeddings[0].vector == b.embedded.embeddings[0].vector
    assert a.embedded.source.format == "pixels"


@pytest.mark.parametrize(
    ("target", "code", "reason", "words"),
    [
        (pb.Target(model="no"), "NOT_FOUND", "MODEL_NOT_FOUND", "targets[0].model: no model is called 'no'"),
        (pb.Target(output="no"), "INVALID_ARGUMENT", "BAD_OPTION", "it has embedding, features, broken"),
        (pb.Target(dimensions=12), "INVALID_ARGUMENT", "BAD_OPTION", "has sizes [32, 16, 8]"),
        (pb.Target(dimensions=0), "INVALID_ARGUMENT", "BAD_OPTION", "dimensions = 0"),
        (
            pb.Target(output="features", dimensions=8),
            "INVALID_ARGUMENT",
            "BAD_OPTION",
            "is a map and cannot be cut",
        ),
        (pb.Target(output="features", normalize=True), "INVALID_ARGUMENT", "BAD_OPTION", "unset normalize"),
        (pb.Target(encoding="ENCODING_UINT8"), "INVALID_ARGUMENT", "BAD_OPTION", "UINT8 is for pixels"),
        (
            pb.Target(encoding="ENCODING_INT8", normalize=False),
            "INVALID_ARGUMENT",
            "BAD_OPTION",
            "INT8 is calibrated for normalize = true",
        ),
        (
            pb.Target(output="features", encoding="ENCODING_INT8"),
            "INVALID_ARGUMENT",
            "BAD_OPTION",
            "has no INT8 scale",
        ),
        (pb.Target(space="s1-other"), "FAILED_PRECONDITION", "SPACE_MISMATCH", "not in the pinned s1-other"),
    ],
)
def test_an_option_that_cannot_be_obeyed_is_refused(
    tiny_server: Server, target: pb.Target, code: str, reason: str, words: str
) -> None:
    got, error = _refused(tiny_server, pb.Input(image=PNG), target)
    assert (got, pb.Reason.Name(error.reason)) == (code, f"REASON_{reason}")
    assert words in error.message


def test_a_pinned_space_is_answered_and_aliases_are_resolved(tiny_server: Server) -> None:
    origin = _embed(tiny_server, pb.Input(image=PNG)).report.origins[0]
    again = _embed(tiny_server, pb.Input(image=PNG), pb.Target(model="tiny-alias", space=origin.space))
    assert again.report.origins[0] == origin


def test_a_non_finite_output_is_that_items_own(tiny_server: Server) -> None:
    black = photos.encode(photos.image("chelsea.png").point(lambda _v: 0), "PNG")
    request = pb.EmbedBatchRequest(
        inputs=[pb.Input(image=black), pb.Input(image=PNG)],
        targets=[pb.Target(output="broken"), pb.Target()],
    )
    bad, good = tiny_server.stub().EmbedBatch(request).results
    first, second = bad.embedded.embeddings
    assert pb.Reason.Name(first.error.reason) == "REASON_NON_FINITE"
    assert second.WhichOneof("outcome") == "vector"
    assert all(e.WhichOneof("outcome") == "vector" for e in good.embedded.embeddings)


def test_the_features_of_one_caller_are_not_computed_for_another(tiny_server: Server) -> None:
    """Both kinds at once: each gets its own outputs."""
    stub = tiny_server.stub()
    calls = [
        stub.Embed.future(
            pb.EmbedRequest(input=pb.Input(image=PNG), targets=[pb.Target(output=("", "features")[i % 2])])
        )
        for i in range(20)
    ]
    sizes = [len(call.result().embedded.embeddings[0].vector.data) for call in calls]
    assert sizes == [tiny.SIZE * 4, 3 * 64 * 4] * 10


def test_a_failed_call_tells_every_kind_of_client(tiny_server: Server) -> None:
    from google.rpc import error_details_pb2, status_pb2

    with pytest.raises(grpc.RpcError) as caught:
        _embed(
            tiny_server, pb.Input(image=PNG), pb.Target(dimensions=7), metadata=(("x-request-id", "me-1"),)
        )
    trailers = dict(caught.value.trailing_metadata())
    assert trailers["x-request-id"] == "me-1"
    assert trailers["pixvec-server"].startswith("0.")
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("BAD_OPTION", "pixvec")
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "targets[0].dimensions"


def test_metadata_is_read_and_contradictions_are_refused(tiny_server: Server) -> None:
    before = tiny_server.metric("pixvec_lane_requests_total", lane="bulk")
    bulk = (("pixvec-priority", "bulk"), ("pixvec-tenant", "acme"), ("pixvec-model", ""))
    _embed(tiny_server, pb.Input(image=PNG), metadata=bulk)
    assert tiny_server.metric("pixvec_lane_requests_total", lane="bulk") == before + 1
    assert "acme" not in tiny_server.metrics()
    for metadata in ((("pixvec-priority", "urgent"),), (("pixvec-model", "other"),)):
        code, error = _refused(tiny_server, pb.Input(image=PNG), metadata=metadata)
        assert (code, pb.Reason.Name(error.reason)) == ("INVALID_ARGUMENT", "REASON_BAD_OPTION")
        assert metadata[0][0] in error.message


def test_metadata_may_route_by_any_name_of_the_model(tiny_server: Server) -> None:
    for name in ("tiny", "tiny-alias"):
        assert _embed(
            tiny_server, pb.Input(image=PNG), metadata=(("pixvec-model", name),)
        ).embedded.embeddings


def test_a_name_of_any_length_is_refused_in_our_own_words(tiny_server: Server) -> None:
    """Trailers have room for 8 KiB: past that, grpc replaces the answer by another that invites retries."""
    code, error = _refused(tiny_server, pb.Input(image=PNG), pb.Target(model="m" * 20_000))
    assert (code, pb.Reason.Name(error.reason)) == ("NOT_FOUND", "REASON_MODEL_NOT_FOUND")
    long = "ü" * 3000
    code, error = _refused(tiny_server, pb.Input(image=PNG, prompt=long), pb.Target())
    assert (code, pb.Reason.Name(error.reason)) == ("INVALID_ARGUMENT", "REASON_BAD_OPTION")


def test_a_deadline_within_the_send_margin_is_no_overload(tiny_server: Server) -> None:
    request = pb.EmbedBatchRequest(inputs=[pb.Input(image=PNG)] * 4)
    for _ in range(5):
        try:
            reasons = {
                pb.Reason.Name(result.error.reason)
                for result in tiny_server.stub().EmbedBatch(request, timeout=0.04).results
                if result.WhichOneof("outcome") == "error"
            }
        except grpc.RpcError as exc:
            assert exc.code().name == "DEADLINE_EXCEEDED"  # noqa: PT017 - either end may see it first
        else:
            assert reasons <= {"REASON_DEADLINE"}


def test_errors_of_a_batch_say_which_input(tiny_server: Server) -> None:
    request = pb.EmbedBatchRequest(inputs=[pb.Input(image=PNG), pb.Input(), pb.Input(image=b"")])
    results = tiny_server.stub().EmbedBatch(request).results
    assert results[1].error.message.startswith("inputs[1].content: ")
    assert results[2].error.message.startswith("inputs[2].image: ")


def test_a_request_id_that_is_not_printable_is_replaced(tiny_server: Server) -> None:
    _, call = tiny_server.stub().Embed.with_call(
        pb.EmbedRequest(input=pb.Input(image=PNG)), metadata=(("x-request-id", "y" * 200),)
    )
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_bytes_that_are_no_message_are_the_callers_fault(tiny_server: Server) -> None:
    with grpc.insecure_channel(tiny_server.target) as channel:
        call = channel.unary_unary("/pixvec.v1.EmbeddingService/Embed")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=10)
    assert caught.value.code().name == "INVALID_ARGUMENT"


def test_too_much_of_anything_names_the_limit(tiny_server: Server) -> None:
    stub = tiny_server.stub()
    limits = stub.ListModels(pb.ListModelsRequest()).limits
    small = pb.Input(image=photos.encode(PHOTO.resize((8, 8)), "PNG"))
    too_many = pb.EmbedBatchRequest(inputs=[small] * (limits.inputs + 1))
    boxed = pb.Input(image=small.image, regions=[pb.Region(whole=True)] * limits.regions)
    too_wide = pb.EmbedBatchRequest(inputs=[boxed] * (limits.vectors // limits.regions + 1))
    for request, name in (
        (too_many, "inputs = "),
        (too_wide, "vectors = "),
        (pb.EmbedBatchRequest(), "empty"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.EmbedBatch(request, timeout=10)
        assert caught.value.code().name == "INVALID_ARGUMENT"
        assert name in caught.value.details()


def test_what_fits_every_limit_is_answered(tiny_server: Server) -> None:
    stub = tiny_server.stub()
    limits = stub.ListModels(pb.ListModelsRequest()).limits
    small = photos.encode(PHOTO.resize((8, 8)), "PNG")
    whole = [pb.Region(whole=True)] * (limits.vectors // limits.inputs)
    request = pb.EmbedBatchRequest(inputs=[pb.Input(image=small, regions=whole)] * limits.inputs)
    answer = stub.EmbedBatch(request, timeout=25)
    assert len(answer.results) == limits.inputs
    assert answer.report.usage.vectors == limits.vectors
    padded = small + b"\0" * (limits.image_bytes - len(small))
    assert _embed(tiny_server, pb.Input(image=padded)).embedded.embeddings
    code, error = _refused(tiny_server, pb.Input(image=padded + b"\0"))
    assert (code, pb.Reason.Name(error.reason)) == ("INVALID_ARGUMENT", "REASON_TOO_LARGE")


def test_a_batch_with_poison_answers_the_rest(server: Server) -> None:
    """32 images of which 3 are broken: 29 right vectors, 3 errors that say what is wrong."""
    names = [name for name in photos.NAMES if name.endswith(("png", "jpg"))]
    images = [photos.jpeg(names[i % len(names)]) for i in range(32)]
    alone = {image: _values(_embed(server, pb.Input(image=image)).embedded.embeddings[0]) for image in images}
    poisoned = dict(enumerate(images)) | {3: b"", 11: images[0][:2000], 30: b"<html></html>"}
    request = pb.EmbedBatchRequest(inputs=[pb.Input(image=poisoned[i]) for i in range(32)])
    results = server.stub().EmbedBatch(request, timeout=25).results
    assert len(results) == 32
    errors = {i: r.error for i, r in enumerate(results) if r.WhichOneof("outcome") == "error"}
    assert {i: pb.Reason.Name(e.reason) for i, e in errors.items()} == dict.fromkeys(
        (3, 11, 30), "REASON_UNDECODABLE"
    )
    assert "empty" in errors[3].message
    assert "truncated" in errors[11].message
    assert "no image" in errors[30].message
    for i, result in enumerate(results):
        if i not in errors:
            vector = _values(result.embedded.embeddings[0])
            assert float(vector @ alone[images[i]]) > 0.9999


def test_a_batch_answers_before_its_deadline_what_it_finished(server: Server) -> None:
    heavy = pb.Input(image=photos.jpeg("rocket.jpg", scale=3))
    started = time.monotonic()
    server.stub().EmbedBatch(pb.EmbedBatchRequest(inputs=[heavy] * 8), timeout=20)
    # Time for a part of the 64 on this machine, as busy as it is.
    deadline = max(0.8, 2 * (time.monotonic() - started))
    answer = server.stub().EmbedBatch(pb.EmbedBatchRequest(inputs=[heavy] * 64), timeout=deadline)
    outcomes = [result.WhichOneof("outcome") for result in answer.results]
    assert len(outcomes) == 64
    late = [result.error for result in answer.results if result.WhichOneof("outcome") == "error"]
    assert 0 < len(late) < 64
    assert {pb.Reason.Name(error.reason) for error in late} == {"REASON_DEADLINE"}


def test_a_cat_is_a_cat(server: Server) -> None:
    answer = _embed(server, pb.Input(image=PNG), pb.Target(output="logits"))
    best = np.argsort(-_values(answer.embedded.embeddings[0]))
    assert best[0] in {281, 282, 285}  # ImageNet: tabby, tiger cat, Egyptian cat
    assert set(best[:3]) <= {281, 282, 283, 284, 285}
