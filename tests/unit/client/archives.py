"""Tar archives, good and bad."""

import tarfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return one header block, which may promise anything."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def write(file: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """Write a good archive."""
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return file
