"""Servers, callers and files that do what no one should; each case was a defect once."""

import asyncio
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from support.waiting import until
from unit.client.fake import SIZE, Running, Service, abort, bare, error, overloaded, serving, vector_of

import pixvec
from pixvec import AsyncClient, BadOptionError, Client, Origin, PixvecError, Vectors
from pixvec._channel import resolved
from pixvec._downscale import downscale
from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as stubs

RESOURCE_EXHAUSTED, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
INTERNAL = error(pb.REASON_INTERNAL, grpc.StatusCode.INTERNAL, "a fault")


def pictures(count: int) -> list[bytes]:
    return [f"picture {i}".encode() for i in range(count)]


def assert_in_order(got: list[Any], images: list[bytes]) -> None:
    np.testing.assert_array_equal(np.stack(got), np.stack([vector_of(image) for image in images]))


def kinds(got: list[Any]) -> list[str]:
    return [type(item).__name__ for item in got]


class Items(Service):
    """A service that answers some inputs with an error in their place, the first `times` times."""

    def __init__(self, failing: dict[bytes, pb.Error], times: int = 1) -> None:
        super().__init__()
        self.failing = {content: [failure] * times for content, failure in failing.items()}

    def _result(self, message: pb.Input, targets: Any) -> pb.Result:
        if left := self.failing.get(message.image):
            return pb.Result(error=left.pop())
        return super()._result(message, targets)


# Wrong ideas of when to ask again


def test_a_server_that_says_it_is_well_and_answers_nothing_is_not_hammered(
    client: Client, server: Running
) -> None:
    server.service.always = bare(UNAVAILABLE)
    got = list(client.embed_iter([b"cat"], timeout=2.0, on_error="return"))
    assert kinds(got) == ["UnavailableError"]
    assert len(server.service.of("EmbedBatch")) <= 25


def test_a_stream_that_always_ends_is_not_opened_without_end(server: Running) -> None:
    class Ending(Service):
        def EmbedStream(self, requests: Any, context: Any) -> Iterator[pb.EmbedStreamResponse]:  # noqa: N802
            self._enter("EmbedStream", next(requests), context)
            yield from ()

    with serving(Ending()) as running, Client(running.target) as client:
        got = list(client.embed_stream([b"cat"], timeout=1.0, on_error="return"))
    assert kinds(got) == ["UnavailableError"]
    assert len(running.service.of("EmbedStream")) <= 12


def test_a_hint_beyond_the_timeout_is_not_waited_for(client: Client, server: Running) -> None:
    server.service.next_failures.append(lambda context: abort(context, overloaded(3600)))
    started = time.monotonic()
    assert kinds(client.embed_batch([b"cat"], on_error="return")) == ["OverloadedError"]
    with serving(Items({b"dog": overloaded(3600)})) as running, Client(running.target) as other:
        got = list(other.embed_iter([b"cat", b"dog"], on_error="return"))
    assert kinds(got) == ["Vectors", "OverloadedError"]
    assert time.monotonic() - started < 5


def test_a_quota_of_one_item_is_not_pressed() -> None:
    quota = error(pb.REASON_QUOTA_EXCEEDED, RESOURCE_EXHAUSTED, "your share", 0.01)
    with serving(Items({b"dog": quota})) as running, Client(running.target) as client:
        got = list(client.embed_iter([b"cat", b"dog"], on_error="return"))
    assert kinds(got) == ["Vectors", "QuotaExceededError"]
    assert running.service.images() == [b"cat", b"dog"]


def test_one_fault_is_forgiven_each_item_and_each_request() -> None:
    with serving(Items({b"dog": INTERNAL})) as running, Client(running.target) as client:
        assert_in_order(list(client.embed_iter([b"cat", b"dog"])), [b"cat", b"dog"])
        # A refusal before it is no fault.
        running.service.next_failures.append(lambda context: abort(context, overloaded(0.01)))
        running.service.next_failures.append(lambda context: abort(context, INTERNAL))
        assert_in_order(list(client.embed_iter([b"cow"])), [b"cow"])


def test_each_attempt_has_an_id_of_its_own(client: Client, server: Running) -> None:
    for _ in range(3):
        server.service.next_failures.append(lambda context: abort(context, overloaded(0.001)))
    client.embed_batch([b"cat"])
    calls = zip(server.service.calls, server.service.metadata, strict=True)
    ids = [metadata["x-request-id"] for (name, _), metadata in calls if name == "EmbedBatch"]
    assert len(ids) == len(set(ids)) == 4


def test_patience_comes_back_with_the_server(client: Client, server: Running) -> None:
    def images() -> Iterator[bytes]:
        server.service.always = bare(UNAVAILABLE)
        yield b"lost"
        for i in range(4):
            yield b"picture %d" % i
            if i == 2:
                server.service.next_failures.extend([bare(UNAVAILABLE)] * 3)

    got = []
    run = client.embed_iter(images(), batch_size=1, in_flight=1, timeout=1.5, on_error="return")
    for outcome in run:
        got.append(outcome)
        server.service.always = None
    assert kinds(got) == ["UnavailableError", *["Vectors"] * 4]


def test_a_server_without_a_health_service_is_waited_for() -> None:
    service = Service()
    with bare_server(service) as target, Client(target) as client:
        list(client.embed_iter([b"warm"]))
        service.next_failures.extend([bare(UNAVAILABLE)] * 6)
        assert_in_order(list(client.embed_iter([b"cat"])), [b"cat"])


async def test_a_server_without_a_health_service_cannot_say_whether_it_is_ready() -> None:
    with bare_server(Service()) as target:
        with Client(target) as client, pytest.raises(PixvecError, match="does not offer this call") as caught:
            client.wait_ready(5)
        assert caught.value.code == "UNIMPLEMENTED"
        async with AsyncClient(target) as aclient:
            with pytest.raises(PixvecError, match="does not offer this call"):
                await aclient.wait_ready(5)


# Answers lost, mixed or left behind


def test_answers_are_kept_when_asking_again_for_the_others_fails() -> None:
    draining = error(pb.REASON_DRAINING, UNAVAILABLE, "stopping")
    with serving(Items({b"dog": draining})) as running, Client(running.target) as client:
        failing = bare(grpc.StatusCode.PERMISSION_DENIED)
        run = client.embed_iter(
            [b"cat", b"dog", b"cow"],
            on_error="return",
            progress=lambda _: running.service.next_failures.clear(),
        )
        running.service.next_failures.extend([lambda _: None, failing])
        got = list(run)
    assert kinds(got) == ["Vectors", "AuthenticationError", "Vectors"]
    assert str(got[1]).startswith("images[1]")


def test_what_is_asked_again_is_of_the_same_space() -> None:
    class Moving(Items):
        def _report(self, targets: Any) -> pb.Report:
            report = super()._report(targets)
            self.space = "space-2"
            return report

    deadline = error(pb.REASON_DEADLINE, grpc.StatusCode.DEADLINE_EXCEEDED, "late")
    with serving(Moving({b"dog": deadline})) as running, Client(running.target) as client:
        got = list(client.embed_iter([b"cat", b"dog"], on_error="return"))
    assert kinds(got) == ["SpaceMismatchError"] * 2


def test_an_answer_with_a_fault_in_it_is_not_remembered(client: Client, server: Running) -> None:
    broken = pb.Input(image=b"cat", regions=[pb.Region(left=5, right=5)])
    list(client.embed_iter_full([broken] * 2, batch_size=1, in_flight=1))
    assert server.service.images() == [b"cat"] * 2


def test_an_error_in_an_answer_leaves_no_call_under_way(client: Client, server: Running) -> None:
    broken = pb.Input(image=b"cat", regions=[pb.Region(left=5, right=5)])
    slow = [b"slow %d" % i for i in range(32)]
    with pytest.raises(pixvec.UndecodableError, match=r"images\[0\]") as caught:
        client.embed_batch([broken, *pictures(31), *slow])
    # One was answered; another, where it arrived at all, was given up while its error is still held.
    until(lambda: server.service.cancelled == len(server.service.of("EmbedBatch")) - 1)
    assert caught.value


def test_large_answers_count_as_held(server: Running) -> None:
    class Large(Service):
        def _model(self) -> pb.Model:
            model = super()._model()
            model.outputs[0].shape[:] = [1 << 20]
            return model

    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        for image in pictures(200):
            taken += 1
            yield image

    with serving(Large()) as running, Client(running.target) as client:
        vectors = client.embed_iter(images(), in_flight=8)
        next(vectors)
        # Two requests of three vectors of 4 MiB, a third when the first is answered, and one image over.
        assert taken <= 13
        assert 1 + len(list(vectors)) == 200


def test_regions_may_be_arrays(client: Client) -> None:
    boxes: Any = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    (got,) = client.embed_batch_full([b"cat"], regions=[boxes])
    for answer in (got, client.embed_full(b"cat", regions=boxes)):
        assert isinstance(answer, pixvec.Embedded)
        np.testing.assert_array_equal(answer.embeddings[1][0].vector, vector_of(b"cat5,6"))


async def test_an_image_that_raises_stop_iteration_ends_nothing(client: Client, aclient: AsyncClient) -> None:
    class Ended:
        def read(self) -> bytes:
            return next(iter(()))

    images: list[Any] = [b"cat", Ended(), b"dog"]
    expected = ["Vectors", "InputError", "Vectors"]
    assert kinds(client.embed_batch(images, on_error="return")) == expected
    async with asyncio.timeout(5):
        assert kinds(await aclient.embed_batch(images, on_error="return")) == expected


# Streams and clients that end in the middle


def test_a_broken_stream_leaves_no_thread(client: Client, server: Running) -> None:
    def threads() -> int:
        return sum(not thread.name.startswith("ThreadPool") for thread in threading.enumerate())

    list(client.embed_stream(pictures(3)))
    before = threads()
    for _ in range(12):
        server.service.break_after = 2
        list(client.embed_stream(pictures(10), batch_size=1))
    eventually(lambda: threads() <= before)


@pytest.mark.parametrize("how", ["embed_iter", "embed_stream"])
async def test_closing_the_client_ends_a_run(server: Running, how: str) -> None:
    server.service.delay_s = 0.3
    client, other = Client(server.target), AsyncClient(server.target)

    async def leave() -> None:
        while len(server.service.images()) < 2:
            await asyncio.sleep(0.01)
        client.close()
        await other.close()

    async def use() -> None:
        async for _ in getattr(other, how)(pictures(500), batch_size=1):
            pass

    def run() -> None:
        for _ in getattr(client, how)(pictures(500), batch_size=1):
            pass

    async with asyncio.timeout(8):
        ended = await asyncio.gather(asyncio.to_thread(run), use(), leave(), return_exceptions=True)
    for failure in ended[:2]:
        assert isinstance(failure, pixvec.PixvecError)
        assert str(failure) == "the client is closed"


async def test_a_message_whose_time_runs_out_half_written_ends_no_run() -> None:
    class Deaf(Service):
        deaf = True

        def EmbedStream(self, requests: Any, context: Any) -> Iterator[pb.EmbedStreamResponse]:  # noqa: N802
            if self.deaf:
                self.deaf = False
                done = threading.Event()
                context.add_callback(done.set)
                done.wait(5)
                return
            yield from super().EmbedStream(requests, context)

    images = [bytes([i]) * (6 << 20) for i in range(6)]
    with serving(Deaf()) as running:
        async with AsyncClient(running.target, timeout=1.0) as client, asyncio.timeout(15):
            run = client.embed_stream(images, batch_size=1, in_flight=2, on_error="return")
            got = [outcome async for outcome in run]
    assert "DeadlineError" in kinds(got[:2])
    assert_in_order(got[2:], images[2:])


async def test_a_run_that_waits_for_nothing_gives_way(aclient: AsyncClient) -> None:
    await aclient.embed_batch([b"cat"])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    before = done = 0
    async for _ in aclient.embed_iter([b"cat"] * 6400):
        before, done = before or turns, done + 1
    task.cancel()
    assert done == 6400
    assert turns - before >= 100


# Addresses


async def test_names_are_not_looked_up_in_the_event_loop(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup, where = socket.getaddrinfo, []

    def noted(*args: Any, **how: Any) -> Any:
        where.append(threading.current_thread())
        return lookup(*args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    async with AsyncClient([server.target, server.target]) as client:
        got = await asyncio.gather(*(client.embed(b"cat") for _ in range(5)))
    assert_in_order(got, [b"cat"] * 5)
    assert where
    assert threading.main_thread() not in where


def test_addresses_are_taken_as_people_write_them(server: Running) -> None:
    with Client(f" {server.target} , {server.target}", token="secret") as client:
        assert client.embed(b"cat").shape == (SIZE,)
    for addresses in ("a..b:1,b:2", "127.0.0.1:99999,127.0.0.1:1", "127.0.0.1:0,127.0.0.1:1"):
        with pytest.raises(BadOptionError, match="target"):
            resolved(addresses)


# Arrays


def test_products_and_indices_are_no_vectors() -> None:
    made = Vectors.of(np.eye(3, dtype=np.float32), Origin("hash", "space-1", "build-1", normalized=True))
    for computed in (
        np.dot(made, made),
        made.dot(made),
        np.inner(made, made),
        made.argsort(),
        np.argsort(made),
        np.argmax(made, axis=1),
    ):
        assert type(computed) is np.ndarray


# Pictures


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # As programs do that were told of large pictures.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    loaded = []
    monkeypatch.setattr(Image.Image, "resize", lambda *_: loaded.append(1))
    data = blank_png(20_000, 20_000)
    assert downscale(pb.Input(image=data), 256, (32, 32)).image == data
    assert not loaded


def test_a_postscript_file_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **_: started.append(args))
    out = io.BytesIO()
    Image.new("RGB", (1024, 512)).save(out, "EPS")
    assert downscale(pb.Input(image=out.getvalue()), 256, (32, 32)).image == out.getvalue()
    assert not started


def test_whatever_pillow_raises_the_picture_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    out = io.BytesIO()
    Image.new("RGB", (1024, 512)).save(out, "JPEG")
    monkeypatch.setattr("pixvec._downscale.upright", fail)
    assert downscale(pb.Input(image=out.getvalue()), 256, (32, 32)).image == out.getvalue()


def test_arrays_of_one_row_keep_their_shape_and_odd_ones_are_left_to_the_server() -> None:
    row = np.arange(3000, dtype=np.uint8).reshape(1, 1000, 3)
    small = downscale(pixvec.to_input(row), 100, (0, 0)).pixels
    assert list(small.shape) == [1, 100, 3]
    assert len(small.data) == 300
    for shape in ([1000, 0, 3], [1000, 3], [1000, 1000, 2], [1000, 1000, 3]):
        odd = pb.Input(pixels=pb.Tensor(encoding=pb.ENCODING_UINT8, shape=shape, data=b"123"))
        assert downscale(odd, 100, (0, 0)) == odd


def blank_png(width: int, height: int) -> bytes:
    """Return a grey picture whose rows are written one by one: it is large for its reader alone."""
    packer = zlib.compressobj(1)
    rows = [packer.compress(bytes(width + 1)) for _ in range(height)]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": b"".join(rows) + packer.flush(),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def bare_server(service: Service) -> Iterator[str]:
    """Run a service without the health service beside it."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    stubs.add_EmbeddingServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
