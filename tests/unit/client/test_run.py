"""Runs through many images: how many requests are under way, what is sent again, and what once."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from support.proxy import proxy
from support.waiting import until
from unit.client.fake import SIZE, Running, Service, abort, bare, error, overloaded, serving, vector_of

import pixvec
from pixvec import AsyncClient, Client, Progress
from pixvec._calls import Budget
from pixvec._types import Timing
from pixvec._window import Window
from pixvec.v1 import embedding_pb2 as pb


def pictures(count: int) -> list[bytes]:
    return [f"picture {i}".encode() for i in range(count)]


def assert_in_order(got: list[Any], images: list[bytes]) -> None:
    np.testing.assert_array_equal(np.stack(got), np.stack([vector_of(image) for image in images]))


def timing(queue: int, total: int) -> Timing:
    return Timing(0, queue, 0, total)


def answer(window: Window, times: int, queue: int = 0) -> Window:
    for _ in range(times):
        window.answered(timing(queue, 10))
    return window


def test_the_window_grows_while_answers_do_not_wait_in_the_servers_queue() -> None:
    window = answer(Window(), 48, queue=1)
    assert window.size == 8
    grown = answer(Window(), 6)
    assert answer(grown, 1000, queue=6).size == 8
    assert answer(grown, 200).size == 64


def test_what_is_under_way_stays_a_small_part_of_what_was_answered() -> None:
    window = Window()
    for answered in range(300):
        assert window.size <= 2 + answered / 8
        window.answered(timing(0, 10))


def test_a_refusal_halves_the_window_and_slows_its_growth() -> None:
    window = answer(answer(Window(), 14), 1000, queue=9)
    assert window.size == 16
    window.refused()
    assert window.size == 8
    assert answer(window, 8).size == 8
    assert answer(window, 1).size == 9
    for _ in range(9):
        window.refused()
    assert window.size == 1


def test_a_fixed_window_stays() -> None:
    window = Window(3)
    window.answered(timing(0, 10))
    window.refused()
    assert window.size == 3


def test_the_budget_ends_retries_until_calls_succeed() -> None:
    budget = Budget()
    assert [budget.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(30):
        budget.succeeded()
    assert budget.failed()


def test_the_window_grows_until_the_server_pushes_back(client: Client, server: Running) -> None:
    server.service.capacity, server.service.delay_s = 5, 0.02
    images = pictures(120)
    assert_in_order(list(client.embed_iter(images, batch_size=1)), images)
    assert server.service.most_under_way == 5
    assert len(server.service.images()) <= 1.2 * len(images)


def test_a_server_that_has_enough_is_not_given_more(client: Client, server: Running) -> None:
    server.service.queue_ns, server.service.delay_s = 5, 0.01
    list(client.embed_iter(pictures(40), batch_size=1))
    assert server.service.most_under_way == 2


def test_a_refusal_is_obeyed(client: Client, server: Running) -> None:
    refused = overloaded(0.3)
    server.service.next_failures.append(lambda context: abort(context, refused))
    started = time.monotonic()
    images = pictures(3)
    assert_in_order(list(client.embed_iter(images)), images)
    assert time.monotonic() - started >= 0.3
    assert len(server.service.images()) == 6


def test_a_batch_is_sent_again_when_it_was_refused(client: Client, server: Running) -> None:
    refused = overloaded(0.01)
    server.service.next_failures.append(lambda context: abort(context, refused))
    images = pictures(3)
    assert_in_order(list(client.embed_batch(images)), images)


def test_a_quota_is_not_pressed(client: Client, server: Running) -> None:
    refused = error(pb.REASON_QUOTA_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED, "your share", 0.01)
    server.service.always = lambda context: abort(context, refused)
    with pytest.raises(pixvec.QuotaExceededError, match="your share"):
        list(client.embed_iter(pictures(3)))
    assert len(server.service.of("EmbedBatch")) == 1


@pytest.mark.parametrize("how", ["embed", "embed_batch", "embed_iter"])
def test_a_server_that_always_refuses_sees_few_more_calls_than_were_made(
    client: Client, server: Running, how: str
) -> None:
    refused = overloaded(0.001)
    server.service.always = lambda context: abort(context, refused)
    images = pictures(100)
    if how == "embed_iter":
        got = client.embed_iter(images, batch_size=1, on_error="return", timeout=0.5)
        assert all(isinstance(item, pixvec.OverloadedError) for item in got)
    else:
        for image in images:
            with pytest.raises(pixvec.OverloadedError):
                client.embed(image) if how == "embed" else client.embed_batch([image])
    calls = len(server.service.of("Embed")) + len(server.service.of("EmbedBatch"))
    assert len(images) <= calls <= 1.2 * len(images)


def test_open_items_alone_are_sent_again(client: Client, server: Running) -> None:
    passing = {b"picture 1": pb.REASON_DRAINING, b"picture 3": pb.REASON_DEADLINE}
    once = OnceFailing(passing)
    with serving(once) as running, Client(running.target, timeout=10) as patient:
        images = pictures(5)
        assert_in_order(list(patient.embed_iter(images)), images)
    assert once.images() == [*images, b"picture 1", b"picture 3"]


def test_items_that_stay_open_fail_after_one_more_try(server: Running) -> None:
    stubborn = OnceFailing({b"picture 1": pb.REASON_DEADLINE}, forgive=False)
    with serving(stubborn) as running, Client(running.target, timeout=10) as patient:
        got = list(patient.embed_iter(pictures(4), on_error="return"))
    assert [type(item).__name__ for item in got] == ["Vectors", "DeadlineError", "Vectors", "Vectors"]
    assert getattr(got[1], "index", None) == 1
    assert len(stubborn.images()) == 5


def test_the_same_image_is_sent_once(client: Client, server: Running) -> None:
    images = [b"cat", b"dog", b"cat", b"bad", b"cat", b"bad", b"dog"]
    got = client.embed_batch(images, on_error="return")
    assert sorted(server.service.images()) == [b"bad", b"cat", b"dog"]
    for i in (3, 5):
        assert isinstance(got[i], pixvec.UndecodableError)
        assert str(got[i]).startswith(f"images[{i}]")
    good = [i for i in range(7) if i not in {3, 5}]
    assert_in_order([got[i] for i in good], [images[i] for i in good])
    first = got[0]
    assert isinstance(first, np.ndarray)
    first[:] = 0
    np.testing.assert_array_equal(got[2], vector_of(b"cat"))


def test_the_same_image_is_sent_once_across_requests_unless_its_regions_differ(
    client: Client, server: Running
) -> None:
    images = [b"cat"] * 10
    assert_in_order(list(client.embed_iter(images, batch_size=2, in_flight=1)), images)
    assert server.service.images() == [b"cat"]
    boxes = [[(0, 0, 1, 1)], [(0, 0, 1, 1)], [(1, 0, 2, 1)]]
    client.embed_batch_full([b"dog"] * 3, regions=boxes)
    assert server.service.images() == [b"cat", b"dog", b"dog"]


def test_a_failure_that_passes_is_not_remembered(client: Client, server: Running) -> None:
    server.service.next_failures.append(bare(grpc.StatusCode.PERMISSION_DENIED))
    images = [b"cat", b"cat"]
    got = list(client.embed_iter(images, batch_size=1, in_flight=1, on_error="return"))
    assert isinstance(got[0], pixvec.AuthenticationError)
    np.testing.assert_array_equal(got[1], vector_of(b"cat"))


def test_a_run_holds_32_mib_at_most(client: Client, server: Running) -> None:
    server.service.limits = pb.Limits(request_bytes=1 << 25, inputs=64, image_bytes=1 << 23)
    server.service.delay_s = 0.05
    taken = 0

    def large() -> Iterator[bytes]:
        nonlocal taken
        for i in range(20):
            taken += 1
            yield i.to_bytes(1, "big") * (4 << 20)

    vectors = client.embed_iter(large(), batch_size=64, in_flight=16)
    next(vectors)
    # Requests of 16 MiB, two of them and what the second's last image left over.
    assert taken <= 10
    assert max(len(request.inputs) for request in server.service.of("EmbedBatch")) == 3
    assert 1 + len(list(vectors)) == 20


def test_a_slow_source_does_not_hold_up_answers(client: Client, server: Running) -> None:
    def slow() -> Iterator[bytes]:
        for image in pictures(50):
            time.sleep(0.06)
            yield image

    vectors = client.embed_iter(slow(), batch_size=1, in_flight=32)
    started = time.monotonic()
    next(vectors)
    assert time.monotonic() - started < 1.0
    vectors.close()


@pytest.mark.parametrize("kind", [RuntimeError, pixvec.InputError])
def test_what_the_iterable_raises_comes_after_the_answers_before_it(
    client: Client, kind: type[Exception]
) -> None:
    def breaks() -> Iterator[bytes]:
        yield from pictures(70)
        raise kind("mine")

    vectors = client.embed_iter(breaks())
    assert_in_order([next(vectors) for _ in range(70)], pictures(70))
    with pytest.raises(kind, match="mine"):
        next(vectors)


async def test_an_async_iterable_that_raises_does_the_same(aclient: AsyncClient) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        for picture in pictures(40):
            yield picture
        raise RuntimeError("mine")

    vectors = aclient.embed_iter(breaks())
    assert_in_order([await anext(vectors) for _ in range(40)], pictures(40))
    with pytest.raises(RuntimeError, match="mine"):
        await anext(vectors)


@pytest.mark.parametrize(
    "cause", [pixvec.BadOptionError("mine"), pixvec.InputError("mine"), ValueError("mine"), OSError("mine")]
)
async def test_answers_that_are_returned_together_survive_what_the_iterable_raises(
    client: Client, aclient: AsyncClient, cause: Exception
) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"cat"
        raise cause

    for got in (
        client.embed_batch(breaks(), on_error="return"),
        client.embed_batch_full(breaks()),
        await aclient.embed_batch(breaks(), on_error="return"),
        await aclient.embed_batch_full(breaks()),
    ):
        answer, last = got
        assert not isinstance(answer, pixvec.PixvecError)
        assert type(last) is pixvec.InputError
        assert str(last) == f"images[1]: the iterable of images raised {type(cause).__name__}: mine"
        assert last.__cause__ is cause
    with pytest.raises(type(cause), match="mine"):
        client.embed_batch(breaks())


def test_regions_that_are_not_as_many_as_images_are_a_mistake_of_the_call(client: Client) -> None:
    whole: list[pixvec.Region] = []
    for regions in ([whole], [whole] * 3):
        with pytest.raises(pixvec.BadOptionError, match="as many lists as there are images"):
            client.embed_batch_full([b"cat", b"dog"], regions=regions)


def test_a_run_waits_for_a_server_that_is_not_there_yet() -> None:
    with proxy(1) as between, Client(between.target, timeout=10) as client, serving() as running:
        threading.Timer(0.5, setattr, (between, "upstream", int(running.target.rpartition(":")[2]))).start()
        assert_in_order(list(client.embed_iter(pictures(3))), pictures(3))


def test_a_trailer_that_is_garbage_does_not_hide_the_status(client: Client, server: Running) -> None:
    def garbage(context: Any) -> None:
        context.set_trailing_metadata((("pixvec-error-bin", b"\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing here")

    server.service.next_failures.append(garbage)
    with pytest.raises(pixvec.ModelNotFoundError, match="nothing here"):
        client.embed(b"cat")


def test_progress_is_told(client: Client) -> None:
    seen: list[Progress] = []
    client.embed_batch([*pictures(70), b"bad"], on_error="return", progress=seen.append)
    assert [p.done for p in seen] == [32, 64, 71]
    assert seen[-1] == Progress(71, 1, 71)
    list(client.embed_iter(iter(pictures(3)), progress=seen.append))
    assert seen[-1] == Progress(3, 0, None)
    boxes = [[(1, 0, 1, 1)], [(0, 0, 1, 1)]]  # the first holds nothing
    got = client.embed_batch_full([b"cat", b"dog"], regions=boxes, progress=seen.append)
    assert [isinstance(answer, pixvec.Embedded) for answer in got] == [True, True]
    assert seen[-1] == Progress(2, 1, 2)


def test_regions_may_come_as_the_images_do(client: Client) -> None:
    boxes = ([(i, 0, i + 1, 1)] for i in range(3))
    answers = list(client.embed_iter_full(iter(pictures(3)), regions=boxes))
    vectors = [answer.vector for answer in answers if isinstance(answer, pixvec.Embedded)]
    assert_in_order(vectors, [f"picture {i}{i},0".encode() for i in range(3)])


def test_vectors_keep_their_origin(client: Client) -> None:
    batch = client.embed_batch([b"cat", b"dog"])
    assert batch.origin == client.embed_full(b"cat").origin
    for vector in (batch[0], client.embed(b"cat"), *client.embed_iter([b"cat"])):
        assert vector.origin is not None
        assert vector.origin.space == "space-1"
    assert client.embed_batch([]).origin is None


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_stream_gives_the_same_in_order(client: Client, server: Running, batch_size: int) -> None:
    images = [*pictures(20), b"bad", *pictures(3)]
    got = list(client.embed_stream(images, batch_size=batch_size, on_error="return"))
    assert isinstance(got.pop(20), pixvec.UndecodableError)
    assert_in_order(got, [image for image in images if image != b"bad"])
    assert not server.service.of("EmbedBatch")
    assert len(server.service.images()) == 21


def test_a_broken_stream_is_opened_anew_and_nothing_is_lost_or_doubled(server: Running) -> None:
    server.service.break_after = 5
    images = pictures(30)
    with Client(server.target, timeout=10) as client:
        assert_in_order(list(client.embed_stream(images, batch_size=1)), images)
    assert len(server.service.images()) <= 1.2 * len(images) + 2


def test_a_message_that_is_not_answered_in_time_says_so(client: Client, server: Running) -> None:
    server.service.delay_s = 1.0
    got = list(client.embed_stream([b"cat"], timeout=0.2, on_error="return"))
    assert isinstance(got[0], pixvec.DeadlineError)


def test_leaving_a_stream_ends_it(client: Client, server: Running) -> None:
    vectors = client.embed_stream(itertools.cycle(pictures(500)), batch_size=1)
    next(vectors)
    vectors.close()
    time.sleep(0.2)
    before = len(server.service.images())
    time.sleep(0.2)
    assert len(server.service.images()) == before


def test_a_stream_that_is_done_ends_without_an_error(client: Client, server: Running) -> None:
    images = pictures(20)
    assert_in_order(list(client.embed_stream(images)), images)
    until(lambda: server.service.streams_ended == 1)


async def test_an_async_stream_that_is_done_ends_without_an_error(
    aclient: AsyncClient, server: Running
) -> None:
    images = pictures(20)
    assert_in_order([v async for v in aclient.embed_stream(images)], images)
    await asyncio.to_thread(until, lambda: server.service.streams_ended == 1)


async def test_an_async_run_does_the_same(aclient: AsyncClient, server: Running) -> None:
    server.service.capacity, server.service.delay_s = 3, 0.01
    images = [*pictures(40), b"picture 3"]
    assert_in_order([v async for v in aclient.embed_iter(images, batch_size=1)], images)
    assert server.service.most_under_way == 3
    assert server.service.images().count(b"picture 3") <= 2


async def test_an_async_stream_survives_a_break(aclient: AsyncClient, server: Running) -> None:
    server.service.break_after = 4
    images = pictures(20)
    assert_in_order([v async for v in aclient.embed_stream(images, batch_size=1)], images)


async def test_leaving_an_async_stream_ends_it(aclient: AsyncClient, server: Running) -> None:
    vectors = aclient.embed_stream(itertools.cycle(pictures(500)), batch_size=1)
    await anext(vectors)
    await vectors.aclose()
    await asyncio.sleep(0.2)
    before = len(server.service.images())
    await asyncio.sleep(0.2)
    assert len(server.service.images()) == before
    assert (await aclient.embed(b"cat")).shape == (SIZE,)


async def test_an_async_message_has_its_timeout(aclient: AsyncClient, server: Running) -> None:
    server.service.delay_s = 1.0
    got = [v async for v in aclient.embed_stream([b"cat"], timeout=0.2, on_error="return")]
    assert isinstance(got[0], pixvec.DeadlineError)


def test_trace_context_goes_along(client: Client, server: Running) -> None:
    trace = {"traceparent": "00-1-2-01", "tracestate": "a=1", "baggage": "b=2"}
    client.embed(b"cat", traceparent="00-1-2-01", tracestate="a=1", baggage="b=2")
    assert server.service.metadata[-1].items() >= trace.items()
    list(client.embed_iter([b"dog"], traceparent="00-1-2-01"))
    assert server.service.metadata[-1]["traceparent"] == "00-1-2-01"


def test_profile_says_where_the_time_went(client: Client, server: Running) -> None:
    profile = client.profile(b"cat", calls=5)
    assert len(server.service.of("Embed")) == 6
    assert profile.calls == 5
    parts = {stage.name: stage.ns for stage in profile.stages}
    assert (parts["decode and resize"], parts["wait for a batch"], parts["compute"]) == (1, 2, 3)
    assert 0 < parts["network and gRPC"] <= profile.total_ns
    assert "network and gRPC" in str(profile)
    assert "in all" in str(profile)


class OnceFailing(Service):
    """A service that answers some inputs with a passing error, the first time or always."""

    def __init__(self, failing: dict[bytes, Any], *, forgive: bool = True) -> None:
        super().__init__()
        self.failing = failing
        self.forgive = forgive

    def _result(self, message: pb.Input, targets: Any) -> pb.Result:
        reason = self.failing.pop(message.image, None) if self.forgive else self.failing.get(message.image)
        if reason is None:
            return super()._result(message, targets)
        return pb.Result(error=error(reason, grpc.StatusCode.UNAVAILABLE, "not now"))
