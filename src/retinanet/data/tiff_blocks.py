"""Decode the strips and tiles of a TIFF file one at a time.

Each block becomes a small TIFF file in memory that Pillow (libtiff) decodes, so that the pixels are those of
:func:`retinanet.data.images.read_image`. Values with more than 8 bits, and planes that are stored one after another,
are only decompressed by Pillow, and NumPy does the rest: Pillow keeps 8 bits of 16-bit colors, knows no colors with 32
bits, and confuses the byte order of some floating-point files.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from retinanet.data.blocks import Blocks, Pixels
from retinanet.data.deep_pixels import deep_values, inverted, is_deep, without_missing
from retinanet.data.exif import upright
from retinanet.data.rgb import plain_rgb
from retinanet.data.tiff_layout import (
    BLACK_IS_ZERO,
    IMAGE_CODECS,
    RGB,
    UNCOMPRESSED,
    WHITE_IS_ZERO,
    Tag,
    TiffLayout,
    compression_name,
    tiff_layout,
)
from retinanet.errors import DataError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _SAMPLES, _STRIP, _COUNTS = 273, 277, 278, 279
_SHORT, _LONG = 3, 4

# A gray image may have a second value per pixel, its alpha. Without a statement that they are colors, this many values
# per pixel are still read as red, green, blue and alpha.
_GRAY_VALUES, _COLOR_VALUES = 2, 4


def tiff_blocks(source: Path | bytes, where: str) -> Blocks | None:
    """Open the first image of a TIFF file; ``None`` if it cannot be read block by block.

    Args:
        source: the path of the file, or its content.
        where: how messages name it.

    Raises:
        DataError: the image has more bands than colors, or a compression that Pillow does not know.
    """
    layout = tiff_layout(source)
    if layout is None:
        return None
    first = _first_block(layout)
    eight_bits = layout.dtype is None or layout.dtype.itemsize == 1
    if first is not None and layout.planes == 1 and (eight_bits or not _is_raw(layout)):
        return _DecodedTiff(source, layout, first)
    if layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) and layout.samples > _COLOR_VALUES:
        raise DataError(
            f"{where}: {layout.samples} bands, and the file does not say which are red, green and blue; write an image "
            "of three bands, for example with gdal_translate -b 3 -b 2 -b 1 -colorinterp red,green,blue IN OUT"
        )
    if not _opens(layout):
        name = compression_name(layout.compression)
        raise DataError(
            f"{where}: the compression {name} is not read; convert the file, for example "
            "with gdal_translate -co COMPRESS=DEFLATE -co TILED=YES IN OUT"
        )
    return _RawTiff(source, layout) if _is_raw(layout) else None


def deep_tiff(source: Path | bytes, where: str) -> Blocks | None:
    """Open a TIFF file that is decoded without Pillow's conversions: with more than 8 bits per value, or planes.

    Args:
        source: the path of the file, or its content.
        where: how messages name it.

    Returns:
        ``None`` if Pillow reads the pixels as they are, or if the file cannot be read block by block.

    Raises:
        DataError: as :func:`tiff_blocks`.
    """
    blocks = tiff_blocks(source, where)
    if isinstance(blocks, _RawTiff):
        return blocks
    if blocks is not None:
        blocks.close()
    return None


def _is_raw(layout: TiffLayout) -> bool:
    """Whether :class:`_RawTiff` can read the file."""
    known = layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) or (layout.photometric == RGB and layout.samples > 2)
    return known and layout.dtype is not None and layout.compression not in IMAGE_CODECS and _opens(layout)


class _TiffBlocks(Blocks):
    """What both ways to decode share: the bytes of the strips and tiles."""

    def __init__(self, source: Path | bytes, layout: TiffLayout) -> None:
        self.layout = layout
        self.size, self.block, self.orientation = layout.size, layout.block, layout.orientation
        self._file: BinaryIO = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
        self._bytes = self._file.seek(0, io.SEEK_END)

    def close(self) -> None:
        self._file.close()

    def _stored(self, row: int, column: int, plane: int = 0) -> tuple[int, list[bytes]]:
        """Rows of a block, and the bytes of its strips, or of the rows that are cut from them."""
        layout = self.layout
        if layout.tiled:
            rows, columns = self.grid
            return layout.block[0], [self._read((plane * rows + row) * columns + column)]
        rows = self.shape(row, column)[0]
        top, per_plane = row * layout.block[0], -(-layout.size[0] // layout.strip)
        strips = range(top // layout.strip, -(-(top + rows) // layout.strip))
        if not layout.cuttable:
            return rows, [self._read(plane * per_plane + strip) for strip in strips]
        parts = []
        for strip in strips:
            start = max(0, top - strip * layout.strip) * layout.row_bytes
            stop = min(layout.strip, top + rows - strip * layout.strip) * layout.row_bytes
            parts.append(self._read(plane * per_plane + strip, start, stop))
        return rows, [b"".join(parts)]

    def _read(self, number: int, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of a strip or tile, from ``start`` to ``stop``; empty if the file leaves it out."""
        offset, count = int(self.layout.offsets[number]), int(self.layout.counts[number])
        if count == 0:
            return b""
        stop = count if stop is None else stop
        if stop > count or offset + stop > self._bytes:
            raise ValueError("the file is cut short")
        if stop - start > 8 * self.block[0] * self.block[1] * self.layout.samples + 2**20:
            raise ValueError("the block has more bytes than its pixels can take")
        self._file.seek(offset + start)
        return self._file.read(stop - start)


class _DecodedTiff(_TiffBlocks):
    """Blocks that Pillow decodes."""

    def __init__(self, source: Path | bytes, layout: TiffLayout, first: Image.Image) -> None:
        super().__init__(source, layout)
        self.deep, self.inverted = is_deep(first), is_deep(first) and inverted(first)

    def decode(self, row: int, column: int) -> Pixels:
        height, width = self.shape(row, column)
        rows, strips = self._stored(row, column)
        if not any(strips):
            return np.zeros((height, width), np.float32) if self.deep else np.zeros((height, width, 3), np.uint8)
        size = (rows, self.block[1])
        image = _opened(_small_tiff(self.layout.order, (*self.layout.tags, *_sizes(self.layout, size)), strips))
        pixels = deep_values(image) if self.deep else plain_rgb(upright(image))
        return pixels[:height, :width]


class _RawTiff(_TiffBlocks):
    """Blocks of which Pillow only decompresses the bytes."""

    def __init__(self, source: Path | bytes, layout: TiffLayout) -> None:
        super().__init__(source, layout)
        assert layout.dtype is not None
        self._type = layout.dtype
        self.deep = layout.dtype != np.uint8
        self.inverted = self.deep and layout.photometric == WHITE_IS_ZERO
        gray = layout.photometric != RGB and layout.samples <= _GRAY_VALUES
        self._bands = 1 if gray else 3

    def decode(self, row: int, column: int) -> Pixels:
        height, width = self.shape(row, column)
        if self.layout.planes == 1:
            values = self._plane(row, column, 0, self.layout.samples)[:height, :width, : self._bands]
        else:
            planes = [self._plane(row, column, plane, 1)[:height, :width, 0] for plane in range(self._bands)]
            values = np.stack(planes, axis=2)
        if self.deep:
            values = without_missing(values.astype(np.float32), self.layout.no_data)
            return values[:, :, 0] if self._bands == 1 else values
        if self.layout.photometric == WHITE_IS_ZERO:
            values = 255 - values
        return np.repeat(values, 3, axis=2) if self._bands == 1 else np.ascontiguousarray(values)

    def _plane(self, row: int, column: int, plane: int, samples: int) -> npt.NDArray[Any]:
        """Values of a block ``(rows, width, samples)`` of one plane."""
        rows, strips = self._stored(row, column, plane)
        shape = (rows, self.block[1], samples)
        if not any(strips):
            return np.zeros(shape, self._type)
        data = strips[0] if self.layout.compression == UNCOMPRESSED else self._decompressed(rows, strips)
        values = np.frombuffer(data, self._type, np.prod(shape, dtype=int)).reshape(shape)
        return _unpredicted(values, self.layout.predictor)

    def _decompressed(self, rows: int, strips: list[bytes]) -> bytes:
        """Let Pillow decode the strips as a gray image, with a pixel for each byte."""
        layout, width = self.layout, self.layout.row_bytes
        tags = (*_sizes(layout, (rows, width)), *_gray(layout))
        return _opened(_small_tiff(layout.order, tags, strips)).tobytes()


def _unpredicted(values: npt.NDArray[Any], predictor: int) -> npt.NDArray[Any]:
    """Undo the predictor of values ``(rows, width, samples)``."""
    if predictor == 2:
        whole = values.view(values.dtype.str.replace("f", "u")).astype(f"u{values.dtype.itemsize}")
        return np.cumsum(whole, axis=1, dtype=whole.dtype).view(values.dtype.newbyteorder("="))
    if predictor == 3:
        rows, width, samples = values.shape
        size = values.dtype.itemsize
        differences = values.reshape(rows, -1).view(np.uint8).reshape(rows, -1, samples)
        # The first bytes of all values of a row come first, then their second bytes, from the highest to the lowest.
        bytes_ = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(rows, size, width * samples)
        joined = np.ascontiguousarray(bytes_.transpose(0, 2, 1)).view(f">f{size}")
        return joined.reshape(rows, width, samples)
    return values


def _first_block(layout: TiffLayout) -> Image.Image | None:
    """A small TIFF with the tags of the file, opened but not decoded; ``None`` if Pillow does not know such pixels."""
    try:
        return _opened(_small_tiff(layout.order, (*layout.tags, *_sizes(layout, layout.block)), [b"\0"]))
    except Exception:  # Pillow raises SyntaxError, KeyError, OSError …
        return None


def _opens(layout: TiffLayout) -> bool:
    """Whether Pillow knows the compression."""
    try:
        _opened(_small_tiff(layout.order, (*_sizes(layout, (1, 1)), *_gray(layout)), [b"\0"]))
    except Exception:  # as above
        return False
    return True


def _gray(layout: TiffLayout) -> tuple[Tag, ...]:
    """Tags of a gray image with 8 bits, compressed as the file is."""
    values = {_BITS: 8, _COMPRESSION: layout.compression, _PHOTOMETRIC: BLACK_IS_ZERO, _SAMPLES: 1}
    return tuple(_number(layout.order, _SHORT, code, value) for code, value in values.items())


def _sizes(layout: TiffLayout, size: tuple[int, int]) -> tuple[Tag, ...]:
    """Tags of an image of ``(height, width)`` pixels that consists of strips, as the file does, or of one strip."""
    strip = size[0] if layout.tiled or layout.cuttable else layout.strip
    values = {_WIDTH: size[1], _HEIGHT: size[0], _STRIP: strip}
    return tuple(_number(layout.order, _LONG, code, value) for code, value in values.items())


def _number(order: str, kind: int, code: int, *values: int) -> Tag:
    return Tag(code, kind, len(values), struct.pack(f"{order}{len(values)}{'H' if kind == _SHORT else 'I'}", *values))


def _small_tiff(order: str, tags: Sequence[Tag], strips: Sequence[bytes]) -> bytes:
    """A TIFF file with one image of these tags and strips."""
    places = [Tag(code, _LONG, len(strips), bytes(4 * len(strips))) for code in (_OFFSETS, _COUNTS)]
    entries = sorted([*tags, *places])
    start = 8 + 2 + 12 * len(entries) + 4
    longer = sum(len(tag.data) + len(tag.data) % 2 for tag in entries if len(tag.data) > 4)
    lengths = [len(strip) for strip in strips]
    offsets = (start + longer + np.concatenate(([0], np.cumsum(lengths)[:-1]))).astype(int).tolist()
    filled = {_OFFSETS: _number(order, _LONG, _OFFSETS, *offsets), _COUNTS: _number(order, _LONG, _COUNTS, *lengths)}
    head = [b"II" if order == "<" else b"MM", struct.pack(f"{order}HIH", 42, 8, len(entries))]
    values: list[bytes] = []
    for tag in (filled.get(tag.code, tag) for tag in entries):
        head.append(struct.pack(f"{order}HHI", tag.code, tag.kind, tag.values))
        if len(tag.data) <= 4:
            head.append(tag.data.ljust(4, b"\0"))
        else:
            head.append(struct.pack(f"{order}I", start + sum(map(len, values))))
            values.append(tag.data + bytes(len(tag.data) % 2))
    return b"".join([*head, bytes(4), *values, *strips])


def _opened(data: bytes) -> Image.Image:
    """Open a TIFF file without Pillow's limit on pixels: the size of a block was checked before."""
    return TiffImagePlugin.TiffImageFile(io.BytesIO(data))
