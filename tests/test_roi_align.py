"""``experiments/roi_align.py`` against torchvision's operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign


def random_boxes(count: int, width: int, height: int, generator: torch.Generator) -> Tensor:
    """Boxes of all sizes, some of them empty or beyond the image."""
    span = torch.tensor([width, height], dtype=torch.float64)
    center = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 1.4 * span - 0.2 * span
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 3 * span
    size[0] = 0
    return torch.cat([center - size / 2, center + size / 2], 1)


@pytest.mark.parametrize(("size", "samples"), [((7, 7), 2), ((3, 5), 2), ((2, 3), 1), ((3, 2), 3), ((3, 3), 0)])
def test_values_and_gradients_are_torchvisions(experiment: Any, size: tuple[int, int], samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    names, images = ["0", "1", "2", "3"], [(90, 120), (96, 100)]
    features = {
        name: torch.randn(2, 6, 96 // stride, 128 // stride, generator=generator, dtype=torch.float64)
        for name, stride in zip(names, (4, 8, 16, 32), strict=True)
    }
    boxes = [random_boxes(300, width, height, generator) for height, width in images]
    boxes.append(torch.zeros(0, 4, dtype=torch.float64))
    pooled, gradients = [], []
    for kind in (MultiScaleRoIAlign, experiment("roi_align").FastTrainingRoIAlign):
        leaves = {name: feature.clone().requires_grad_() for name, feature in features.items()}
        # Levels are chosen by size; a small canonical scale makes all of them occur.
        pool = kind(names, size, samples, canonical_scale=40, canonical_level=4).train()
        pooled.append(pool(leaves, boxes, images))
        factors = torch.linspace(0, 1, pooled[-1].numel(), dtype=torch.float64).view_as(pooled[-1])
        (pooled[-1] * factors).sum().backward()
        gradients.append([leaf.grad for leaf in leaves.values()])
    assert pooled[0].shape == (600, 6, *size)
    torch.testing.assert_close(pooled[1], pooled[0], rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*reversed(gradients), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_trained_detector_uses_torchvisions_operation(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = experiment("roi_align")
    monkeypatch.setattr(module, "roi_align", None)
    pool = module.FastTrainingRoIAlign(["0"], 7, 2).eval()
    assert pool({"0": torch.ones(1, 2, 8, 8)}, [torch.tensor([[0.0, 0, 16, 16]])], [(32, 32)]).shape == (1, 2, 7, 7)
