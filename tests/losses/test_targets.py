"""Targets by level hold what the dense assignment says about each anchor."""

from __future__ import annotations

import torch

from retinanet.anchors import BACKGROUND, IGNORE, AnchorSpec, Matches, make_grid
from retinanet.losses.targets import make_targets

GRID = make_grid(AnchorSpec(), (64, 96))
BOXES = torch.tensor([[3.0, 4, 40, 50], [20, 10, 60, 40], [0, 0, 90, 60]])
LABELS = torch.tensor([2, 0, 1])


def random_matches(images: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(images, len(GRID.boxes), generator=generator)
    box = torch.randint(len(BOXES), kind.shape, generator=generator)
    return torch.where(kind < 0.1, box, torch.where(kind < 0.3, IGNORE, BACKGROUND))


def test_classes_and_positives_are_those_of_the_dense_assignment() -> None:
    for images, seed in ((1, 0), (3, 1)):
        matched = random_matches(images, seed)
        targets = make_targets(Matches.from_dense(matched), GRID, BOXES, LABELS, torch.device("cpu"))
        classes = torch.where(matched >= 0, LABELS[matched.clamp(min=0)], matched)
        assert torch.equal(torch.cat(targets.classes, dim=1), classes)
        assert targets.counts == [int((level >= 0).sum()) for level in GRID.split(matched, 1)]
        numbers = torch.arange(matched.numel()).view(*matched.shape, 1)
        own = targets.of_positives(GRID.split(numbers, 1)).squeeze(1)  # which anchor each row stands for
        assert sorted(own.tolist()) == torch.nonzero(matched.flatten() >= 0).squeeze(1).tolist()
        assert torch.equal(targets.anchors, GRID.boxes[own % len(GRID.boxes)])
        assert torch.equal(targets.boxes, BOXES[matched.flatten()[own]])
        assert torch.equal(targets.labels, LABELS[matched.flatten()[own]])
        values = torch.rand(len(own))
        spread = torch.cat(targets.spread(values), dim=1).flatten()
        assert torch.equal(spread[own], values)
        assert int((spread != 0).sum()) == len(own)


def test_no_positive_anchor_and_no_image() -> None:
    for images in (0, 2):
        matched = torch.full((images, len(GRID.boxes)), BACKGROUND)
        nothing = torch.zeros(0, dtype=torch.int64)
        targets = make_targets(Matches.from_dense(matched), GRID, torch.zeros(0, 4), nothing, torch.device("cpu"))
        assert [level.shape for level in targets.classes] == [(images, size) for size in GRID.level_sizes]
        assert targets.of_positives([torch.zeros(images, size, 4) for size in GRID.level_sizes]).shape == (0, 4)
        assert all((level == 0).all() for level in targets.spread(torch.zeros(0)))
