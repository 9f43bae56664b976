"""The size of images after scaling, and of the batches they are padded to. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retinanet.config import DataConfig

# Sides of a batch are padded to multiples of this number, the stride of C5.
PAD_TO = 32


def scaled_size(height: int, width: int, config: DataConfig, scale: float = 1.0) -> tuple[int, int]:
    """Return the ``(height, width)`` after resizing. The aspect ratio is kept, and each side is at least 1.

    The shorter side becomes ``scale`` · ``config.size``, unless the longer side would exceed ``scale`` ·
    ``config.longest``. With ``config.tile``, every image is scaled like a square of that side, so objects have the same
    size in tiles and in smaller images.
    """
    if config.tile is not None:
        factor = scale * config.size / config.tile
    else:
        factor = min(scale * config.size / min(height, width), scale * config.longest / max(height, width))
    whole = math.floor if config.resize == "bilinear" else round
    return max(1, whole(height * factor)), max(1, whole(width * factor))


def batches_of_one_padded_size(sizes: Sequence[tuple[int, int]], batch: int) -> list[list[int]]:
    """Divide the positions of images into batches of at most ``batch`` images that are padded to the same size.

    An image has the same padding in such a batch as on its own, so no image changes the result of another image.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position, size in enumerate(sizes):
        groups.setdefault(padded_size([size]), []).append(position)
    return [group[i : i + batch] for group in groups.values() for i in range(0, len(group), batch)]


def padded_size(sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Return the smallest ``(H, W)`` divisible by ``PAD_TO`` that holds images of every ``(height, width)``."""
    height, width = (-(-max(size[axis] for size in sizes) // PAD_TO) * PAD_TO for axis in (0, 1))
    return height, width
