"""What bytes are that the server does not decode, so that an error can say it and what to do."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

_HEAD_BYTES = 1 << 16
_CONVERT = "convert it to jpeg or png"
_RENDER = "render it to png"
_EXTRACT = "send the images inside, one by one"
_FRAME = "send frames of it as jpeg or png"
_FETCH = "send the bytes of the image itself"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind of file, what its sender can do, and whether it is text, which is no image of any kind."""

    name: str
    remedy: str = _CONVERT
    is_text: bool = False


_RAW = "a camera's raw file"
# Offset, bytes, what they begin.
_SIGNATURES: tuple[tuple[int, bytes, Foreign], ...] = (
    (0, b"\xff\x4f\xff\x51", Foreign("jpeg 2000")),
    (4, b"jP  \r\n\x87\n", Foreign("jpeg 2000")),
    (0, b"\xff\x0a", Foreign("jpeg xl")),
    (4, b"JXL \r\n\x87\n", Foreign("jpeg xl")),
    (0, b"II\xbc\x01", Foreign("jpeg xr")),
    (8, b"CR\x02", Foreign(f"{_RAW} (CR2)")),
    (0, b"IIRO", Foreign(f"{_RAW} (ORF)")),
    (0, b"IIRS", Foreign(f"{_RAW} (ORF)")),
    (0, b"MMOR", Foreign(f"{_RAW} (ORF)")),
    (0, b"IIU\x00", Foreign(f"{_RAW} (RW2)")),
    (0, b"FUJIFILMCCD-RAW", Foreign(f"{_RAW} (RAF)")),
    (0, b"\x00MRM", Foreign(f"{_RAW} (MRW)")),
    (0, b"FOVb", Foreign(f"{_RAW} (X3F)")),
    (6, b"HEAPCCDR", Foreign(f"{_RAW} (CRW)")),
    (0, b"8BPS", Foreign("psd")),
    (0, b"gimp xcf", Foreign("xcf")),
    (0, b"\x00\x00\x01\x00", Foreign("ico")),
    (0, b"\x00\x00\x02\x00", Foreign("cur")),
    (0, b"icns", Foreign("icns")),
    (0, b"\x76\x2f\x31\x01", Foreign("openexr")),
    (0, b"#?RADIANCE", Foreign("radiance hdr")),
    (0, b"#?RGBE", Foreign("radiance hdr")),
    (0, b"DDS ", Foreign("dds")),
    (0, b"qoif", Foreign("qoi")),
    (0, b"BPG\xfb", Foreign("bpg")),
    (0, b"FLIF", Foreign("flif")),
    (0, b"\xabKTX ", Foreign("ktx")),
    (0, b"AT&TFORM", Foreign("djvu", _RENDER)),
    (0, b"\x8aMNG\r\n", Foreign("mng")),
    (0, b"\x8bJNG\r\n", Foreign("jng")),
    (128, b"DICM", Foreign("dicom")),
    (0, b"SIMPLE  =", Foreign("fits")),
    (0, b"\x89HDF\r\n", Foreign("hdf5")),
    (0, b"\x93NUMPY", Foreign("a numpy array file", "load it and send the array")),
    (0, b"\xc5\xd0\xd3\xc6", Foreign("eps", _RENDER)),
    (0, b"%!PS", Foreign("postscript or eps", _RENDER)),
    (0, b"%PDF", Foreign("pdf", _RENDER)),
    (0, b"\xd7\xcd\xc6\x9a", Foreign("wmf", _RENDER)),
    (40, b" EMF", Foreign("emf", _RENDER)),
    (0, b"PK\x03\x04", Foreign("a zip archive", _EXTRACT)),
    (0, b"PK\x05\x06", Foreign("an empty zip archive", _EXTRACT)),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _EXTRACT)),
    (0, b"Rar!\x1a\x07", Foreign("a rar archive", _EXTRACT)),
    (257, b"ustar", Foreign("a tar archive", _EXTRACT)),
    (0, b"BZh", Foreign("bzip2-compressed data", "decompress it")),
    (0, b"\xfd7zXZ\x00", Foreign("xz-compressed data", "decompress it")),
    (0, b"\x28\xb5\x2f\xfd", Foreign("zstd-compressed data", "decompress it")),
    (0, b"\x1a\x45\xdf\xa3", Foreign("video (matroska or webm)", _FRAME)),
    (0, b"\x00\x00\x01\xba", Foreign("video (mpeg)", _FRAME)),
    (0, b"\x00\x00\x01\xb3", Foreign("video (mpeg)", _FRAME)),
    (0, b"FLV\x01", Foreign("video (flv)", _FRAME)),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Foreign("video (wmv or asf)", _FRAME)),
    (0, b"OggS", Foreign("video or audio (ogg)", _FRAME)),
    (8, b"AVI ", Foreign("video (avi)", _FRAME)),
    (4, b"moov", Foreign("video (quicktime)", _FRAME)),
    (4, b"mdat", Foreign("video (quicktime)", _FRAME)),
)
_DECODED_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF_BRANDS = {b"mif1", b"msf1", b"mif2", b"miaf", b"jpeg", b"j2ki", b"avci", b"vvic", b"evbi"}
_ELEMENT = re.compile(rb"<(?:\w+:)?(\w+)")
# A document type may declare entities in brackets, where comments and quoted strings hold any character.
_PROLOG = re.compile(
    rb"""\s*+(?:<\?(?>.*?\?>)|<!--(?>.*?-->)|<!doctype(?>"[^"]*"|'[^']*'|[^\["'>])*+"""
    rb"""(?:\[(?>(?>"[^"]*"|'[^']*'|<!--(?>.*?-->)|<\?(?>.*?\?>)|[^\]"'<]|<(?!!--|\?))*+)\]\s*+)?>)""",
    re.DOTALL,
)
_PROLOG_STARTS = (b"<?", b"<!--", b"<!doctype")
_HTML_TYPE = re.compile(rb"\s*+<!doctype\s++html")
_SPACE = re.compile(rb"\s*")
_DATA_URL = re.compile(rb"\s*data:[\w/+.;=-]*,", re.IGNORECASE)
_BASE64 = re.compile(rb"""["']?[A-Za-z0-9+/_-]{24,}(?:\r?\n[A-Za-z0-9+/_-]+)*\r?\n?[=\s]*["']?\s*\Z""")
_PORTABLE = re.compile(rb"P([1-7]|[Ff])[\s#]")
_TGA_HEADER_BYTES = 18
_TGA_TRUE_COLOR, _TGA_PALETTE, _TGA_DEPTHS = (2, 3, 10, 11), (1, 9), (8, 15, 16, 24, 32)
_URL = re.compile(rb"\s*(?:https?|s3|gs|file)://\S+\s*\Z", re.IGNORECASE)

_TEXTS = (
    (_DATA_URL, Foreign("a data: URL", "decode its base64 and send the bytes", is_text=True)),
    (_URL, Foreign("a URL", "fetch it and send the bytes; the server never does", is_text=True)),
    (_BASE64, Foreign("base64 text", "decode it and send the bytes", is_text=True)),
)


def foreign_kind(data: bytes) -> Foreign | None:
    """Return what the bytes are when they are of a known kind that is never decoded, else None."""
    if _is_tga(data):
        return Foreign("tga")
    for offset, signature, found in _SIGNATURES:
        if data.startswith(signature, offset):
            return found
    if data.startswith(b"ftyp", 4):
        return _by_brands(data)
    if data.startswith(b"\x1f\x8b"):
        return _compressed(data)
    if _PORTABLE.match(data):
        return Foreign("a netpbm image (pbm, pgm, ppm or pfm)")
    return _text(data[:_HEAD_BYTES])


def is_text(data: bytes) -> bool:
    """Tell whether the first bytes are printable, as no image's header is."""
    return _is_printable(data[:_TGA_HEADER_BYTES])


def _is_tga(data: bytes) -> bool:
    """Tell by the footer, or by a header whose fields fit: a cursor has a count where TGA has zeros."""
    if data[-18:].startswith(b"TRUEVISION-XFILE"):
        return True
    if len(data) <= _TGA_HEADER_BYTES or data[16] not in _TGA_DEPTHS or data[17] & 0xC0:
        return False
    if not any(data[12:14]) or not any(data[14:16]):
        return False
    if data[1] == 0:
        return data[2] in _TGA_TRUE_COLOR and not any(data[3:8])
    return data[1] == 1 and data[2] in _TGA_PALETTE and data[7] in _TGA_DEPTHS[1:]


def brands_of(data: bytes) -> set[bytes]:
    """Return the brands of an ISO base media file, major and compatible ones; none for another file."""
    if not data.startswith(b"ftyp", 4):
        return set()
    end = min(int.from_bytes(data[:4], "big"), _HEAD_BYTES)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}


def _by_brands(data: bytes) -> Foreign | None:
    brands = brands_of(data)
    if b"crx " in brands:
        return Foreign(f"{_RAW} (CR3)")
    if brands & _DECODED_BRANDS:
        return None
    if brands & _HEIC_BRANDS:
        return Foreign("heic")
    if brands & _HEIF_BRANDS:
        return Foreign("heif")
    return Foreign("video (mp4 or quicktime)", _FRAME)


def _compressed(data: bytes) -> Foreign:
    try:
        inside = zlib.decompressobj(31).decompress(data[:_HEAD_BYTES], _HEAD_BYTES)
    except zlib.error:
        inside = b""
    text = _text(inside)
    if text is not None and text.name == "svg":
        return Foreign("svg, gzip-compressed", _RENDER)
    return Foreign("gzip-compressed data", "decompress it")


def _text(head: bytes) -> Foreign | None:
    """Tell markup and other text apart by the first 64 KiB, in UTF-8 or UTF-16."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.decode("utf-16", "replace").encode()
    elif head.startswith((b"<\0", b"\0<")):
        head = head.decode("utf-16-le" if head.startswith(b"<") else "utf-16-be", "replace").encode()
    head = head.removeprefix(b"\xef\xbb\xbf")
    root = _root_element(head)
    if root == b"svg":
        return Foreign("svg", _RENDER)
    if root:
        return Foreign("an HTML page" if root == b"html" else "XML or HTML", _FETCH, is_text=True)
    if head.lstrip()[:1] in (b"{", b"[") and _is_printable(head):
        return Foreign("JSON text", _FETCH, is_text=True)
    return next((found for pattern, found in _TEXTS if pattern.match(head)), None)


def _root_element(head: bytes) -> bytes:
    """Return the lower-case name of markup's first element, behind its prolog; b"" for what is no markup."""
    at, low = 0, head.lower()
    while True:
        if _HTML_TYPE.match(low, at):
            return b"html"
        prolog = _PROLOG.match(low, at)
        if prolog is None:
            break
        at = prolog.end()
    space = _SPACE.match(low, at)
    at = space.end() if space else at
    if low.startswith(_PROLOG_STARTS, at):
        return b"xml"
    element = _ELEMENT.match(low, at)
    return element.group(1) if element else b""


def _is_printable(head: bytes) -> bool:
    return not head.translate(None, bytes(range(0x20, 0x100)) + b"\t\r\n")
