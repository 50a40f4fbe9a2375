"""Which files of a folder or an archive are taken for images: one rule for every command.

A file that is named itself, by a pattern or in a list, is taken whatever its name.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from ._errors import InputError
from ._omissions import Omissions, printable

IMAGE_SUFFIXES = frozenset(
    {
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
        *(".pjp", ".pjpeg", ".png", ".tif", ".tiff", ".webp"),
    }
)
_UNSUPPORTED: Mapping[str, str] = {
    "HEIC": ".heic .heics .heif .heifs .hif",
    "JPEG XL": ".jxl",
    "JPEG 2000": ".j2c .j2k .jp2 .jpc .jpf .jpm .jpx",
    "JPEG XR": ".hdp .jxr .wdp",
    "camera RAW": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf "
    ".raw .rw2 .rwl .sr2 .srf .srw .x3f",
    "SVG": ".svg .svgz",
    "PostScript": ".eps .ps",
    "Photoshop": ".psb .psd",
    "GIMP": ".xcf",
    "PNM": ".pam .pbm .pfm .pgm .pnm .ppm",
    "TGA": ".tga",
    "PCX": ".pcx",
    "QOI": ".qoi",
    "icon": ".cur .icns .ico",
    "OpenEXR": ".exr",
    "Radiance HDR": ".hdr",
    "DirectDraw": ".dds",
    "DICOM": ".dcm .dicom",
}
_FORMAT_BY_SUFFIX = {suffix: name for name, suffixes in _UNSUPPORTED.items() for suffix in suffixes.split()}
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_SYSTEM_FILES = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})

SYSTEM = "metadata of an operating system"
HIDDEN = "hidden: its name begins with a dot"
NO_SUFFIX = "its name has no suffix"
NOT_AN_IMAGE = "its suffix is not that of an image"
AN_ARCHIVE = "an archive: give it, or a pattern that matches it, to take the images in it"
READ_BEFORE = "the folder it leads to is read already, or holds the folder that was given"

# Returns why a file of that name is left out; None: it is taken.
WhyNot: TypeAlias = Callable[[str], str | None]


def why_not_image(name: str) -> str | None:
    """Return why a file is not taken for an image, judging by the suffix of its name; None: it is one."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - called for a million names
    if suffix in IMAGE_SUFFIXES:
        return None
    if format_name := _FORMAT_BY_SUFFIX.get(suffix):
        return f"the {format_name} format is not supported: convert it to JPEG or PNG"
    if is_archive(name):
        return AN_ARCHIVE
    return NOT_AN_IMAGE if suffix else NO_SUFFIX


def why_hidden(part: str) -> str | None:
    """Return why a file or folder is left out whatever it holds, by its name without folders; else None."""
    if part.lower() in _SYSTEM_FILES or part.startswith("._") or part == ".DS_Store":
        return SYSTEM
    return HIDDEN if part.startswith(".") and part not in {".", ".."} else None


def why_member_left_out(name: str, why_not: WhyNot = why_not_image) -> str | None:
    """Return why a member of an archive is left out, by the same rule as a file of a folder; else None."""
    hidden = (why for part in name.split("/") if (why := why_hidden(part)))
    return next(hidden, None) or why_not(name)


def is_archive(name: str) -> bool:
    """Tell by its name whether a path is that of a tar archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file is an image."""
    return why_not_image(name) is None


def files_under(root: Path, omissions: Omissions, why_not: WhyNot = why_not_image) -> list[str]:
    """Return the sorted posix paths, relative to `root`, of the files below it that are taken.

    Links are followed, to files and to folders. A folder that is met twice is read once, and folders above
    `root` are not entered, so that loops end. A broken link whose name is wanted is returned: reading it
    fails. Raises InputError for a folder that cannot be listed.
    """
    return sorted(_walk(root, omissions, why_not))


def holds(root: Path, wanted: Callable[[str], bool]) -> bool:
    """Tell whether `files_under` would find a file whose name is wanted, stopping at the first."""
    return any(True for _ in _walk(root, Omissions(), lambda name: None if wanted(name) else NOT_AN_IMAGE))


def _walk(root: Path, omissions: Omissions, why_not: WhyNot) -> Iterator[str]:
    seen = {folder_identity(folder) for folder in (root, *root.resolve().parents)}
    for here, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        prefix = Path(here).relative_to(root).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        folders[:] = [name for name in sorted(folders) if _is_entered(here, prefix, name, seen, omissions)]
        for name in sorted(files):
            if why := why_hidden(name) or why_not(name):
                omissions.add("file", why, prefix + name)
            else:
                yield prefix + name


def _is_entered(
    here: str, prefix: str, name: str, seen: set[tuple[int, int] | None], omissions: Omissions
) -> bool:
    why = why_hidden(name)
    if why is None:
        identity = folder_identity(Path(here, name))
        if identity is None or identity not in seen:
            seen.add(identity)
            return True
        why = READ_BEFORE
    omissions.add("folder", why, prefix + name)
    return False


def folder_identity(folder: Path) -> tuple[int, int] | None:
    """Return what two paths of one folder have in common; None where there is no folder."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> None:
    raise InputError(f"{printable(str(error.filename))}: {error.strerror}") from error
