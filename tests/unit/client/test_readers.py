"""Whatever is raised while an item becomes an Input is that item's error, and its neighbors are answered."""

import asyncio
import io
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from unit.client.fake import Running, vector_of

import pixvec
from pixvec import AsyncClient, BadOptionError, Client, InputError, Region, Text


class Failing:
    """A file object whose read raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def read(self) -> bytes:
        raise self.error

    def __repr__(self) -> str:
        return "failing"


def failing(error: BaseException) -> Any:
    return Failing(error)


class Nameless(Failing):
    def __repr__(self) -> str:
        raise RuntimeError("no name")


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class NoRead:
    @property
    def read(self) -> Any:
        raise PermissionError("no read")


class NoPath:
    def __fspath__(self) -> str:
        raise LookupError("no path")


class NoArray:
    def __array__(self, *_: object, **__: object) -> Any:
        raise ZeroDivisionError("no array")


class LazyPicture(Image.Image):
    def load(self) -> Any:
        raise struct.error("unpack requires a buffer of 4 bytes")

    def getexif(self) -> Any:
        raise struct.error("unpack requires a buffer of 4 bytes")


class NoMode(Image.Image):
    @property
    def mode(self) -> str:
        raise RuntimeError("no mode")


def cut_png() -> Any:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:200]))


MASKED = np.ma.masked_array(np.zeros((4, 4), np.uint8), mask=np.eye(4, dtype=bool))
UNREADABLE = [
    (lambda: Text("a\ud800"), r"lone surrogate '\\ud800' at position 1"),
    (lambda: Text(3), "text must be a str, not int"),  # type: ignore[arg-type]
    (lambda: Text("a", prompt=4), "prompt must be a str"),  # type: ignore[arg-type]
    (lambda: Text("a", prompt="\udcff"), "prompt is not valid Unicode"),
    (lambda: Failing(EOFError()), "failing: EOFError$"),
    (lambda: Failing(RuntimeError("gone")), "failing: RuntimeError: gone"),
    (lambda: Failing(KeyError("key")), "failing: KeyError: 'key'"),
    (lambda: Failing(OSError("disk")), "failing: disk"),
    (lambda: Failing(UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")), "UnicodeDecodeError: 'utf-8' codec"),
    (lambda: Failing(MemoryError()), "MemoryError"),
    (lambda: Failing(RecursionError("deep")), "RecursionError: deep"),
    (lambda: Failing(StopIteration()), "StopIteration"),
    (lambda: Failing(StopAsyncIteration()), "StopAsyncIteration"),
    (lambda: Failing(ExceptionGroup("many", [OSError()])), "ExceptionGroup: many"),
    (lambda: Failing(SpeechlessError()), "failing: SpeechlessError$"),
    (lambda: Nameless(OSError("disk")), "a Nameless: disk"),
    (NoRead, "no read"),
    (NoPath, "LookupError: no path"),
    (NoArray, "ZeroDivisionError: no array"),
    (LazyPicture, "unpack requires"),
    (NoMode, "no mode"),
    (cut_png, "PIL image of mode L that cannot be sent"),
    (lambda: MASKED, r"array.filled\(0\)"),
    (lambda: np.zeros((4, 4), object), "not object"),
    (lambda: np.zeros((4, 4), complex), "not complex128"),
    (lambda: np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\)"),
    (lambda: np.array("cat.jpg"), r"not \(\)"),
    (lambda: "/", "Is a directory"),
    (lambda: "nul\0.jpg", "null"),
    (lambda: "a\ud800.jpg", "surrogates not allowed"),
    (lambda: 3, "cannot be a int"),
    (lambda: None, "cannot be a NoneType"),
    (object, "cannot be a object"),
]


@pytest.mark.parametrize(("made", "said"), UNREADABLE)
async def test_an_item_that_cannot_be_read_fails_alone(
    client: Client, aclient: AsyncClient, made: Any, said: str
) -> None:
    images: list[Any] = [b"cat", made(), b"dog"]
    runs: list[list[Any]] = [client.embed_batch(images, on_error="return")]
    runs += [list(client.embed_iter(images, on_error="return", batch_size=2))]
    runs += [list(client.embed_stream(images, on_error="return", batch_size=2))]
    runs += [await aclient.embed_batch(images, on_error="return")]
    runs += [[vector async for vector in aclient.embed_iter(images, on_error="return")]]
    runs += [[vector async for vector in aclient.embed_stream(images, on_error="return")]]
    for cat, failed, dog in runs:
        np.testing.assert_array_equal(cat, vector_of(b"cat"))
        np.testing.assert_array_equal(dog, vector_of(b"dog"))
        assert type(failed) is InputError
        assert failed.index == 1


@pytest.mark.parametrize(("made", "said"), UNREADABLE)
async def test_an_item_that_cannot_be_read_raises_input_error(
    client: Client, aclient: AsyncClient, made: Any, said: str
) -> None:
    image = made()
    for call in (
        lambda: client.embed(image),
        lambda: client.embed_batch([b"cat", image]),
        lambda: list(client.embed_iter([b"cat", image])),
        lambda: client.similarity(b"cat", [b"dog", image]),
    ):
        with pytest.raises(InputError, match=said):
            call()
    for awaited in (
        lambda: aclient.embed(image),
        lambda: aclient.embed_batch([b"cat", image]),
        lambda: aclient.similarity(b"cat", [b"dog", image]),
    ):
        with pytest.raises(InputError, match=said):
            await awaited()


async def test_the_cause_stays_with_the_error_of_an_item(client: Client) -> None:
    cause = KeyError("key")
    (failed,) = client.embed_batch([failing(cause)], on_error="return")
    assert isinstance(failed, InputError)
    assert failed.__cause__ is cause
    with pytest.raises(InputError, match=r"candidates\[1\]: failing: KeyError"):
        client.similarity(b"cat", [b"dog", failing(cause)])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_what_is_no_exception_of_the_item_passes(client: Client, kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        client.embed(failing(kind()))
    with pytest.raises(kind):
        client.embed_batch([b"cat", failing(kind())], on_error="return")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_is_no_exception_of_the_item_passes_through_asyncio(
    server: Running, kind: type[BaseException]
) -> None:
    async def use() -> None:
        async with AsyncClient(server.target) as client:
            await client.embed_batch([b"cat", failing(kind())], on_error="return")

    with pytest.raises(kind):
        asyncio.run(use())


@pytest.mark.parametrize(
    "regions",
    [5, None, Region(1, 2, 3, 4), "ab", [None], [(1, 2)], [(1.5, 2, 3, 4)], [(1, 2, 3, 1 << 40)]],
)
def test_regions_of_a_wrong_type_fail_their_image_alone(client: Client, regions: Any) -> None:
    with pytest.raises(BadOptionError, match="region"):
        client.embed_full(b"cat", regions=regions)
    got = client.embed_batch_full([b"cat", b"cow", b"dog"], regions=[[(1, 2, 3, 4)], regions, []])
    assert [type(answer).__name__ for answer in got] == ["Embedded", "BadOptionError", "Embedded"]


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": 3},
        {"prompt": "\ud800"},
        {"model": 3},
        {"model": "\ud800"},
        {"dimensions": "x"},
        {"space": b"\xff"},
    ],
)
def test_an_option_of_a_wrong_type_is_a_bad_option(client: Client, options: Any) -> None:
    with pytest.raises(BadOptionError):
        client.embed(b"cat", **options)


# The caller's iterable itself


def breaking() -> Iterator[bytes]:
    yield b"cat"
    yield b"bad"
    raise RuntimeError("the disk is gone")


async def test_an_iterable_that_raises_loses_no_answer(client: Client, aclient: AsyncClient) -> None:
    async def abreaking() -> AsyncIterator[bytes]:
        for image in breaking():
            yield image

    expected = ["Vectors", "UndecodableError", "InputError"]
    runs: list[list[Any]] = [client.embed_batch(breaking(), on_error="return")]
    runs += [await aclient.embed_batch(breaking(), on_error="return")]
    runs += [await aclient.embed_batch(abreaking(), on_error="return")]
    runs += [client.embed_batch_full(breaking())]
    for run in runs:
        assert [type(item).__name__ for item in run[1:]] == expected[1:]
        assert str(run[2]) == "images[2]: the iterable of images raised RuntimeError: the disk is gone"
        assert isinstance(run[2].__cause__, RuntimeError)
    for name in ("embed_iter", "embed_stream"):
        run = getattr(client, name)(breaking(), on_error="return")
        assert [type(next(run)).__name__ for _ in range(2)] == expected[:2]
        with pytest.raises(RuntimeError, match="the disk is gone"):
            next(run)


def test_an_iterable_of_regions_that_raises_loses_no_answer(client: Client) -> None:
    def regions() -> Iterator[list[Any]]:
        yield []
        raise RuntimeError("no more")

    run = client.embed_iter_full([b"cat", b"dog"], regions=regions())
    assert isinstance(next(run), pixvec.Embedded)
    with pytest.raises(RuntimeError, match="no more"):
        next(run)
