"""Decode a JPEG file strip by strip, from top to bottom, if pyvips is installed (the extra ``vips``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.blocks import Blocks, Pixels, strip_rows

SIGNATURE = b"\xff\xd8\xff"


def jpeg_blocks(path: Path, orientation: int) -> Blocks | None:
    """Open a JPEG file; ``None`` if pyvips is missing or cannot read it, or if it is neither gray nor RGB.

    Args:
        path: the file.
        orientation: its EXIF orientation.
    """
    try:
        import pyvips
    except (ImportError, OSError):  # OSError: the package without its library
        return None
    try:
        return _JpegStrips(path, orientation)
    except (pyvips.Error, ValueError):
        return None


class _JpegStrips(Blocks):
    """The strips of a JPEG file. Decoding an earlier strip than the last one starts at the top again."""

    def __init__(self, path: Path, orientation: int) -> None:
        self._path, self.orientation = path, orientation
        self._image, self._region = self._opened()
        width, height, self._bands = self._image.width, self._image.height, self._image.bands
        if self._bands not in (1, 3):
            raise ValueError("neither gray nor RGB")
        self.size, self.block = (height, width), (strip_rows(width * self._bands, height), width)
        self._next = 0

    def decode(self, row: int, column: int) -> Pixels:
        if row < self._next:
            self._image, self._region = self._opened()
            self._next = 0
        start, self._next = self._next, self.size[0]  # if decoding fails, the next call opens the file again
        for strip in range(start, row + 1):  # libvips does not pass over rows by itself
            data = self._region.fetch(0, strip * self.block[0], self.size[1], self.shape(strip, 0)[0])
        self._next = row + 1
        pixels = np.frombuffer(data, np.uint8).reshape(-1, self.size[1], self._bands)
        return np.repeat(pixels, 3, axis=2) if self._bands == 1 else pixels

    def close(self) -> None:
        self._image = self._region = None

    def _opened(self) -> tuple[Any, Any]:
        import pyvips

        image = pyvips.Image.new_from_file(str(self._path), access="sequential", fail_on="truncated")
        return image, pyvips.Region.new(image)
