"""Read windows of image files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from retinanet.data.deep_pixels import PixelRange
from retinanet.data.images import MAX_PIXELS, read_image


class Window(NamedTuple):
    """A rectangle of an image: pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


class WindowReader(ABC):
    """Reads windows of one image file; a context manager."""

    path: Path
    size: tuple[int, int]
    by_window: bool

    def read(self, window: Window) -> npt.NDArray[np.uint8]:
        """Read a window as uint8 RGB ``(height, width, 3)``."""
        return self._read(window)

    @abstractmethod
    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        """Read a window that is inside the image."""

    @abstractmethod
    def close(self) -> None:
        """Close the file and free the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _WholeReader(WindowReader):
    by_window = False

    def __init__(self, path: Path, pixel_range: PixelRange | None) -> None:
        self.path = path
        self._image = read_image(path, pixel_range)
        self.size = (self._image.shape[0], self._image.shape[1])

    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        top, left, height, width = window
        return self._image[top : top + height, left : left + width]

    def close(self) -> None:
        pass


def open_windows(path: str | Path, pixel_range: PixelRange | None = None, max_pixels: int = MAX_PIXELS) -> WindowReader:
    """Open an image."""
    return _WholeReader(Path(path), pixel_range)


def read_ahead(reader: WindowReader, windows: Sequence[Window]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the windows."""
    yield from map(reader.read, windows)
