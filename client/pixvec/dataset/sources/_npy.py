"""Images in an npy file, with their labels in another."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pixvec._errors import InputError
from pixvec._omissions import printable
from pixvec._types import Array
from pixvec.dataset._pictures import Picture, SourceOptions, bytes_stamp

from ._common import NO_COLOURS, located
from ._foreign import label_text, parsing

_BLOCK_ROWS = 256
_MAGIC = b"\x93NUMPY"
_CHANNELS = frozenset({1, 3, 4})


class Npy:
    """A row an image: [N,H,W,C], [N,H,W], or flat [N,H*W*C] with the options' height, width and channels.

    Rows are uint8, or floats, of which the whole array decides: within 0..1 they are multiplied by 255, else
    within 0..255 they are rounded. The labels are in the file named after a comma, or in `X_labels.npy`
    beside `X.npy` or `X_data.npy`.
    """

    kind = "npy"
    colours = NO_COLOURS
    total: int | None

    def __init__(self, given: str, options: SourceOptions) -> None:
        name, _, labels = given.partition(",") if not Path(given).exists() else (given, "", "")
        self._file = Path(name.strip())
        self._rows = _load(self._file)
        self._shape = self._row_shape(options)
        self._scale = self._factor()
        self.total = len(self._rows)
        self._labels = self._read_labels(Path(labels.strip()) if labels else _beside(self._file))

    def pictures(self) -> Iterator[Picture]:
        """Yield the image of each row."""
        for row in range(len(self._rows)):
            yield self._picture(row)

    def _picture(self, row: int) -> Picture:
        # The shape too: the same flat row is another picture at another width.
        stamp = bytes_stamp(repr(self._shape).encode() + self._pixels(row).tobytes())
        label = None if self._labels is None else self._labels[row]
        uri = printable(f"{located(self._file)}[{row}]")
        return Picture(f"row/{row:06d}", uri, stamp, lambda: self._pixels(row), label)

    def _pixels(self, row: int) -> Array:
        values = np.asarray(self._rows[row]).reshape(self._shape)
        return values if self._scale is None else np.rint(values * self._scale).astype(np.uint8)

    def _row_shape(self, options: SourceOptions) -> tuple[int, ...]:
        shape = self._rows.shape[1:]
        if 0 in self._rows.shape:
            raise InputError(f"{self._file}: its shape is {self._rows.shape}, which holds no pixel")
        if self._rows.ndim == 2:
            return self._flat_shape(shape[0], options)
        said = f"{self._file}: its shape is {self._rows.shape}"
        if self._rows.ndim not in {3, 4} or (len(shape) == 3 and shape[2] not in _CHANNELS):
            turned = len(shape) == 3 and shape[0] in _CHANNELS
            mend = "; put the channels last: numpy.moveaxis(X, 1, -1)" if turned else ""
            raise InputError(f"{said}; images are [N,H,W,C] with C = 1, 3 or 4, [N,H,W] or [N,H*W*C]{mend}")
        if self._rows.ndim == 3 and shape[1] in _CHANNELS:
            raise InputError(
                f"{said}, which looks like one image of [H,W,C]: save X[None] of it, or X[..., None] of "
                "grey ones"
            )
        return shape

    def _flat_shape(self, length: int, options: SourceOptions) -> tuple[int, ...]:
        height, width, channels = options.height, options.width, options.channels
        if height and width and channels in _CHANNELS and height * width * channels == length:
            return height, width, channels
        raise InputError(
            f"{self._file}: rows of {length} numbers are not height={height}, width={width}, "
            f"channels={channels}; what fits: {_fitting(length) or 'nothing with 1, 3 or 4 channels'}"
        )

    def _factor(self) -> float | None:
        if self._rows.dtype == np.uint8:
            return None
        if self._rows.dtype.kind != "f":
            raise InputError(
                f"{self._file}: its numbers are {self._rows.dtype}; use uint8, or floats in 0..255"
            )
        blocks = [self._rows[at : at + _BLOCK_ROWS] for at in range(0, len(self._rows), _BLOCK_ROWS)]
        low = float(np.min([block.min() for block in blocks]))
        high = float(np.max([block.max() for block in blocks]))
        if not (low >= 0.0 and high <= 255.0):
            raise InputError(
                f"{self._file}: floats lie within 0..1 or 0..255, not {low:g}..{high:g}: "
                "undo the normalisation"
            )
        return 255.0 if high <= 1.0 else 1.0

    def _read_labels(self, file: Path | None) -> list[str | None] | None:
        if file is None:
            return None
        labels = _load(file)
        if labels.shape not in {(self.total,), (self.total, 1)}:
            raise InputError(
                f"{file}: its shape is {labels.shape}; {self._file} has {self.total} rows, so labels are "
                f"[{self.total}] or [{self.total},1]"
            )
        with parsing(str(file)):
            return [label_text(label) for label in labels.ravel().tolist()]


def _load(file: Path) -> Array:
    with parsing(str(file)):
        with file.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("not one array: save it with numpy.save")
        try:
            return np.lib.format.open_memmap(file, mode="r")
        except SyntaxError as error:  # shows the line, which is the file's
            raise ValueError(f"not an npy file: {error.msg}") from error
        except ValueError as error:
            if "Python objects" in str(error):
                raise ValueError(
                    "Python objects, which are not loaded: save numbers, or texts as labels"
                ) from error
            raise


def _beside(file: Path) -> Path | None:
    stems = file.stem.removesuffix("_data"), file.stem
    found = (file.with_name(f"{stem}_labels.npy") for stem in stems)
    return next((path for path in found if path != file and path.is_file()), None)


def _fitting(length: int) -> str:
    """Return for each number of channels the squarest height and width, of which either may be the height."""
    fits = []
    for channels in (3, 1, 4):
        area, rest = divmod(length, channels)
        if area and not rest:
            low = next(side for side in range(math.isqrt(area), 0, -1) if area % side == 0)
            fits.append(f"height * width = {area} (such as {low} and {area // low}) with channels={channels}")
    return ", ".join(fits)
