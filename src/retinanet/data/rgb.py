"""Convert Pillow images with 8 bits per value to uint8 RGB arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def plain_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert an image with at most 8 bits per value to uint8 RGB ``(H, W, 3)``. An alpha channel is dropped."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
