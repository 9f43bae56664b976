"""Read windows of image files."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from retinanet.data.deep_pixels import PixelRange
from retinanet.data.images import read_image


class Window(NamedTuple):
    """A part of an image, in pixels of the upright image."""

    top: int
    left: int
    height: int
    width: int


class WindowReader:
    """An image that is decoded as a whole."""

    by_window = False

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.size = pixels.shape[:2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def read(self, window: Window) -> npt.NDArray[np.uint8]:
        """Read uint8 RGB ``(h, w, 3)``."""
        return self._pixels[window.top : window.top + window.height, window.left : window.left + window.width]


def open_windows(path: str | Path, pixel_range: PixelRange | None = None) -> WindowReader:
    """Open an image file."""
    return WindowReader(read_image(path, pixel_range))
