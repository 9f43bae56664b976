"""Suppression keeps the boxes that torchvision's ``nms`` keeps, in time that grows with the number of boxes."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from retinanet import suppression
from retinanet.suppression import FEW, suppress_sorted

THRESHOLDS = (0.05, 0.3, 0.5, 0.7, 0.95, 1.0)


def reference(boxes: Tensor, threshold: float) -> Tensor:
    kept: Tensor = nms(boxes, torch.arange(len(boxes), 0, -1, dtype=boxes.dtype), threshold)
    return kept


def scattered(count: int, side: float, longest: float, seed: int = 0, copies: int = 1) -> Tensor:
    """Boxes in an image of ``side`` pixels, with ``copies`` noisy versions of each."""
    generator = torch.Generator().manual_seed(seed)
    corner = side * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    size = longest * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([corner, corner + size], dim=1).repeat(copies, 1)
    boxes += 0.05 * longest * (copies > 1) * torch.randn(boxes.shape, generator=generator, dtype=torch.float64)
    boxes[:, 2:] = torch.maximum(boxes[:, :2], boxes[:, 2:])
    return boxes[torch.randperm(len(boxes), generator=generator)]


def nested(count: int) -> Tensor:
    reach = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    return torch.cat([-reach, reach], dim=1)[:, [0, 0, 1, 1]]


def chain(count: int) -> Tensor:
    """Boxes that each overlap the next, so that every second box is kept."""
    x = 0.3 * torch.arange(count, dtype=torch.float64)
    return torch.stack([x, torch.zeros_like(x), x + 1, torch.ones_like(x)], dim=1)


def giant_over(small: Tensor) -> Tensor:
    return torch.cat([torch.tensor([[0.0, 0, 5000, 5000]], dtype=torch.float64), small])


DEGENERATE = {
    "one object": scattered(1, 100, 40, copies=3000),
    "identical boxes": torch.tensor([[3.0, 4, 10, 12]], dtype=torch.float64).repeat(3000, 1),
    "two places": scattered(2, 1000, 40, copies=1500),
    "no area": scattered(3000, 100, 0),
    "a third without area": torch.cat([scattered(2000, 600, 20), scattered(1000, 600, 0)]),
    "lines": scattered(3000, 500, 30) * torch.tensor([1, 0, 1, 0], dtype=torch.float64),
    "nested": nested(3000),
    "nested, smallest last": nested(3000).flip(0),
    "chain": chain(3000),
    "giant over small": giant_over(scattered(3000, 4096, 40)),
    "giant after small": giant_over(scattered(3000, 4096, 40)).flip(0),
    "tiny coordinates": 1e-9 * scattered(3000, 500, 20),
    "far from the origin": 1e8 + scattered(3000, 500, 20),
    "sizes of every scale": scattered(3000, 500, 1) * torch.logspace(-6, 6, 3000, dtype=torch.float64)[:, None],
    "whole numbers": scattered(3000, 300, 12).round(),
    "an inverted box": torch.cat([scattered(3000, 500, 20), torch.tensor([[9.0, 9, 3, 3]], dtype=torch.float64)]),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_degenerate_boxes_are_suppressed_as_by_torchvision(name: str, threshold: float) -> None:
    assert torch.equal(suppress_sorted(DEGENERATE[name], threshold), reference(DEGENERATE[name], threshold))


@pytest.mark.parametrize("copies", [1, 4, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crowded_scenes_are_suppressed_as_by_torchvision(copies: int, dtype: torch.dtype) -> None:
    for seed, threshold in enumerate(THRESHOLDS):
        boxes = scattered(4000 // copies, 30 * (4000 / copies) ** 0.5, 60, seed, copies).to(dtype)
        assert len(boxes) > FEW
        assert torch.equal(suppress_sorted(boxes, threshold), reference(boxes, threshold))


@given(
    count=st.integers(0, 120),
    side=st.sampled_from([1.0, 10.0, 100.0, 1e4]),
    longest=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    copies=st.integers(1, 4),
    whole=st.booleans(),
    threshold=st.one_of(st.sampled_from([0.25, 0.5, 2 / 3]), st.floats(0.01, 0.99)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=300, deadline=None)
def test_random_boxes_are_suppressed_as_by_torchvision(
    count: int, side: float, longest: float, copies: int, whole: bool, threshold: float, seed: int
) -> None:
    boxes = scattered(count, side, longest, seed, copies)
    boxes = boxes.round() if whole else boxes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppression, "FEW", 3)  # the fast method also for few boxes
        assert torch.equal(suppress_sorted(boxes, threshold), reference(boxes, threshold))


def test_no_boxes() -> None:
    assert len(suppress_sorted(torch.zeros(0, 4), 0.5)) == 0


@pytest.mark.parametrize("name", ["one object", "chain", "scattered"])
def test_time_grows_with_the_number_of_boxes_and_not_with_its_square(name: str) -> None:
    boxes = DEGENERATE[name] if name in DEGENERATE else scattered(3000, 2000, 40)
    scenes = [torch.cat([boxes + 3000 * i for i in range(count)]) for count in (4, 32)]
    if name == "one object":
        scenes = [boxes.repeat(count, 1) for count in (4, 32)]
    seconds = []
    for scene in scenes:
        times = []
        for _ in range(3):
            began = time.process_time()
            suppress_sorted(scene, 0.5)
            times.append(time.process_time() - began)
        seconds.append(min(times))
    assert seconds[1] < 32 * seconds[0]  # 64 times if it grew with the square
