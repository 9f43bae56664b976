"""The size of images after scaling, and of the batches they are padded to. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retinanet.config import DataConfig

# Sides of a batch are padded to multiples of this number, the stride of C5, or of a multiple of it (``data.pad_to``).
PAD_TO = 32


def scaled_size(height: int, width: int, config: DataConfig, scale: float = 1.0) -> tuple[int, int]:
    """Return the ``(height, width)`` after resizing. The aspect ratio is kept, and each side is at least 1.

    The shorter side becomes ``scale`` · ``config.size``, unless the longer side would exceed ``scale`` ·
    ``config.longest``. With ``config.tile``, every image is scaled like a square of that side, so objects have the same
    size in tiles and in smaller images. ``config.resize`` decides how sides are rounded.
    """
    factor = scale_factor(height, width, config, scale)
    match config.resize:
        case "antialiased":
            sides = round(height * factor), round(width * factor)
        case "bilinear" | "pillow_floor":
            sides = math.floor(height * factor), math.floor(width * factor)
        case "pillow" if config.tile is None:
            short, long = scale * config.size, scale * config.longest
            # The order of operations is detectron2's, because a product such as 384.5 must not become 384.4999.
            enlarged = short / min(height, width)
            rows, columns = (short, enlarged * width) if height < width else (enlarged * height, short)
            shrunk = long / max(rows, columns) if max(rows, columns) > long else 1.0
            sides = int(rows * shrunk + 0.5), int(columns * shrunk + 0.5)
        case "opencv" | "pillow":
            sides = int(height * factor + 0.5), int(width * factor + 0.5)
    return max(1, sides[0]), max(1, sides[1])


def scale_factor(height: int, width: int, config: DataConfig, scale: float = 1.0) -> float:
    """Return the factor that resizing multiplies both sides by, before they are rounded."""
    if config.tile is not None:
        return scale * config.size / config.tile
    return min(scale * config.size / min(height, width), scale * config.longest / max(height, width))


def batches_of_one_padded_size(sizes: Sequence[tuple[int, int]], batch: int, multiple: int = PAD_TO) -> list[list[int]]:
    """Divide the positions of images into batches of at most ``batch`` images that are padded to the same size.

    An image has the same padding in such a batch as on its own, so no image changes the result of another image.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position, size in enumerate(sizes):
        groups.setdefault(padded_size([size], multiple), []).append(position)
    return [group[i : i + batch] for group in groups.values() for i in range(0, len(group), batch)]


def padded_size(sizes: Sequence[Sequence[int]], multiple: int = PAD_TO) -> tuple[int, int]:
    """Return the smallest ``(H, W)`` divisible by ``multiple`` that holds images of every ``(height, width)``."""
    height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
    return height, width
