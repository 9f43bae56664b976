"""The anchor boxes of an image in NumPy, equal to those of :func:`retinanet.anchors.make_grid`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from retinanet.config import AnchorSpec

Floats = npt.NDArray[np.float32]


@lru_cache(maxsize=64)
def anchor_boxes(spec: AnchorSpec, image_size: tuple[int, int]) -> tuple[Floats, ...]:
    """Anchors of each level for an image of ``(height, width)`` pixels: float32 ``(A_l, 4)`` ``xyxy``, read-only.

    See :func:`retinanet.anchors.make_grid`, which explains the layouts.
    """
    height, width = image_size
    levels = []
    for level, stride in enumerate(spec.strides):
        rows, columns = -(-height // stride), -(-width // stride)
        down, across = stride, stride
        if spec.layout == "torchvision":
            down, across = height // rows, width // columns
        y, x = np.arange(rows, dtype=np.float64) * down, np.arange(columns, dtype=np.float64) * across
        centers = np.stack(np.broadcast_arrays(x, y[:, None]), axis=-1)  # (rows, columns, xy)
        boxes = np.tile(centers, 2)[:, :, None] + _base_anchors(spec, level)  # (rows, columns, A, 4)
        anchors = boxes.reshape(-1, 4).astype(np.float32)
        anchors.flags.writeable = False
        levels.append(anchors)
    return tuple(levels)


def _base_anchors(spec: AnchorSpec, level: int) -> npt.NDArray[np.float64]:
    """Anchors of the first location, ``(A, 4)``; see :func:`retinanet.anchors.grid.base_anchors`."""
    scales, ratios = np.array(spec.scales), np.array(spec.ratios)
    side = spec.sizes[level] * scales[:, None]
    if spec.layout == "torchvision":
        whole, root = np.trunc(side).astype(np.float32), np.sqrt(ratios.astype(np.float32))
        sides = np.stack([(1 / root * whole).T, (root * whole).T], axis=-1)
        half = sides.reshape(-1, 2) / 2
        rounded: npt.NDArray[np.float64] = np.rint(np.concatenate([-half, half], axis=1)).astype(np.float64)
        return rounded
    half = np.stack([side / np.sqrt(ratios), side * np.sqrt(ratios)], axis=-1).reshape(-1, 2) / 2
    center = spec.offset * spec.strides[level]
    return np.concatenate([center - half, center + half + (spec.layout == "inclusive")], axis=1)
