"""Blocks: the pieces of an image file that can be decoded alone, such as the strips or the tiles of a TIFF file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

# Largest number of pixels of a block. A file with larger blocks is decoded whole.
LARGEST_BLOCK = 2**24

# Thin strips are decoded together up to this many rows.
STRIP_ROWS = 64

# If rows can be cut anywhere, a strip has at least ``STRIP_ROWS`` and about this many bytes.
_STRIP_BYTES = 2**20

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


class Blocks(ABC):
    """The grid of blocks of one file. An instance may be used by one thread at a time.

    Attributes:
        size: ``(height, width)`` of the stored image, before it is turned.
        block: ``(height, width)`` of a block. Blocks at the right and lower edge may be smaller.
        orientation: EXIF orientation, 1 (upright) to 8.
        deep: whether :meth:`decode` returns values that are yet to be scaled to 8 bits.
        inverted: whether the smallest of these values is white.
    """

    size: tuple[int, int]
    block: tuple[int, int]
    orientation: int = 1
    deep: bool = False
    inverted: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and of columns of blocks."""
        return -(-self.size[0] // self.block[0]), -(-self.size[1] // self.block[1])

    def shape(self, row: int, column: int) -> tuple[int, int]:
        """``(height, width)`` of one block, cut at the edge of the image."""
        top, left = row * self.block[0], column * self.block[1]
        return min(self.block[0], self.size[0] - top), min(self.block[1], self.size[1] - left)

    def row_of_blocks(self, row: int) -> Pixels:
        """Decode all blocks of a row of the grid: as :meth:`decode`, over the width of the image."""
        return np.concatenate([self.decode(row, column) for column in range(self.grid[1])], axis=1)

    def whole(self) -> Pixels:
        """Decode the whole image, as it is stored."""
        return np.concatenate([self.row_of_blocks(row) for row in range(self.grid[0])])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def decode(self, row: int, column: int) -> Pixels:
        """Decode one block: uint8 RGB ``(h, w, 3)``, or float32 ``(h, w)`` or ``(h, w, 3)`` if ``deep``.

        Raises:
            Exception: the block is damaged; which exception depends on the decoder.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


def strip_rows(row_bytes: int, height: int) -> int:
    """Choose the number of rows of a strip for a file whose rows can be cut anywhere."""
    return min(height, max(STRIP_ROWS, -(-_STRIP_BYTES // max(1, row_bytes))))
