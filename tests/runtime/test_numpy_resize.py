from __future__ import annotations

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
@pytest.mark.parametrize(("method", "tolerance"), [("antialiased", 1), ("bilinear", 1e-3)])
def test_equals_the_resizing_of_the_training(
    old: tuple[int, int], new: tuple[int, int], method: str, tolerance: float
) -> None:
    config, image = DataConfig(resize=method), photo(*old)  # type: ignore[arg-type]
    found = resize_image(image, new, config)
    expected = transforms.resize_image(torch.from_numpy(image).permute(2, 0, 1), new, config).permute(1, 2, 0).numpy()
    assert found.dtype == expected.dtype
    assert found.shape == (*new, 3)
    assert np.abs(found.astype(np.float64) - expected).max() <= tolerance
