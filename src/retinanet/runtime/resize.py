"""Scale images as the training does, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from retinanet.config import DataConfig

Pixels = npt.NDArray[Any]


def resize_image(image: npt.NDArray[np.uint8], shape: tuple[int, int], config: DataConfig) -> Pixels:
    """Resize uint8 ``image`` ``(h, w, 3)`` to ``shape``; the result is float32 if ``config.resize`` is bilinear.

    It equals :func:`retinanet.data.transforms.resize_image` up to rounding: by one gray level, or by 0.001 if it is
    float32.
    """
    if config.resize == "bilinear":
        return _bilinear(image, shape)
    if image.shape[:2] == shape:
        return image
    # Pillow's filter grows with the scale factor, as in torchvision with antialias=True.
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))


def _bilinear(image: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Interpolate between the four nearest pixels, as ``torch.nn.functional.interpolate`` does."""
    (top, bottom, down), (left, right, across) = (
        _neighbors(old, new) for old, new in zip(image.shape, shape, strict=False)
    )
    upper, lower = image[top].astype(np.float32), image[bottom].astype(np.float32)
    rows = upper + (lower - upper) * down[:, None, None]  # (new height, w, 3)
    start = rows[:, left]
    result: npt.NDArray[np.float32] = start + (rows[:, right] - start) * across[:, None]
    return result


def _neighbors(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Positions of the two pixels around each new pixel, and the weight of the second."""
    # PyTorch computes with a float32 factor, and rounds once, after the subtraction.
    exact = (np.arange(new) + 0.5) * float(np.float32(old) / np.float32(new)) - 0.5
    place = np.maximum(exact, 0).astype(np.float32)
    first = np.minimum(place.astype(np.int64), old - 1)
    return first, np.minimum(first + 1, old - 1), place - first.astype(np.float32)
