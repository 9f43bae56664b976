"""Read an image in memory by window, as :mod:`retinanet.data.windows` reads files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from retinanet.data.windows import Window, WindowReader


class ArrayReader(WindowReader):
    """Reads windows of a uint8 RGB array ``(H, W, 3)``, without copies."""

    path = Path("array")
    by_window = True

    def __init__(self, image: npt.NDArray[np.uint8]) -> None:
        self._image = image
        self.size = (image.shape[0], image.shape[1])

    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        top, left, height, width = window
        return self._image[top : top + height, left : left + width]

    def close(self) -> None:
        """Do nothing; the array belongs to the caller."""
