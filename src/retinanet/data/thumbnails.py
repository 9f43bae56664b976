"""Decode images to small gray squares, for the search for duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.data.blocks import Blocks
from retinanet.data.deep_pixels import PixelRange
from retinanet.data.images import opened_header, rgb_of_blocks, to_rgb
from retinanet.data.open_images import cannot_decode, open_any_image


class Thumbnail(NamedTuple):
    """A small version of an image.

    Attributes:
        pixels: uint8 ``(side, side)``, gray.
        size: ``(width, height)`` that :func:`retinanet.data.images.read_image` would give.
        contrast: difference between the brightest and the darkest pixel of the image, 0 to 255.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]
    contrast: int


def read_thumbnail(path: Path, side: int, pixel_range: PixelRange | None = None) -> Thumbnail:
    """Decode a whole image as cheaply as possible, and scale it to a gray square.

    Args:
        path: the file.
        side: side of the square in pixels.
        pixel_range: as in :func:`retinanet.data.images.read_image`.

    Raises:
        DataError: as :func:`retinanet.data.images.read_image`.
    """
    with open_any_image(path, str(path)) as image:
        try:
            if isinstance(image, Blocks):
                rgb = rgb_of_blocks(image, pixel_range)
                size = (rgb.shape[1], rgb.shape[0])
            else:
                size = opened_header(image, path).upright
                image.draft("L", (4 * side, 4 * side))  # JPEG: reads every byte but computes few pixels
                rgb = to_rgb(image, pixel_range)
            gray = Image.fromarray(rgb).convert("L")
            darkest, brightest = gray.getextrema()
            pixels = np.array(gray.resize((side, side), Image.Resampling.BOX))
            return Thumbnail(pixels, size, int(brightest) - int(darkest))  # type: ignore[arg-type]
        except Exception as error:  # as in retinanet.data.images
            raise cannot_decode(path, error) from error
