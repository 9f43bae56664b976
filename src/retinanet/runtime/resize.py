"""Scale images as the training does, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.config import DataConfig
from retinanet.data.peer_resize import resize_by_opencv, resize_by_pillow

Pixels = npt.NDArray[Any]


def resize_image(image: npt.NDArray[np.uint8], shape: tuple[int, int], config: DataConfig) -> Pixels:
    """Resize uint8 ``image`` ``(h, w, 3)`` to ``shape``; the result is float32 if ``config.resize`` is bilinear.

    It equals :func:`retinanet.data.transforms.resize_image`: if ``config.resize`` is antialiased, up to one gray level,
    and if it is bilinear, up to 0.001.
    """
    match config.resize:
        case "bilinear":
            return _bilinear(image, shape)
        case "opencv":
            return resize_by_opencv(image, shape)
        case _:
            # Pillow's filter grows with the scale factor, as in torchvision with antialias=True.
            return resize_by_pillow(image, shape)


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
