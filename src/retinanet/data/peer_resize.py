"""Resize images with the exact results of Pillow and of OpenCV. NumPy, no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]

# OpenCV's weights are whole numbers of 1/2048.
_ONE = 2048


def resize_by_pillow(image: Pixels, shape: tuple[int, int]) -> Pixels:
    """Resize uint8 ``image`` ``(h, w, 3)`` to ``shape`` by Pillow's bilinear filter, which grows with the factor."""
    if image.shape[:2] == tuple(shape):
        return image
    return np.array(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def resize_by_opencv(image: Pixels, shape: tuple[int, int]) -> Pixels:
    """Resize uint8 ``image`` ``(h, w, 3)`` to ``shape`` as ``cv2.resize`` does: bilinear, without antialiasing.

    OpenCV computes with whole numbers: it adds two columns with weights of 1/2048, drops 4 bits, adds two rows in the
    same way, and drops the rest of the bits.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(shape):
        return image
    left, right, from_left, from_right = _neighbors(width, shape[1], repeat_border=True)
    top, bottom, from_top, from_bottom = _neighbors(height, shape[0], repeat_border=False)
    rows, position = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    used = image[rows].astype(np.int32)
    mixed = (used[:, left] * from_left[:, None] + used[:, right] * from_right[:, None]) >> 4  # (rows, new width, 3)
    upper, lower = mixed[position[: shape[0]]], mixed[position[shape[0] :]]
    upper *= from_top[:, None, None]
    lower *= from_bottom[:, None, None]
    result: Pixels = (((upper >> 16) + (lower >> 16) + 2) >> 2).astype(np.uint8)
    return result


def _neighbors(old: int, new: int, repeat_border: bool) -> tuple[Ints, Ints, Ints, Ints]:
    """Positions of the two pixels around each new pixel, and their weights in 1/2048.

    Beyond the border, OpenCV takes the outermost pixel: of columns with a weight of 1 (``repeat_border``), of rows with
    the weights of both neighbors, which round separately.
    """
    exact = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(exact).astype(np.int32)
    share = exact - first.astype(np.float32)
    if repeat_border:
        share = np.where((first < 0) | (first >= old - 1), np.float32(0), share)
    weights = [np.rint(part * np.float32(_ONE)).astype(np.int32) for part in (1 - share, share)]
    return np.clip(first, 0, old - 1), np.clip(first + 1, 0, old - 1), weights[0], weights[1]
