"""What the first bytes of a file say that it is."""

from __future__ import annotations

from pixvec_server.errors import UndecodableError, UnsupportedFormatError

_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (
    (b"\xff\xd8\xff", 0, "jpeg"),
    (b"\x89PNG\r\n\x1a\n", 0, "png"),
    (b"GIF87a", 0, "gif"),
    (b"GIF89a", 0, "gif"),
    (b"WEBP", 8, "webp"),
    (b"II*\x00", 0, "tiff"),
    (b"MM\x00*", 0, "tiff"),
    (b"II+\x00", 0, "tiff"),
    (b"MM\x00+", 0, "tiff"),
    (b"ftypavif", 4, "avif"),
    (b"ftyphei", 4, "heic"),
    (b"ftypmif1", 4, "heic"),
    (b"8BPS", 0, "psd"),
    (b"\x00\x00\x00\x0cjP  ", 0, "jpeg 2000"),
    (b"\xff\x4f\xff\x51", 0, "jpeg 2000"),
    (b"\x00\x00\x00\x0cJXL ", 0, "jpeg xl"),
    (b"\xff\x0a", 0, "jpeg xl"),
    (b"\x00\x00\x01\x00", 0, "ico"),
    (b"%PDF", 0, "pdf"),
    (b"%!PS", 0, "postscript"),
    (b"<svg", 0, "svg"),
    (b"BM", 0, "bmp"),
)


def sniff(data: bytes, allowed: tuple[str, ...]) -> str:
    """Return the format of an image file.

    Raises UnsupportedFormatError for an image that is not in `allowed`, UndecodableError for anything else.
    """
    if not data:
        raise UndecodableError("the image is empty (0 bytes): send the file's bytes", field="image")
    for signature, offset, name in _SIGNATURES:
        if data.startswith(signature, offset):
            if name in allowed:
                return name
            raise UnsupportedFormatError(
                f"this is {name}; the server decodes {', '.join(allowed)}: convert it", field="image"
            )
    start = data[:16].decode("ascii", "replace").encode("ascii", "backslashreplace").decode()
    raise UndecodableError(
        f"{len(data)} bytes that start with {start!r} are no image of a known format", field="image"
    )
