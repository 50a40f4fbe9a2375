"""The blocking client against a real server."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.waiting import until
from unit.client.fake import SCALE, SIZE, Running, Service, bare, refuse, serving, vector_of

import pixvec
from pixvec import Client, Region, Target
from pixvec.v1 import embedding_pb2 as pb

INTERNAL = refuse(pb.REASON_INTERNAL, grpc.StatusCode.INTERNAL)
DRAINING = refuse(pb.REASON_DRAINING, grpc.StatusCode.UNAVAILABLE)


def test_embed_gives_the_vector_of_the_bytes(client: Client) -> None:
    vector = client.embed(b"cat")
    assert vector.dtype == np.float32
    assert vector.flags.writeable
    np.testing.assert_array_equal(vector, vector_of(b"cat"))


def test_embed_reads_paths(client: Client, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    np.testing.assert_array_equal(client.embed(tmp_path / "cat.jpg"), vector_of(b"cat"))
    np.testing.assert_array_equal(client.embed(str(tmp_path / "cat.jpg")), vector_of(b"cat"))


def test_text_is_sent_as_text_with_its_prompt(client: Client, server: Running) -> None:
    np.testing.assert_array_equal(client.embed_text("a cat", prompt="query"), vector_of(b"a cat"))
    request = server.service.of("Embed")[-1]
    assert (request.input.text, request.input.prompt) == ("a cat", "query")
    with pytest.raises(pixvec.InputError):
        client.embed_text(b"a cat")  # type: ignore[arg-type]


def test_options_reach_the_target(client: Client, server: Running) -> None:
    vector = client.embed(b"cat", model="prod", dimensions=8, normalize=False, encoding="float16", space="s")
    target = server.service.of("Embed")[-1].targets[0]
    assert vector.dtype == np.float16
    assert vector.shape == (8,)
    assert (target.model, target.dimensions, target.space) == ("prod", 8, "s")
    assert target.HasField("normalize")
    assert not target.normalize
    client.embed(b"cat")
    unset = server.service.of("Embed")[-1].targets[0]
    assert not unset.HasField("normalize")
    assert not unset.HasField("dimensions")


def test_encodings_of_one_vector(client: Client) -> None:
    whole = vector_of(b"cat")
    names: list[Any] = ["float32", "float16", "bfloat16", "int8", "binary"]
    answer = client.embed_full(b"cat", targets=[Target(encoding=name) for name in names])
    by_name = dict(zip(names, answer.embeddings[0], strict=True))
    assert by_name["bfloat16"].vector.dtype == np.float32
    np.testing.assert_allclose(by_name["bfloat16"].vector, whole, rtol=2**-7)
    assert by_name["int8"].vector.dtype == np.int8
    assert by_name["int8"].scale == SCALE
    np.testing.assert_allclose(by_name["int8"].dequantized(), whole, atol=SCALE / 2 + 1e-6)
    assert by_name["binary"].vector.shape == (SIZE // 8,)
    np.testing.assert_array_equal(by_name["binary"].dequantized() > 0, whole > 0)


def test_embed_full_places_regions_and_targets(client: Client) -> None:
    answer = client.embed_full(
        b"cat",
        targets=[Target(), Target(dimensions=8)],
        regions=[Region.whole_image(), (5, 6, 7, 8), Region(9, 9, 9, 9)],
    )
    assert len(answer.embeddings) == 3
    assert answer.embeddings[1][1].vector.shape == (8,)
    np.testing.assert_array_equal(answer.vector, vector_of(b"cat"))
    np.testing.assert_array_equal(answer.embeddings[1][0].vector, vector_of(b"cat5,6"))
    assert answer.origin == pixvec.Origin("hash", "space-1", "build-1", normalized=True)
    assert (answer.source.width, answer.source.height, answer.timing.total_ns) == (3, 2, 6)
    with pytest.raises(pixvec.UndecodableError, match="an empty box"):
        _ = answer.embeddings[2][0].vector


def test_a_failed_call_carries_what_the_server_said(client: Client) -> None:
    with pytest.raises(pixvec.OverloadedError) as caught:
        client.embed(b"busy")
    assert caught.value.retry_after == 1.5
    assert caught.value.request_id == "request-7"
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert caught.value.index is None


def test_metadata_of_a_call(server: Running) -> None:
    with Client(server.target, model="prod", token="secret", priority="bulk", tenant="acme") as client:
        client.embed(b"cat", request_id="mine", traceparent="00-trace")
        client.embed(b"cat")
    first, second = server.service.metadata[-2:]
    expected = {
        "authorization": "Bearer secret",
        "pixvec-model": "prod",
        "pixvec-priority": "bulk",
        "pixvec-tenant": "acme",
        "x-request-id": "mine",
        "traceparent": "00-trace",
    }
    assert expected.items() <= first.items()
    assert len(second["x-request-id"]) == 32
    assert "traceparent" not in second


def test_a_model_that_no_header_can_hold_goes_in_the_message(client: Client, server: Running) -> None:
    client.embed(b"cat", model="modèle")
    assert "pixvec-model" not in server.service.metadata[-1]
    assert server.service.of("Embed")[-1].targets[0].model == "modèle"


def test_a_tenant_that_no_header_can_hold_is_refused(server: Running) -> None:
    with Client(server.target, tenant="a\nb") as client, pytest.raises(pixvec.BadOptionError, match="tenant"):
        client.embed(b"cat")


def test_batch_is_chunked_by_the_servers_limits(client: Client, server: Running) -> None:
    server.service.limits = pb.Limits(inputs=3, request_bytes=1 << 20)
    images = [b"%d" % i for i in range(10)]
    vectors = client.embed_batch(images)
    np.testing.assert_array_equal(vectors, np.stack([vector_of(image) for image in images]))
    assert sorted(len(request.inputs) for request in server.service.of("EmbedBatch")) == [1, 3, 3, 3]
    assert len(server.service.of("ListModels")) == 1


def test_batch_keeps_to_request_bytes_and_vectors(client: Client, server: Running) -> None:
    server.service.limits = pb.Limits(request_bytes=250_000, vectors=5)
    client.embed_batch([bytes([i]) * 100_000 for i in range(5)])
    # They are in flight together: which arrives first is chance.
    assert sorted(len(request.inputs) for request in server.service.of("EmbedBatch")) == [1, 2, 2]
    server.service.calls.clear()
    client.embed_batch_full([b"%d" % i for i in range(5)], targets=[Target(), Target(dimensions=8)])
    assert sorted(len(request.inputs) for request in server.service.of("EmbedBatch")) == [1, 2, 2]


def test_errors_stand_in_their_place(client: Client) -> None:
    got = client.embed_batch([b"a", b"bad", "/no/such/file", b"busy", b"b"], on_error="return")
    kinds = [type(item).__name__ for item in got]
    assert kinds == ["Vectors", "UndecodableError", "InputError", "OverloadedError", "Vectors"]
    assert [item.index for item in got if isinstance(item, pixvec.PixvecError)] == [1, 2, 3]
    np.testing.assert_array_equal(got[4], vector_of(b"b"))


def test_raise_names_the_image(client: Client) -> None:
    with pytest.raises(pixvec.UndecodableError, match=r"^images\[2\]: not an image$") as caught:
        client.embed_batch([b"a", b"b", b"bad"])
    assert caught.value.index == 2


def test_a_failed_request_fails_its_items_only(client: Client, server: Running) -> None:
    server.service.limits = pb.Limits(inputs=2)
    forbidden = bare(grpc.StatusCode.PERMISSION_DENIED)
    server.service.next_failures.append(forbidden)
    got = client.embed_batch([b"a", b"b", b"c", b"d"], on_error="return")
    kinds = sorted(type(item).__name__ for item in got)
    assert kinds == ["AuthenticationError", "AuthenticationError", "Vectors", "Vectors"]
    assert [i for i, item in enumerate(got) if isinstance(item, pixvec.PixvecError) and item.index != i] == []


def test_an_empty_batch_keeps_its_width(client: Client) -> None:
    assert client.embed_batch([]).shape == (0, SIZE)
    assert client.embed_batch([], dimensions=8).shape == (0, 8)
    assert client.embed_batch([], on_error="return") == []


def test_one_image_is_not_a_batch(client: Client) -> None:
    one: list[Any] = [
        b"cat",
        "cat.jpg",
        Path("cat.jpg"),
        np.zeros((4, 4, 3), np.uint8),
        pb.Input(image=b"cat"),
    ]
    for image in one:
        with pytest.raises(pixvec.InputError, match="expected many images"):
            client.embed_batch(image)
    assert client.embed_batch(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, SIZE)


def test_regions_go_with_their_image(client: Client) -> None:
    got = client.embed_batch_full(
        [b"a", b"b"], regions=[[(1, 2, 3, 4)], [(5, 6, 7, 8), Region.whole_image()]]
    )
    first, second = [item for item in got if isinstance(item, pixvec.Embedded)]
    np.testing.assert_array_equal(first.vector, vector_of(b"a1,2"))
    np.testing.assert_array_equal(second.embeddings[1][0].vector, vector_of(b"b"))
    with pytest.raises(pixvec.BadOptionError, match="as many lists"):
        client.embed_batch_full([b"a", b"b"], regions=[[]])
    with pytest.raises(pixvec.BadOptionError, match="as many lists"):
        client.embed_batch_full([b"a"], regions=[[], []])


def test_vectors_of_two_spaces_never_share_a_matrix(client: Client, server: Running) -> None:
    server.service.limits = pb.Limits(inputs=1)

    def images() -> Iterator[bytes]:
        for i in range(6):
            if i == 4:
                server.service.space = "space-2"
            yield b"%d" % i

    with pytest.raises(pixvec.SpaceMismatchError, match="space-1 to space-2"):
        client.embed_batch(images())


def test_an_oversize_image_is_never_sent(client: Client, server: Running) -> None:
    server.service.limits = pb.Limits(image_bytes=5 << 20)
    for call in (client.embed, lambda image: client.embed_batch([image])):
        with pytest.raises(pixvec.TooLargeError, match=r"6291456 bytes.*image_bytes is 5242880"):
            call(bytes(6 << 20))
    assert {name for name, _ in server.service.calls} == {"ListModels"}


def test_an_image_over_the_clients_own_limit_is_never_sent(server: Running) -> None:
    with Client(server.target, max_message_bytes=1 << 16) as client:
        with pytest.raises(pixvec.TooLargeError, match="max_message_bytes is 65536"):
            client.embed(bytes(1 << 17))
        assert client.embed(bytes(1 << 15)).shape == (SIZE,)


def test_a_large_request_is_tried_again(client: Client, server: Running) -> None:
    server.service.next_failures.append(DRAINING)
    image = bytes(2 << 20)
    np.testing.assert_array_equal(client.embed(image), vector_of(image))
    assert len(server.service.of("Embed")) == 2
    assert server.service.metadata[-1]["grpc-previous-rpc-attempts"] == "1"


def test_retries_add_little_to_an_outage(client: Client, server: Running) -> None:
    server.service.always = refuse(pb.REASON_OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.01)
    for _ in range(100):
        with pytest.raises(pixvec.OverloadedError):
            client.embed(b"cat")
    assert 100 < len(server.service.of("Embed")) <= 120


def test_a_fault_of_the_server_is_tried_once_more(client: Client, server: Running) -> None:
    server.service.next_failures.append(INTERNAL)
    assert client.embed(b"cat").shape == (SIZE,)
    first, second = [m["x-request-id"] for m in server.service.metadata]
    assert second == f"{first}-again"
    server.service.next_failures.append(INTERNAL)
    assert client.embed_batch([b"cat"]).shape == (1, SIZE)
    server.service.calls.clear()
    server.service.always = INTERNAL
    with pytest.raises(pixvec.InternalError, match=r"no \(request request-7\)"):
        client.embed(b"cat")
    assert len(server.service.of("Embed")) == 2


def test_a_bad_request_is_not_tried_again(client: Client, server: Running) -> None:
    with pytest.raises(pixvec.UndecodableError):
        client.embed(b"bad")
    assert len(server.service.of("Embed")) == 1


def test_iter_keeps_order_and_reads_no_further_than_it_must(client: Client, server: Running) -> None:
    server.service.delay_s = 0.01
    read = 0

    def images() -> Iterator[bytes]:
        nonlocal read
        for i in range(60):
            read += 1
            yield b"%d" % i

    furthest = 0
    for done, vector in enumerate(client.embed_iter(images(), batch_size=4, in_flight=3)):
        np.testing.assert_array_equal(vector, vector_of(b"%d" % done))
        furthest = max(furthest, read - done)
    assert done == 59
    assert furthest <= 3 * 4
    assert 2 <= server.service.most_under_way <= 3


def test_iter_is_lazy_and_can_be_left(client: Client, server: Running) -> None:
    def endless() -> Iterator[bytes]:
        i = 0
        while True:
            yield b"%d" % (i := i + 1)

    vectors = client.embed_iter(endless(), batch_size=2, in_flight=2)
    assert server.service.calls == []
    np.testing.assert_array_equal(next(vectors), vector_of(b"1"))
    vectors.close()
    assert client.embed(b"cat").shape == (SIZE,)


def test_leaving_an_iteration_cancels_what_is_under_way(client: Client, server: Running) -> None:
    vectors = client.embed_iter([b"cat", b"slow", b"slower"], batch_size=1, in_flight=3)
    next(vectors)
    until(lambda: len(server.service.images()) == 3)
    vectors.close()
    until(lambda: server.service.cancelled == 2)


def test_iter_full_tells_origin_and_errors(client: Client) -> None:
    first, second = client.embed_iter_full([b"cat", b"bad"], targets=[Target("prod")])
    assert isinstance(first, pixvec.Embedded)
    assert first.origin.model == "hash"
    assert isinstance(second, pixvec.UndecodableError)


def test_an_error_of_the_callers_iterable_passes_through(client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b"cat"
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        client.embed_batch(broken())


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"in_flight": 0}, {"on_error": "ignore"}])
def test_bad_settings_are_refused(client: Client, options: dict[str, Any]) -> None:
    with pytest.raises(pixvec.BadOptionError):
        list(client.embed_iter([b"cat"], **options))


def test_similarity_of_images(client: Client) -> None:
    scores = client.similarity(b"a", [b"a", b"b", b"c"])
    assert scores.shape == (1, 3)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[0, 1], vector_of(b"a") @ vector_of(b"b"), rtol=1e-5)


def test_similarity_of_vectors_needs_their_space(client: Client) -> None:
    index = np.stack([vector_of(b"a"), vector_of(b"b"), vector_of(b"c")])
    with pytest.raises(pixvec.BadOptionError, match=r"candidates\[0\]: vectors need space="):
        client.similarity(b"a", index)
    with pytest.raises(pixvec.SpaceMismatchError):
        client.similarity(b"a", index, space="other")
    nearest = client.similarity([b"b", index[2]], index, space="space-1", top_k=2)
    assert nearest.indices.shape == nearest.scores.shape == (2, 2)
    assert nearest.indices[:, 0].tolist() == [1, 2]
    np.testing.assert_allclose(nearest.scores[:, 0], 1, rtol=1e-5)


def test_similarity_of_embeddings_names_their_space(client: Client, server: Running) -> None:
    answer = client.embed_full(b"a", targets=[Target(encoding="int8")])
    scores = client.similarity(answer.embeddings[0][0], [b"a", b"b"])
    assert server.service.of("Similarity")[-1].queries[0].space == "space-1"
    assert scores[0, 0] > 0.99


def test_similarity_refuses_what_cannot_be_compared(client: Client) -> None:
    with pytest.raises(pixvec.BadOptionError, match="metric"):
        client.similarity(b"a", b"b", metric="manhattan")  # type: ignore[call-overload]
    with pytest.raises(pixvec.BadOptionError, match="top_k"):
        client.similarity(b"a", b"b", top_k=0)
    with pytest.raises(pixvec.BadOptionError, match="candidates is empty"):
        client.similarity(b"a", [])
    with pytest.raises(pixvec.InputError, match=r"queries\[0\].*NaN"):
        client.similarity(np.array([np.nan, 1.0]), b"a", space="s")


def test_models_and_limits(client: Client) -> None:
    (model,) = client.models()
    assert (model.name, model.aliases, model.state) == ("hash", ("prod",), "ready")
    assert model.parity is None
    output = client.model("prod").output()
    assert output is not None
    assert (output.shape, output.dimensions) == ((SIZE,), (SIZE, 8))
    assert client.limits().inputs == 64
    with pytest.raises(pixvec.ModelNotFoundError, match="no model x"):
        client.model("x")


def test_health(client: Client, server: Running) -> None:
    assert client.health()
    server.set_serving("NOT_SERVING")
    assert not client.health()
    assert client.health_state() == "NOT_SERVING"
    assert client.health("pixvec.v1.EmbeddingService")
    assert client.health_state("no.such.Service") == "SERVICE_UNKNOWN"
    assert not client.health("no.such.Service")


def test_wait_ready_waits(client: Client, server: Running) -> None:
    server.set_serving("NOT_SERVING")
    timer = threading.Timer(0.3, server.set_serving, ["SERVING"])
    timer.start()
    started = time.monotonic()
    client.wait_ready(10)
    assert 0.25 < time.monotonic() - started < 5
    server.set_serving("NOT_SERVING")
    with pytest.raises(pixvec.DeadlineError, match=r"not ready within 0.2 s: NOT_SERVING"):
        client.wait_ready(0.2)


def test_no_server() -> None:
    with Client("127.0.0.1:1", timeout=5) as client:
        with pytest.raises(pixvec.ConnectionFailedError, match=r"no server at 127.0.0.1:1") as caught:
            client.embed(b"cat")
        assert isinstance(caught.value, pixvec.UnavailableError)
        assert not client.health()


def test_the_timeout_holds(client: Client, server: Running) -> None:
    server.service.delay_s = 1.0
    started = time.monotonic()
    with pytest.raises(pixvec.DeadlineError):
        client.embed_batch([b"cat"], timeout=0.2)
    assert time.monotonic() - started < 0.9


def test_a_closed_client_says_so(server: Running) -> None:
    client = Client(server.target)
    client.embed(b"cat")
    client.close()
    with pytest.raises(pixvec.PixvecError, match="closed"):
        client.embed(b"cat")


def test_many_threads_share_a_client(client: Client) -> None:
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        got[i] = client.embed_batch([b"%d" % i] * 5)

    threads = [threading.Thread(target=work, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, vectors in got.items():
        np.testing.assert_array_equal(vectors, np.stack([vector_of(b"%d" % i)] * 5))
    assert len(got) == 8


def test_a_short_answer_is_an_error_not_a_shift() -> None:
    class Short(Service):
        def EmbedBatch(self, request: Any, context: Any) -> pb.EmbedBatchResponse:  # noqa: N802
            response = super().EmbedBatch(request, context)
            del response.results[0]
            return response

    short = pytest.raises(pixvec.InternalError, match="answered 1 of 2 inputs")
    with serving(Short()) as running, Client(running.target) as client, short:
        client.embed_batch([b"a", b"b"])


def test_an_unknown_option_is_refused(client: Client) -> None:
    wrong: dict[str, Any] = {"dimensoins": 8}
    misplaced: dict[str, Any] = {"model": "prod"}
    calls: list[Callable[[], Any]] = [
        lambda: client.embed(b"x", **wrong),
        lambda: client.embed_batch([], **wrong),
        lambda: next(client.embed_iter([b"x"], **wrong)),
        lambda: client.similarity(b"x", b"y", **wrong),
        lambda: client.models(**wrong),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="no option dimensoins here"):
            call()
    for call in (
        lambda: client.embed_full(b"x", **misplaced),
        lambda: client.embed_batch_full([b"x"], **misplaced),
    ):
        with pytest.raises(TypeError, match=r"goes into targets=\[Target"):
            call()


def test_an_unknown_encoding_is_refused_in_a_batch(client: Client) -> None:
    unknown: Any = "int4"
    with pytest.raises(pixvec.BadOptionError, match="encoding must be one of"):
        client.embed_batch([b"x"], encoding=unknown)


def test_a_region_that_is_none_is_refused_in_its_place(client: Client) -> None:
    floats: Any = (0.5, 0.0, 3.0, 3.0)
    short: Any = (1, 2, 3)
    for region in (floats, short):
        with pytest.raises(pixvec.BadOptionError, match="a region is"):
            client.embed_full(b"x", regions=[region])
    bad, good = client.embed_batch_full([b"x", b"y"], regions=[[floats], []])
    assert isinstance(bad, pixvec.BadOptionError)
    assert isinstance(good, pixvec.Embedded)


def test_similarity_takes_whole_answers(client: Client) -> None:
    one, two = client.embed_full(b"x"), client.embed_full(b"y")
    expected = client.similarity([b"x", b"y"], b"x")
    np.testing.assert_allclose(client.similarity([one, two], one), expected, atol=1e-6)


def test_a_failed_request_raises_without_an_index(client: Client, server: Running) -> None:
    server.service.always = refuse(pb.REASON_MODEL_NOT_FOUND, grpc.StatusCode.NOT_FOUND)
    with pytest.raises(pixvec.ModelNotFoundError) as caught:
        client.embed_batch([b"x", b"y"])
    assert caught.value.index is None


def test_iter_waits_for_a_server_that_went_away(client: Client, server: Running) -> None:
    items = client.embed_iter([b"x"] * 4, batch_size=1, in_flight=1)
    next(items)
    server.service.always = bare(grpc.StatusCode.UNAVAILABLE)
    server.set_serving("NOT_SERVING")

    def come_back() -> None:
        server.service.always = None
        server.set_serving("SERVING")

    timer = threading.Timer(1.5, come_back)
    timer.start()
    assert len(list(items)) == 3
    timer.join()


def test_iter_waits_in_vain_only_once(client: Client, server: Running) -> None:
    items = client.embed_iter(
        map(str.encode, "abcdef"), batch_size=1, in_flight=1, on_error="return", timeout=1.0
    )
    next(items)
    server.service.always = bare(grpc.StatusCode.UNAVAILABLE)
    server.set_serving("NOT_SERVING")
    started = time.monotonic()
    assert all(isinstance(item, pixvec.UnavailableError) for item in items)
    assert time.monotonic() - started < 5.0


@pytest.mark.parametrize("timeout", [None, 0, -1, float("inf"), float("nan"), "30"])
def test_a_timeout_is_a_positive_number(timeout: Any) -> None:
    with pytest.raises(pixvec.BadOptionError, match="timeout"):
        pixvec.Client("127.0.0.1:9", timeout=timeout)
