"""A reduced copy of a large image, to draw on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.windows import Window, WindowReader, read_ahead

# Largest number of pixels of a drawing. Larger images are reduced for it.
_MOST_PIXELS = 32_000_000

# Pixels of the strips that are read one after the other.
_STRIP_PIXELS = 16_000_000


def overview(reader: WindowReader, most_pixels: int = _MOST_PIXELS) -> npt.NDArray[np.uint8]:
    """Return the image as uint8 RGB ``(h, w, 3)``, with sides divided by a whole number if it has too many pixels.

    It is read strip by strip, so that memory is needed for the result and a few strips only.

    Raises:
        DataError: a part of the image cannot be decoded.
    """
    height, width = reader.size
    factor = max(1, math.ceil(math.sqrt(height * width / most_pixels)))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    strips = [Window(top, 0, min(rows, height - top), width) for top in range(0, height, rows)]
    reduced = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for window, pixels in zip(strips, read_ahead(reader, strips, 1), strict=True):
        part = pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))
        top = window.top // factor
        reduced[top : top + len(part)] = part
    return reduced
