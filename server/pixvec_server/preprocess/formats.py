"""Which of the decodable formats a file is, by its first bytes and never by its name."""

from __future__ import annotations

from pixvec_server.errors import UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess.foreign import brands_of, foreign_kind, is_text

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
)
# In a TIFF header's place for it: Canon's raw files.
_CR2_MARK, _CR2_AT = b"CR\x02", 8
_AVIF_BRANDS = {b"avif", b"avis"}


def sniff(data: bytes, allowed: tuple[str, ...]) -> str:
    """Return the format of an image file.

    Raises UnsupportedFormatError for a known kind of file that is not in `allowed`, UndecodableError for text
    and anything else.
    """
    if not data:
        raise UndecodableError("the image is empty (0 bytes): send the file's bytes", field="image")
    kind = _decodable_kind(data)
    foreign = None if kind else foreign_kind(data)
    if foreign is not None and foreign.is_text:
        raise UndecodableError(
            f"{len(data)} bytes that are no image of a known format but {foreign.name}: {foreign.remedy}",
            field="image",
        )
    if foreign is not None:
        raise UnsupportedFormatError(
            f"this is {foreign.name}; the server decodes {', '.join(allowed)}: {foreign.remedy}",
            field="image",
        )
    kind = kind or ("bmp" if data.startswith(b"BM") and not is_text(data) else "")
    if kind in allowed:
        return kind
    if kind:
        raise UnsupportedFormatError(
            f"this is {kind}; the server decodes {', '.join(allowed)}: convert it", field="image"
        )
    raise UndecodableError(
        f"{len(data)} bytes that start with {data[:16]!r} are no image of a known format", field="image"
    )


def _decodable_kind(data: bytes) -> str:
    """Return the format by a signature of three bytes or more. BMP has two and comes after all others."""
    if data.startswith(_CR2_MARK, _CR2_AT):
        return ""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data.startswith(b"RIFF") and data.startswith(b"WEBP", 8):
        return "webp"
    return "avif" if brands_of(data) & _AVIF_BRANDS else ""
