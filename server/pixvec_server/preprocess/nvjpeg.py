"""JPEG decoded on a CUDA device by nvJPEG, all that decode threads wait for at a time in one batch.

The pixels come back to the host, to the one exact resize: a 640 x 427 picture is 0.8 MB, which crosses the
bus in about a tenth of a millisecond, and the decode takes more of a processor than the resize does.
nvJPEG's inverse transform rounds otherwise than libjpeg-turbo's: `build` names it.
"""

from __future__ import annotations

import importlib
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pixvec_server import log
from pixvec_server.cuda import QUIET
from pixvec_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pixvec_server.preprocess.decode import JpegCodec
    from pixvec_server.types import U8

    Decode: TypeAlias = Callable[[Sequence[bytes]], Sequence[U8 | None]]  # None for what it refuses

_MAX_BATCH = 32
_END_OF_IMAGE = b"\xff\xd9"
# As libjpeg-turbo does it; nvJPEG's own default repeats chroma samples.
_OPTIONS = ":fancy_upsampling=1"
_log = log.get("nvjpeg")


class BatchedJpeg:
    """A `JpegCodec` over one that decodes many files at a time; `otherwise` gets what that one refuses.

    Without end marker a file goes there at once: it may be truncated, which a device does not tell.
    """

    def __init__(self, decode: Decode, otherwise: JpegCodec, *, most: int = _MAX_BATCH) -> None:
        self._decode = decode
        self._otherwise = otherwise
        self._most = most
        self._waiting: queue.SimpleQueue[tuple[bytes, Future[U8 | None]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="nvjpeg", daemon=True).start()

    def __call__(self, data: bytes, height: int, width: int) -> U8:
        """See `JpegCodec`."""
        if not data.endswith(_END_OF_IMAGE):
            return self._otherwise(data, height, width)
        answer: Future[U8 | None] = Future()
        self._waiting.put((data, answer))
        rgb = answer.result()
        if rgb is None or rgb.shape != (height, width, 3):
            return self._otherwise(data, height, width)
        array = np.empty((height, width, 4), np.uint8)
        array[:, :, :3] = rgb
        return array

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get())
            for (_, answer), rgb in zip(batch, self._decoded([data for data, _ in batch]), strict=True):
                answer.set_result(rgb)

    def _decoded(self, files: list[bytes]) -> Sequence[U8 | None]:
        try:
            with QUIET.shared():
                decoded = self._decode(files)
        except Exception as exc:  # noqa: BLE001 - the files are still to be decoded, on the CPU
            _log.warning("the device decoded none of a batch", files=len(files), error=str(exc))
            return [None] * len(files)
        return decoded if len(decoded) == len(files) else [None] * len(files)


def on_device(device: str, otherwise: JpegCodec) -> JpegCodec:
    """Return a codec on `cuda` or `cuda:INDEX`. Raises ConfigError with what is missing and the mend."""
    try:
        library: Any = importlib.import_module("nvidia.nvimgcodec")
    except ImportError as exc:
        raise ConfigError(
            f"decode.device = {device} needs nvImageCodec: pip install 'pixvec[gpu-decode]', or decode on cpu"
        ) from exc
    kind, index = library.BackendKind, int(device.partition(":")[2] or 0)
    # None of the CPU's: that one is ours, and exact.
    on_gpu = (kind.HW_GPU_ONLY, kind.GPU_ONLY, kind.HYBRID_CPU_GPU)
    return BatchedJpeg(decoder(library, index, on_gpu), otherwise)


def decoder(library: Any, index: int, kinds: Sequence[Any]) -> Decode:  # noqa: ANN401 - untyped
    """Return what decodes files on a device by these kinds of codec, to (height, width, 3) RGB each.

    Raises ConfigError when the device cannot be used.
    """
    try:
        made = library.Decoder(
            device_id=index, backends=[library.Backend(kind) for kind in kinds], options=_OPTIONS
        )
    except RuntimeError as exc:
        raise ConfigError(
            f"decode.device = cuda:{index}: nvImageCodec cannot use it ({exc}): is the NVIDIA driver here?"
        ) from exc
    # Upright is what the caller makes it, as with every other codec.
    wanted = library.DecodeParams(apply_exif_orientation=False, sample_format=library.SampleFormat.I_RGB)

    def decode(files: Sequence[bytes]) -> list[U8 | None]:
        images = made.decode(list(files), params=wanted)
        return [None if image is None else np.asarray(image.cpu()) for image in images]

    return decode
