"""Decode a PNG file strip by strip, from top to bottom.

zlib inflates the rows of a strip. Pillow undoes their filters: the rows become a small PNG file that is not compressed
and starts with the last row of the strip above. The state of zlib is stored now and then, so that an earlier strip can
be decoded without starting at the top.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from retinanet.data.blocks import LARGEST_BLOCK, Blocks, Pixels, strip_rows
from retinanet.data.exif import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_DEEP = 16  # bits per value
_VALUES = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGBA: 4}

# Color types of PNG files with 8 bits whose pixels have this many bytes.
_TYPES = {1: _GRAY, 2: _GRAY_ALPHA, 3: _RGB, 4: _RGBA}

# Chunks that say how pixels are shown: the palette, and those that may hold the EXIF orientation.
_KEPT = (b"PLTE", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_LONGEST_KEPT = 2**20

_READ = 2**16

# The state of zlib is stored before every eighth strip: 40 KB, beside strips of a megabyte or more.
_STRIPS_PER_STATE = 8


class _Header(NamedTuple):
    width: int
    height: int
    bits: int
    kind: int
    interlaced: int


class _State(NamedTuple):
    """State before a strip: zlib's, the number of bytes that zlib has taken, and the row above the strip."""

    inflater: Any
    taken: int
    above: bytes

    def copied(self) -> _State:
        """A state that further decoding does not change."""
        return self._replace(inflater=self.inflater.copy())


def png_blocks(source: Path | bytes) -> Blocks | None:
    """Open a PNG file, given by its path or its content; ``None`` if it is interlaced or damaged, so that it can only
    be decoded whole.
    """
    try:
        return _PngStrips(source)
    except (OSError, ValueError, KeyError, struct.error):
        return None


class _PngStrips(Blocks):
    """The strips of a PNG file.

    Raises:
        ValueError: the file is interlaced, or it is not a valid PNG file.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._file: BinaryIO = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        header, kept, self._palette, self._data = _scan(self._file)
        values = _VALUES[header.kind]
        self._header, self._values = header, values
        self._row_bytes = -(-header.width * header.bits * values // 8)
        rows = strip_rows(self._row_bytes, header.height)
        if header.interlaced or rows * header.width > LARGEST_BLOCK:
            raise ValueError("can only be decoded whole")
        self.size, self.block = (header.height, header.width), (rows, header.width)
        self.deep = header.bits == _DEEP
        first = _small_png(header._replace(height=1), bytes(self._row_bytes + 1), kept)
        self.orientation = orientation_of(_opened(first))
        self._states: dict[int, _State] = {}
        self._next, self._state = 0, _State(zlib.decompressobj(), 0, b"")

    def decode(self, row: int, column: int) -> Pixels:
        stored = max((strip for strip in self._states if strip <= row), default=0)
        if row < self._next or stored > self._next:  # go back, or forward over strips that were decoded before
            self._next, self._state = stored, self._states[stored].copied()
        while self._next < row:
            self._strip()
        return self._pixels(self._strip())

    def close(self) -> None:
        self._file.close()

    def _strip(self) -> npt.NDArray[np.uint8]:
        """Bytes of the rows of the next strip, uint8 ``(rows, bytes)``."""
        strip, state = self._next, self._state
        if strip % _STRIPS_PER_STATE == 0 and strip not in self._states:
            self._states[strip] = state.copied()
        self._next = -1  # if decoding fails, the next call starts at a stored state
        rows = self.shape(strip, 0)[0]
        data, taken = self._inflated(state, rows * (self._row_bytes + 1))
        raw = self._unfiltered(np.frombuffer(data, np.uint8).reshape(rows, -1), state.above)
        self._next, self._state = strip + 1, _State(state.inflater, taken, raw[-1].tobytes())
        return raw

    def _inflated(self, state: _State, count: int) -> tuple[bytes, int]:
        """The next ``count`` bytes of the image, and the number of compressed bytes up to there."""
        result, taken = bytearray(), state.taken
        while len(result) < count:
            data = self._data.read(self._file, taken, _READ)
            piece = state.inflater.decompress(data, count - len(result))
            taken += len(data) - len(state.inflater.unconsumed_tail)
            if not piece and (not data or state.inflater.eof):
                raise ValueError("the file is cut short")
            result += piece
        return bytes(result), taken

    def _unfiltered(self, rows: npt.NDArray[np.uint8], above: bytes) -> npt.NDArray[np.uint8]:
        """Undo the filters of rows ``(n, 1 + bytes)``, which start with the number of their filter.

        The filters connect only bytes at the same place in their pixels. So the halves of a pixel with 6 or 8 bytes
        are rows of two images with 8 bits.
        """
        bytes_per_pixel = max(1, self._header.bits * self._values // 8)
        if above:
            rows = np.concatenate((np.frombuffer(b"\0" + above, np.uint8)[None], rows))
        parts = 2 if bytes_per_pixel > 4 else 1
        width = self._row_bytes // bytes_per_pixel
        pixels = rows[:, 1:].reshape(len(rows), width, parts, -1)
        decoded = []
        for part in range(parts):
            data = np.concatenate((rows[:, :1], pixels[:, :, part].reshape(len(rows), -1)), axis=1)
            header = _Header(width, len(rows), 8, _TYPES[pixels.shape[3]], 0)
            image = _opened(_small_png(header, data.tobytes()))
            decoded.append(np.frombuffer(image.tobytes(), np.uint8).reshape(len(rows), width, -1))
        joined = decoded[0] if parts == 1 else np.concatenate(decoded, axis=2)
        return joined.reshape(len(rows), -1)[bool(above) :]

    def _pixels(self, raw: npt.NDArray[np.uint8]) -> Pixels:
        rows, width, bits = len(raw), self._header.width, self._header.bits
        if bits == _DEEP:
            deep = raw.view(">u2").reshape(rows, width, self._values).astype(np.float32)
            return deep[:, :, :3] if self._values > _VALUES[_GRAY_ALPHA] else deep[:, :, 0]
        values = raw if bits == 8 else _unpacked(raw, bits)[:, :width]
        if self._header.kind == _PALETTE:
            return self._palette[values]
        values = values.reshape(rows, width, self._values)
        if self._values > _VALUES[_GRAY_ALPHA]:
            return values[:, :, :3]
        brightness = values[:, :, :1] * np.uint8(255 // (2 ** min(bits, 8) - 1))
        return np.repeat(brightness, 3, axis=2)


class _DataChunks:
    """The compressed data of a PNG file, which is spread over many chunks."""

    def __init__(self, places: list[tuple[int, int]]) -> None:
        self._starts, self._lengths = np.array(places, dtype=np.int64).reshape(-1, 2).T
        self._ends = np.cumsum(self._lengths)

    def read(self, file: BinaryIO, position: int, count: int) -> bytes:
        """At most ``count`` bytes of the data from ``position`` on; empty at its end."""
        chunk = int(np.searchsorted(self._ends, position, side="right"))
        if chunk == len(self._ends):
            return b""
        left = int(self._ends[chunk]) - position
        file.seek(int(self._starts[chunk] + self._lengths[chunk]) - left)
        return file.read(min(count, left))


def _scan(file: BinaryIO) -> tuple[_Header, bytes, npt.NDArray[np.uint8], _DataChunks]:
    """Read the header, the chunks in ``_KEPT``, the palette ``(256, 3)`` and the places of the data."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise ValueError("not a PNG file")
    length, kind = struct.unpack(">I4s", file.read(8))
    if kind != b"IHDR" or length != 13:
        raise ValueError("no header")
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    header = _Header(width, height, bits, color, interlaced)
    if not width or not height or bits not in (1, 2, 4, 8, _DEEP):
        raise ValueError("an invalid header")
    palette, kept, places = np.zeros((256, 3), np.uint8), [], []
    file.seek(4, io.SEEK_CUR)
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IDAT":
            places.append((file.tell(), length))
        elif kind in _KEPT and length <= _LONGEST_KEPT:
            data = file.read(length)
            kept.append(_chunk(kind, data))
            length = 0
            if kind == b"PLTE":
                colors = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3)[:256]
                palette[: len(colors)] = colors
        file.seek(length + 4, io.SEEK_CUR)
    return header, b"".join(kept), palette, _DataChunks(places)


def _unpacked(raw: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Values of 1, 2 or 4 bits as one byte each."""
    digits = np.unpackbits(raw, axis=1).reshape(len(raw), -1, bits)
    return digits @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _small_png(header: _Header, rows: bytes, kept: bytes = b"") -> bytes:
    """A PNG file of these filtered rows, not compressed."""
    head = struct.pack(">IIBBBBB", header.width, header.height, header.bits, header.kind, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", head) + kept + _chunk(b"IDAT", zlib.compress(rows, 0)) + _chunk(b"IEND", b"")


def _opened(data: bytes) -> Image.Image:
    """Open a PNG file without Pillow's limit on pixels: the size of a strip was checked before."""
    return PngImagePlugin.PngImageFile(io.BytesIO(data))
