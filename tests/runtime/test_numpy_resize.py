from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from retinanet.config import DataConfig
from retinanet.data import transforms
from retinanet.runtime.resize import resize_image

SHAPES = [
    ((480, 640), (320, 427)),
    ((60, 90), (320, 480)),
    ((1, 1), (32, 32)),
    ((7, 900), (1, 133)),
    ((96, 96), (96, 96)),
]


def photo(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise of several frequencies."""
    random = np.random.default_rng(height * width)
    coarse = random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    fine = random.integers(-40, 40, (height, width, 3))
    pixels: npt.NDArray[np.uint8] = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    return pixels


@pytest.mark.parametrize(("old", "new"), SHAPES)
@pytest.mark.parametrize(
    ("method", "tolerance"),
    [("antialiased", 1), ("bilinear", 1e-3), ("opencv", 0), ("pillow", 0), ("pillow_floor", 0)],
)
def test_equals_the_resizing_of_the_training(
    old: tuple[int, int], new: tuple[int, int], method: str, tolerance: float
) -> None:
    config, image = DataConfig(resize=method), photo(*old)  # type: ignore[arg-type]
    found = resize_image(image, new, config)
    expected = transforms.resize_image(torch.from_numpy(image).permute(2, 0, 1), new, config).permute(1, 2, 0).numpy()
    assert found.dtype == expected.dtype
    assert found.shape == (*new, 3)
    assert np.abs(found.astype(np.float64) - expected).max() <= tolerance


@pytest.mark.parametrize(("old", "new"), [((7, 9), (5, 13)), ((9, 7), (30, 3)), ((8, 6), (4, 3)), ((1, 5), (4, 2))])
def test_opencvs_resizing_by_hand(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Pixel by pixel, with the whole numbers of OpenCV's fixed-point arithmetic."""
    image = photo(*old)
    found = resize_image(image, new, DataConfig(resize="opencv"))
    for row in range(new[0]):
        y = np.float32((row + 0.5) * (old[0] / new[0]) - 0.5)
        top, share_y = math.floor(y), np.float32(y - np.floor(y))
        for column in range(new[1]):
            x = np.float32((column + 0.5) * (old[1] / new[1]) - 0.5)
            left, share_x = math.floor(x), np.float32(x - np.floor(x))
            if left < 0 or left >= old[1] - 1:
                left, share_x = max(0, min(left, old[1] - 1)), np.float32(0)
            right = min(left + 1, old[1] - 1)
            pair = [min(max(each, 0), old[0] - 1) for each in (top, top + 1)]
            mixed = [
                int(np.rint(2048 * (1 - share_x))) * image[each, left].astype(int)
                + int(np.rint(2048 * share_x)) * image[each, right].astype(int)
                for each in pair
            ]
            weights = [int(np.rint(2048 * (1 - share_y))), int(np.rint(2048 * share_y))]
            parts = [(weight * (each >> 4)) >> 16 for weight, each in zip(weights, mixed, strict=True)]
            np.testing.assert_array_equal(found[row, column], (parts[0] + parts[1] + 2) >> 2)


@pytest.mark.parametrize("new", [(240, 320), (333, 500), (97, 801)])
def test_opencvs_resizing_equals_opencv(new: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = photo(480, 640)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_image(image, new, DataConfig(resize="opencv")), expected)
