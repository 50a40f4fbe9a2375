"""Opens an image file with Pillow, after its header was read and checked against the limits.

Each format's function repairs what Pillow would read wrongly, or refuses the form.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin, UnidentifiedImageError, features

from pixvec_server.errors import UndecodableError, UnsupportedFormatError
from pixvec_server.preprocess import avif, bmp, gif, png, tiff
from pixvec_server.preprocess.pixels import gray_of, scaled_to_8_bits, wide_rgb, with_transparent
from pixvec_server.preprocess.webp import webp_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pixvec_server.preprocess.limits import ImageLimits

_WIDE_WHITE = (1 << 16) - 1
_COLOR_MAP, _WEBP_IN_TIFF = 320, 50001
# What is left out of an AVIF that is not opened with it: EXIF, then XMP as well.
_AVIF_METADATA = ({b"Exif"}, {b"Exif", b"mime"})


def _as_is(image: Image.Image) -> Image.Image:
    return image


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that Pillow has opened and not decoded yet, and the frames to take of it.

    `finish` turns the loaded frame into the picture that the file holds; `is_costly` when it takes more
    memory than the frame itself. `later` opens and loads each frame after the first, where a seek in `image`
    gives wrong pixels. `has_poster` when the image is not one of the frames.
    """

    image: Image.Image
    kind: str
    frames: Sequence[int] = (0,)
    finish: Callable[[Image.Image], Image.Image] = _as_is
    is_costly: bool = False
    later: Callable[[], Iterator[Opened]] | None = None
    has_poster: bool = False
    load_image: Callable[[], None] | None = None

    @property
    def is_animated(self) -> bool:
        """Whether the mean of the frames is another picture than the image."""
        return len(self.frames) > 1 or self.has_poster

    def load(self) -> None:
        """Decode the frame. Raises UnsupportedFormatError for a layout without decoder."""
        if self.load_image is None:
            self.image.load()
        else:
            self.load_image()

    def finished(self) -> Image.Image:
        """Return the frame, repaired; it is loaded."""
        return self.finish(self.image)

    def each_frame(self, limits: ImageLimits) -> Iterator[Opened]:
        """Yield all frames, each loaded, and each before the next is; the image is loaded already.

        Raises UnsupportedFormatError or TooLargeError for one that is not decoded; and what Pillow raises.
        """
        if not self.has_poster:
            yield self
        if self.later is not None:
            yield from self.later()
            return
        for frame in self.frames[0 if self.has_poster else 1 :]:
            self.image.seek(frame)
            limits.check_size(*self.image.size, "image")
            self.image.load()
            yield self


def open_checked(data: bytes, kind: str, limits: ImageLimits) -> Opened:
    """Open a file of a kind that `sniff` has found.

    Raises UndecodableError, UnsupportedFormatError or TooLargeError; and what Pillow raises.
    """
    opened = _OPENERS[kind](data, limits)
    limits.check_size(*opened.image.size, "image")
    return opened


def _open(data: bytes, kind: str) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=(kind.upper(),))


def _open_jpeg(data: bytes, _: ImageLimits) -> Opened:
    image = _open(data, "jpeg")
    # Pillow takes Adobe's inversion of CMYK for granted; a file without Adobe's marker is not inverted.
    is_plain_cmyk = image.mode == "CMYK" and "adobe" not in image.info
    return Opened(image, "jpeg", finish=_invert_cmyk if is_plain_cmyk else _as_is)


def _invert_cmyk(image: Image.Image) -> Image.Image:
    inverted = Image.fromarray(255 - np.asarray(image), "CMYK")
    inverted.info = dict(image.info)
    return inverted


def _open_png(data: bytes, limits: ImageLimits) -> Opened:
    header, needed = png.read_png(data)
    limits.check_size(header.width, header.height, "image")
    image = _open(needed, "png")
    finish: Callable[[Image.Image], Image.Image] = _as_is
    if header.transparent and header.color_type == png.GRAY:
        finish = _gray_transparency(header)
    elif header.transparent:
        finish = _rgb_transparency(header, needed)
    frames = _counted(image, limits)
    has_poster = getattr(image, "default_image", False)
    if has_poster:
        frames = range(1, min(image.n_frames, limits.frames + 1))  # type: ignore[attr-defined] # a PngImageFile
    is_costly = finish is not _as_is
    whole = _whole(header, needed, finish)
    return Opened(image, "png", frames, whole, is_costly=is_costly, has_poster=has_poster)


def _whole(
    header: png.PngHeader, data: bytes, finish: Callable[[Image.Image], Image.Image]
) -> Callable[[Image.Image], Image.Image]:
    """Return `finish`, which refuses an image whose compressed data end before its last row."""

    def finish_whole(image: Image.Image) -> Image.Image:
        if image.tell():
            return finish(image)
        # Pillow leaves rows without data at 0: only then are the data inflated again and counted.
        last = image.crop((0, image.height - 1, image.width, image.height)).tobytes()
        if (header.is_interlaced or not any(last)) and not png.has_all_rows(data, header):
            raise UndecodableError(
                "the png is truncated: rows of pixels are missing; send the whole file", field="image"
            )
        return finish(image)

    return finish_whole


def _gray_transparency(header: png.PngHeader) -> Callable[[Image.Image], Image.Image]:
    clear = header.transparent[0]

    def finish(image: Image.Image) -> Image.Image:
        samples = np.asarray(image)
        if header.bits == 16:
            return with_transparent(gray_of(image, _WIDE_WHITE), samples == clear)
        level = clear * 255 // ((1 << header.bits) - 1)
        return with_transparent(image.convert("L"), np.asarray(image.convert("L")) == level)

    return finish


def _rgb_transparency(header: png.PngHeader, data: bytes) -> Callable[[Image.Image], Image.Image]:
    def finish(image: Image.Image) -> Image.Image:
        clear, samples = header.transparent, np.asarray(image)
        if header.bits == 16 and image.tell():
            # Pillow draws later frames on earlier ones in 8 bits.
            clear = tuple(sample >> 8 for sample in clear)
        elif header.bits == 16:
            samples = wide_rgb(lambda: _open(data, "png"))
        return with_transparent(image, (samples == clear).all(axis=2))

    return finish


def _open_gif(data: bytes, limits: ImageLimits) -> Opened:
    layout = gif.gif_layout(data, limits.frames)
    limits.check_size(layout.width, layout.height, "image")

    def finish(image: Image.Image) -> Image.Image:
        left, top, right, bottom = layout.first
        if left <= 0 and top <= 0 and right >= image.width and bottom >= image.height:
            return image
        # Nothing is drawn around the first frame, where Pillow paints with the palette's first color.
        seen = Image.new("RGBA", image.size, (0, 0, 0, 0))
        seen.paste(image.convert("RGBA").crop(layout.first), (left, top))
        return seen

    image = _open(data, "gif")

    def later() -> Iterator[Opened]:
        for canvas in gif.later_frames(data, layout, finish(image)):
            yield Opened(canvas, "gif")

    return Opened(image, "gif", range(layout.frames), finish, later=later)


def _open_bmp(data: bytes, limits: ImageLimits) -> Opened:
    header = bmp.read_header(data)
    if header is not None and header.has_masks:
        limits.check_size(header.width, header.height, "image")
        image = _open(bmp.without_masks(data), "bmp")
        return Opened(image, "bmp", finish=lambda _: bmp.decode_masked(data, header), is_costly=True)
    try:
        image = _open(data, "bmp")
    except OSError as exc:
        if "Unsupported BMP" not in str(exc):
            raise
        raise UnsupportedFormatError(
            "a bmp of a rare layout (bits, masks or compression): save it with 24 bits", field="image"
        ) from exc
    if image.tile[0].codec_name == "bmp_rle":
        return Opened(image, "bmp", load_image=lambda: _load_run_lengths(image, data))
    return Opened(image, "bmp", finish=bmp.opaque_if_empty)


def _load_run_lengths(image: ImageFile.ImageFile, data: bytes) -> None:
    """Decode here what is compressed, and have Pillow unpack the rows, in their order, and the palette."""
    tile = image.tile[0]
    _, is_4_bit, direction = tuple(tile.args or ())
    rows = bmp.decode_run_lengths(data, tile.offset, image.size, is_4_bit=bool(is_4_bit))
    image.fp = io.BytesIO(rows)
    rawmode = "1;8" if image.mode == "1" else image.mode
    image.tile = [tile._replace(codec_name="raw", offset=0, args=(rawmode, 0, direction))]
    image.load()


def _open_webp(data: bytes, limits: ImageLimits) -> Opened:
    size = webp_size(data)
    if size is not None:
        limits.check_size(*size, "image")
    image = _open(data, "webp")
    return Opened(image, "webp", _counted(image, limits))


def _open_avif(data: bytes, limits: ImageLimits) -> Opened:
    if not features.check("avif"):
        raise UnsupportedFormatError(
            "this is avif, which the server's Pillow was built without: convert it to jpeg or png",
            field="image",
        )
    layout = avif.read_layout(data)
    for width, height in layout.sizes:
        limits.check_size(width, height, "image")
    image = _open_avif_image(data, layout)
    return Opened(image, "avif", _counted(image, limits))


def _open_avif_image(data: bytes, layout: avif.AvifLayout) -> ImageFile.ImageFile:
    """Open an AVIF; without its metadata items where its decoder refuses those."""
    try:
        return _open(data, "avif")
    except (ValueError, OSError, SyntaxError, LookupError):
        for types in _AVIF_METADATA:
            plain = avif.without_items(data, layout, types)
            if plain != data:
                with contextlib.suppress(ValueError, OSError, SyntaxError, LookupError):
                    return _open(plain, "avif")
        raise


def _open_tiff(data: bytes, limits: ImageLimits) -> Opened:
    pages = tiff.read_pages(data, limits.frames)
    if not pages:
        raise UndecodableError("the tiff is damaged: it has no directory", field="image")
    frames = [i for i, page in enumerate(pages) if page.is_picture]
    if not frames:
        raise UnsupportedFormatError(
            "a tiff that holds a thumbnail or mask alone on its pages, as cameras' raw files do: convert it "
            "to jpeg or png",
            field="image",
        )
    for i in frames:
        limits.check_size(*pages[i].size, "image")
        limits.check_size(*(pages[i].tile or pages[i].size), "image")

    def later() -> Iterator[Opened]:
        for i in frames[1:]:
            opened = _open_tiff_page(data, pages[i], i)
            opened.load()
            yield opened

    return replace(_open_tiff_page(data, pages[frames[0]], frames[0]), frames=frames, later=later)


def _open_tiff_page(data: bytes, page: tiff.TiffPage, frame: int) -> Opened:
    tiff.check_form(page)
    if page.is_wide_gray and page.is_min_white:
        data = page.as_min_is_black(data)
    image = _open_page(data, page, frame)

    def load() -> None:
        try:
            image.load()
        except (ValueError, OSError) as exc:
            # Pillow opens some layouts without an unpacker; its libtiff often has no WebP.
            if "raw mode" in str(exc) or page.compression == _WEBP_IN_TIFF:
                raise _unsupported(page) from exc
            raise

    return Opened(
        image, "tiff", finish=_wide_tiff(data, page, frame), is_costly=page.bits > 8, load_image=load
    )


def _open_page(data: bytes, page: tiff.TiffPage, frame: int) -> ImageFile.ImageFile:
    try:
        image = _open(data, "tiff")
        image.seek(frame)
    except (UnidentifiedImageError, SyntaxError, LookupError) as exc:
        raise _unsupported(page) from exc
    if page.is_wide_planar and not page.is_compressed:
        _widen_planes(image, page, ";16L" if data.startswith(b"II") else ";16B")
    if image.mode == "P":
        _repair_palette(image)
    return image


def _widen_planes(image: ImageFile.ImageFile, page: tiff.TiffPage, layout: str) -> None:
    """Unpack 16-bit planes as such; Pillow takes each sample for one of 8 bits."""
    if image.mode not in ("RGB", "RGBA"):
        raise _unsupported(page)
    tiles = []
    for tile in image.tile:
        band, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if band in image.getbands():
            tiles.append(tile._replace(args=(f"{band}{layout}", *rest)))
    image.tile = tiles


def _unsupported(page: tiff.TiffPage) -> UnsupportedFormatError:
    remedy = "save it as RGB or gray of 8 or 16 bits, in the usual order of bits"
    if page.compression not in TiffImagePlugin.COMPRESSION_INFO or page.compression == _WEBP_IN_TIFF:
        remedy = "save it without compression, or compressed by LZW or Deflate"
    elif page.is_planar:
        remedy = "interleave its samples, as RGB of 8 or 16 bits"
    return UnsupportedFormatError(f"{page.described()} is not decoded: {remedy}", field="image")


def _repair_palette(image: Image.Image) -> None:
    """Take a color map whose entries all fit 8 bits as one of 8 bits, as libtiff does; else all is black."""
    entries = image.tag_v2[_COLOR_MAP]  # type: ignore[attr-defined] # a TiffImageFile
    if max(entries) < 256:
        planes = np.asarray(entries, np.uint8).reshape(3, -1)
        image.palette = ImagePalette.raw("RGB", planes.T.tobytes())


def _wide_tiff(data: bytes, page: tiff.TiffPage, frame: int) -> Callable[[Image.Image], Image.Image]:
    if page.is_wide_gray:
        return lambda image: gray_of(image, page.white, is_min_white=page.is_min_white)
    if not page.is_scaled:
        return _as_is

    def finish(image: Image.Image) -> Image.Image:
        # libtiff gives one byte of each sample of a plane.
        if image.mode != "RGB" or (page.is_wide_planar and page.is_compressed):
            raise _unsupported(page)
        samples = wide_rgb(lambda: _open_page(data, page, frame))
        return Image.fromarray(scaled_to_8_bits(samples, page.white))

    return finish


def _counted(image: Image.Image, limits: ImageLimits) -> range:
    return range(min(getattr(image, "n_frames", 1), limits.frames))


_OPENERS = {
    "jpeg": _open_jpeg,
    "png": _open_png,
    "gif": _open_gif,
    "bmp": _open_bmp,
    "webp": _open_webp,
    "avif": _open_avif,
    "tiff": _open_tiff,
}
