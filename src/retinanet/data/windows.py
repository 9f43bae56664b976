"""Read windows of image files, without decoding the whole image where the format allows it.

TIFF and PNG files, and JPEG files if pyvips is installed, are decoded block by block (:mod:`retinanet.data.blocks`).
All other files are decoded whole once. The pixels of a window are those of the same part of
:func:`retinanet.data.images.read_image`.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data import jpeg_blocks, png_blocks, tiff_blocks
from retinanet.data.blocks import LARGEST_BLOCK, Blocks, Pixels
from retinanet.data.deep_pixels import PixelRange, is_deep, range_of, spread_of, to_8_bits
from retinanet.data.exif import (
    SIDEWAYS,
    TURNED_BACK,
    orientation_of,
    turned_boxes,
    turned_pixels,
    upright,
)
from retinanet.data.images import opened_header, to_rgb
from retinanet.data.open_images import MAX_PIXELS, check_pixels, open_image, reason
from retinanet.data.read_ahead import read_ahead
from retinanet.data.rgb import plain_rgb
from retinanet.data.tiff_layout import is_tiff
from retinanet.data.window_reader import Window, WindowReader
from retinanet.errors import DataError
from retinanet.files import start_of

__all__ = ["Window", "WindowReader", "open_windows", "read_ahead"]

# Bytes of decoded blocks that are kept, if the blocks of one row of windows take less.
_CACHE_BYTES = 2**26

# The range of values of a deep image is chosen from all values of an image with at most this many, or else from this
# many blocks and values.
_ALL_VALUES, _SAMPLE_BLOCKS, _SAMPLE_VALUES = 2**24, 64, 200_000


def open_windows(path: str | Path, pixel_range: PixelRange | None = None, max_pixels: int = MAX_PIXELS) -> WindowReader:
    """Open an image file to read windows of it.

    Args:
        path: the file.
        pixel_range: as in :func:`retinanet.data.images.read_image`. Unset: one range for the whole file, chosen from a
            sample of its values.
        max_pixels: largest number of pixels of the image.

    Raises:
        DataError: the file is missing, not an image, has more than ``max_pixels``, or bands that are not colors.
    """
    path = Path(path)
    blocks = _blocks(path, max_pixels)
    if blocks is None:
        return _WholeReader(path, pixel_range, max_pixels)
    try:
        check_pixels(path, (blocks.size[1], blocks.size[0]), max_pixels)
    except DataError:
        blocks.close()
        raise
    return _BlockReader(path, blocks, pixel_range)


def _blocks(path: Path, max_pixels: int) -> Blocks | None:
    """Open a file to decode its blocks; ``None`` if it must be decoded whole, or is not an image."""
    start = start_of(path)
    blocks = None
    if is_tiff(path):
        blocks = tiff_blocks.tiff_blocks(path, str(path))
    elif start.startswith(png_blocks.SIGNATURE):
        blocks = png_blocks.png_blocks(path)
    elif start.startswith(jpeg_blocks.SIGNATURE):
        with open_image(path, max_pixels) as image:
            blocks = jpeg_blocks.jpeg_blocks(path, orientation_of(image))
    if blocks is not None and blocks.orientation in SIDEWAYS and blocks.grid[1] == 1:
        blocks.close()  # a row of windows lies in all strips
        return None
    return blocks


class _BlockReader(WindowReader):
    """Reads windows from blocks. Decoded blocks are kept, so that reading row by row decodes each block once."""

    by_window = True

    def __init__(self, path: Path, blocks: Blocks, pixel_range: PixelRange | None) -> None:
        self.path, self._blocks, self._range = path, blocks, pixel_range
        self._turned = blocks.orientation in SIDEWAYS
        self.size = (blocks.size[1], blocks.size[0]) if self._turned else blocks.size
        self._kept: OrderedDict[tuple[int, int], npt.NDArray[np.uint8]] = OrderedDict()
        self._kept_bytes, self._limit = 0, _CACHE_BYTES

    def close(self) -> None:
        self._kept.clear()
        self._blocks.close()

    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        top, left, height, width = self._stored(window)
        block_height, block_width = self._blocks.block
        rows = range(top // block_height, -(-(top + height) // block_height))
        columns = range(left // block_width, -(-(left + width) // block_width))
        limit = self._raised_limit(len(rows), len(columns))
        pixels = np.empty((height, width, 3), np.uint8)
        for row in rows:
            for column in columns:
                block = self._block(row, column, limit)
                y, x = row * block_height - top, column * block_width - left  # of the block, in the window
                part = block[max(0, -y) : height - y, max(0, -x) : width - x]
                pixels[max(0, y) : max(0, y) + part.shape[0], max(0, x) : max(0, x) + part.shape[1]] = part
        return np.ascontiguousarray(turned_pixels(pixels, self._blocks.orientation))

    def _stored(self, window: Window) -> Window:
        """The window in pixels of the stored image."""
        top, left, height, width = window
        box = np.array([[left, top, left + width, top + height]], dtype=np.float64)
        orientation = self._blocks.orientation
        back = turned_boxes(box, TURNED_BACK.get(orientation, orientation), (self.size[1], self.size[0]))
        x1, y1, x2, y2 = back[0].astype(int).tolist()
        return Window(y1, x1, y2 - y1, x2 - x1)

    def _raised_limit(self, rows: int, columns: int) -> int:
        """Bytes of blocks to keep, if a window lies in this many rows and columns of blocks.

        They suffice for all blocks of a row of windows, some of which the next row of windows needs again.
        """
        across = self._blocks.grid[0] * columns if self._turned else self._blocks.grid[1] * rows
        needed = across + (rows * columns if self._blocks.grid[1] > 1 else 1)
        block_height, block_width = self._blocks.block
        self._limit = max(self._limit, needed * block_height * block_width * 3)
        return self._limit

    def _block(self, row: int, column: int, limit: int) -> npt.NDArray[np.uint8]:
        found = self._kept.get((row, column))
        if found is not None:
            self._kept.move_to_end((row, column))
            return found
        pixels = self._decoded(row, column)
        if self._blocks.deep:
            self._range = self._range or self._chosen_range()
            pixels = to_8_bits(pixels.astype(np.float32, copy=False), self._range, self._blocks.inverted)
        block = pixels.astype(np.uint8, copy=False)
        self._kept[row, column] = block
        self._kept_bytes += block.nbytes
        while self._kept_bytes > limit:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return block

    def _decoded(self, row: int, column: int) -> Pixels:
        try:
            return self._blocks.decode(row, column)
        except Exception as error:  # the decoders raise many kinds of errors, as in read_image
            top, left = row * self._blocks.block[0], column * self._blocks.block[1]
            height, width = self._blocks.shape(row, column)
            raise DataError(
                f"{self.path}: rows {top} to {top + height}, columns {left} to {left + width} of the stored image "
                f"cannot be decoded ({reason(error)}); replace the file, or leave out this part"
            ) from error

    def _chosen_range(self) -> PixelRange:
        """The range of a deep image: from all of its values if it is small and intact, or else from a sample."""
        rows, columns = self._blocks.grid
        if self._blocks.size[0] * self._blocks.size[1] <= _ALL_VALUES:
            with suppress(Exception):  # a block is damaged; windows that do not need it are still read
                return _range_of_values(self._blocks.whole())
        chosen = np.unique(np.linspace(0, rows * columns - 1, _SAMPLE_BLOCKS).astype(int)).tolist()
        each = _SAMPLE_VALUES // len(chosen)
        parts = [np.zeros(0, np.float32)]
        for number in chosen:
            with suppress(DataError):
                values = self._decoded(*divmod(number, columns)).reshape(-1)
                parts.append(values[:: max(1, values.size // each)].astype(np.float32))
        return _range_of_values(np.concatenate(parts))


def _range_of_values(values: Pixels) -> PixelRange:
    spread = spread_of(values.astype(np.float32, copy=False))
    return (0.0, 1.0) if spread is None else range_of([spread])


class _WholeReader(WindowReader):
    """Decodes the image once and cuts windows from it."""

    by_window = False

    def __init__(self, path: Path, pixel_range: PixelRange | None, max_pixels: int) -> None:
        self.path, self._range = path, pixel_range
        self._image = open_image(path, max_pixels)
        width, height = opened_header(self._image, path).upright
        self.size = (height, width)
        self._loaded = False

    def close(self) -> None:
        self._image.close()

    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        top, left, height, width = window
        try:
            if not self._loaded:
                self._load()
            pixels = np.empty((height, width, 3), np.uint8)
            rows = max(1, LARGEST_BLOCK // width)  # Pillow refuses to crop larger parts than its limit
            for y in range(0, height, rows):
                bottom = min(y + rows, height)
                pixels[y:bottom] = plain_rgb(self._image.crop((left, top + y, left + width, top + bottom)))
            return pixels
        except Exception as error:  # as above
            raise DataError(f"{self.path}: cannot be decoded ({reason(error)}); replace or remove the file") from error

    def _load(self) -> None:
        """Decode the image. Pillow's image takes less memory than its copy in an array beside it."""
        opened = self._image
        self._image = Image.fromarray(to_rgb(opened, self._range)) if is_deep(opened) else upright(opened)
        if self._image is not opened:
            opened.close()
        self._loaded = True
