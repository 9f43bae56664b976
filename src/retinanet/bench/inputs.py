"""Made-up images and boxes for the cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def random_boxes(count: int, side: int) -> Tensor:
    """Boxes ``(count, 4)`` with sides of 10–200 px in an image of 800 px, log-uniformly distributed."""
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 0.9 * side
    size = side / 80 * torch.exp(3 * torch.rand(count, 2, generator=generator))
    return torch.cat([corner, (corner + size).clamp(max=side)], dim=1)


def textured_image(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image with structure at every scale, uint8 ``(3, H, W)``."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3))
    for size in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / 3
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
