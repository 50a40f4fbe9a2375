"""What the tests of hostile models share: payloads that tell when they ran, and a watch on what is opened.

A pickle that is unpickled makes a file, the canary; the kernel tells of every open and every write in the
folder that pointers lead to.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixvec_server import bundle
from pixvec_server.spec import ModelSpec

_IN_OPEN, _IN_MODIFY, _IN_CREATE, _IN_DELETE = 0x20, 0x02, 0x100, 0x200


class Watch:
    """What the kernel tells of files: every open, write, creation and removal (inotify)."""

    def __init__(self, *paths: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._handle >= 0, os.strerror(ctypes.get_errno())
        for path in paths:
            mask = _IN_OPEN | _IN_MODIFY | _IN_CREATE | _IN_DELETE
            assert self._libc.inotify_add_watch(self._handle, os.fsencode(path), mask) >= 0

    def events(self) -> list[str]:
        """Return what happened since the last call."""
        try:
            data = os.read(self._handle, 65536)
        except BlockingIOError:
            return []
        found = []
        while data:
            _, mask, _, size = struct.unpack_from("iIII", data)
            found.append(f"{mask:#x} {data[16 : 16 + size].rstrip(bytes(1)).decode()}")
            data = data[16 + size :]
        return found

    def close(self) -> None:
        """Give the watch back."""
        os.close(self._handle)


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    """Fail when a file of these folders, or one of these files under any name, is opened or written."""
    watch = Watch(*paths)
    try:
        yield
        assert watch.events() == []
    finally:
        watch.close()


class Payload:
    """Unpickled, it calls."""

    def __init__(self, call: Callable[..., Any], *words: Any) -> None:
        self._call, self._words = call, words

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call, self._words


PAYLOADS: dict[str, Callable[[Path], Payload]] = {
    "os.system": lambda canary: Payload(os.system, f"echo > {canary}"),
    "exec": lambda canary: Payload(builtins.exec, f"import os; os.mkdir({str(canary)!r})"),
    "subprocess": lambda canary: Payload(subprocess.check_call, ["touch", str(canary)]),
    "mkdir": lambda canary: Payload(os.mkdir, str(canary)),
}


def torch_zip(held: Any) -> bytes:
    """Return a checkpoint as torch writes it: a zip with a pickle in it."""
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    torch.save(held, target)
    return target.getvalue()


def torch_legacy(held: Any) -> bytes:
    """Return a checkpoint as torch wrote it once: pickles, one behind the other."""
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    torch.save(held, target, _use_new_zipfile_serialization=False)
    return target.getvalue()


def _poisoned_zip(held: Any) -> bytes:
    """Make a whole checkpoint of good tensors, whose data.pkl is another one."""
    torch = pytest.importorskip("torch")
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_zip({"weight": torch.zeros(2, 2)}))) as good,
        zipfile.ZipFile(target, "w") as bad,
    ):
        for item in good.infolist():
            poison = item.filename.endswith("data.pkl")
            bad.writestr(item.filename, pickle.dumps(held, 2) if poison else good.read(item))
    return target.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "pickle": lambda held: pickle.dumps(held, 2),
    "zip": torch_zip,
    "legacy": torch_legacy,
    "poisoned-zip": _poisoned_zip,
}


def build(spec: ModelSpec) -> None:
    """Build the model in torch; the test is skipped where there is none."""
    pytest.importorskip("torch")
    from pixvec_server import module

    module.build(spec)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the bundle.json of a folder."""
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    change(manifest)
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
