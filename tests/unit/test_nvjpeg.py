"""JPEG in batches for a device: what is gathered, what falls back. The device is a stand-in here."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from support import photos

from pixvec_server.errors import ConfigError, UndecodableError
from pixvec_server.preprocess import DecodeOptions, Decoder, ImageLimits, PixelBudget, nvjpeg, turbo

WAIT_S = 10.0
GOOD = photos.jpeg("chelsea.png")
CAT = np.asarray(photos.image("chelsea.png"))
HEIGHT, WIDTH = CAT.shape[:2]


class Device:
    """Decodes as libjpeg-turbo does, plus one grey level; and refuses what it is told to."""

    def __init__(self, *, refuses: bool = False, breaks: bool = False) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.entered = threading.Event()
        self.go.set()
        self._refuses, self._breaks = refuses, breaks

    def __call__(self, files: Sequence[bytes]) -> list[Any]:
        self.batches.append(len(files))
        self.entered.set()
        assert self.go.wait(WAIT_S)
        if self._breaks:
            raise RuntimeError("CUDA error 700")
        return [None if self._refuses else turbo(file, HEIGHT, WIDTH)[:, :, :3] + 1 for file in files]


def test_pixels_come_from_the_device() -> None:
    got = nvjpeg.BatchedJpeg(Device(), turbo)(GOOD, HEIGHT, WIDTH)
    assert got.shape == (HEIGHT, WIDTH, 4)
    np.testing.assert_array_equal(got[:, :, :3], turbo(GOOD, HEIGHT, WIDTH)[:, :, :3] + 1)


@pytest.mark.parametrize("device", [Device(refuses=True), Device(breaks=True)])
def test_what_the_device_refuses_is_decoded_on_the_cpu(device: Device) -> None:
    codec = nvjpeg.BatchedJpeg(device, turbo)
    for _ in range(2):
        np.testing.assert_array_equal(
            codec(GOOD, HEIGHT, WIDTH)[:, :, :3], turbo(GOOD, HEIGHT, WIDTH)[:, :, :3]
        )
    assert device.batches == [1, 1]


def test_pixels_of_another_size_than_the_header_says_are_not_taken() -> None:
    codec = nvjpeg.BatchedJpeg(lambda files: [np.zeros((8, 8, 3), np.uint8)] * len(files), turbo)
    assert codec(GOOD, HEIGHT, WIDTH)[:, :, :3].any()


def test_files_that_wait_go_together_up_to_the_bound() -> None:
    device = Device()
    device.go.clear()
    codec = nvjpeg.BatchedJpeg(device, turbo, most=4)
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(codec, GOOD, HEIGHT, WIDTH)
        assert device.entered.wait(WAIT_S)
        rest = [threads.submit(codec, GOOD, HEIGHT, WIDTH) for _ in range(5)]
        while codec._waiting.qsize() < 5:
            pass
        device.go.set()
        for future in (first, *rest):
            assert future.result(WAIT_S).shape == (HEIGHT, WIDTH, 4)
    assert device.batches == [1, 4, 1]


def _decode(device: Device, data: bytes, limits: ImageLimits | None = None) -> Any:
    decoder = Decoder(
        limits or ImageLimits(), DecodeOptions(), PixelBudget(10**9), nvjpeg.BatchedJpeg(device, turbo)
    )
    with ExitStack() as held:
        return decoder.decode(data, held)


def test_a_header_over_a_limit_never_reaches_the_device() -> None:
    device = Device()
    with pytest.raises(Exception, match="image_pixels = 100"):
        _decode(device, GOOD, ImageLimits(pixels=100))
    assert device.batches == []


def test_a_truncated_file_is_told_by_the_cpu() -> None:
    device = Device()
    with pytest.raises(UndecodableError, match="truncated"):
        _decode(device, GOOD[: len(GOOD) // 2])
    assert device.batches == []


def test_a_library_that_is_not_installed_is_an_error_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(
        ConfigError, match=r"decode\.device = cuda:1 needs nvImageCodec.*pixvec\[gpu-decode\]"
    ):
        nvjpeg.on_device("cuda:1", turbo)


class NoDevice:
    """nvImageCodec on a machine without a driver."""

    def Backend(self, kind: Any) -> Any:  # noqa: N802 - its names
        return kind

    def Decoder(self, **_: Any) -> Any:  # noqa: N802 - as above
        raise RuntimeError("Internal error - Could not create decoder. Code: 8")


def test_a_device_that_cannot_be_used_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"decode\.device = cuda:2.*Code: 8.*driver"):
        nvjpeg.decoder(NoDevice(), 2, ())


def test_nvimagecodec_is_driven_as_it_wants() -> None:
    """The same calls by its CPU codec, which is libjpeg-turbo too: upright is left to us, junk is refused."""
    library = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec ([gpu-decode]) is not installed")
    decode = nvjpeg.decoder(library, library.NVIMGCODEC_DEVICE_CPU_ONLY, (library.BackendKind.CPU_ONLY,))
    good, junk = decode([GOOD, b"\xff\xd8\xff junk"])
    assert junk is None
    assert good is not None
    np.testing.assert_array_equal(good, turbo(GOOD, HEIGHT, WIDTH)[:, :, :3])
