"""Three images with objects, predictions for them, and a slow reference of their losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retinanet.anchors import BACKGROUND, IGNORE, AnchorGrid, AnchorSpec, assign_batch, make_grid
from retinanet.model import Outputs

SPEC = AnchorSpec(sizes=(32.0, 64.0), scales=(1.0, 1.3), ratios=(1.0,), strides=(16, 32))
SIZE = (64, 96)
CLASSES = 3


def predictions(grid: AnchorGrid, images: int, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(images, n, CLASSES, generator=generator) * 3 for n in grid.level_sizes]
    deltas = [torch.randn(images, n, 4, generator=generator) for n in grid.level_sizes]
    return Outputs([t.requires_grad_() for t in logits], [t.requires_grad_() for t in deltas])


def slow(
    outputs: Outputs, grid: AnchorGrid, matched: Tensor, boxes: Tensor, labels: Tensor, alpha: float, gamma: float
) -> tuple[float, float, int]:
    """Anchor by anchor in double precision."""
    beta = 0.11
    logits = torch.cat([t.detach() for t in outputs.logits], dim=1).tolist()
    deltas = torch.cat([t.detach() for t in outputs.deltas], dim=1).tolist()
    anchors, truth, classes = grid.boxes.tolist(), boxes.tolist(), labels.tolist()
    classification = box = 0.0
    foreground = 0
    for image, row in enumerate(matched.tolist()):
        for index, match in enumerate(row):
            if match == IGNORE:
                continue
            for k, logit in enumerate(logits[image][index]):
                positive = match >= 0 and classes[match] == k
                p = 1 / (1 + math.exp(-logit))
                p_t, a_t = (p, alpha) if positive else (1 - p, 1 - alpha)
                classification -= a_t * (1 - p_t) ** gamma * math.log(p_t)
            if match < 0:
                continue
            foreground += 1
            x1, y1, x2, y2 = anchors[index]
            u1, v1, u2, v2 = truth[match]
            target = [
                ((u1 + u2) / 2 - (x1 + x2) / 2) / (x2 - x1),
                ((v1 + v2) / 2 - (y1 + y2) / 2) / (y2 - y1),
                math.log((u2 - u1) / (x2 - x1)),
                math.log((v2 - v1) / (y2 - y1)),
            ]
            for predicted, wanted in zip(deltas[image][index], target, strict=True):
                d = abs(predicted - wanted)
                box += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return classification / max(1, foreground), box / max(1, foreground), foreground


def scene() -> tuple[AnchorGrid, Tensor, Tensor, Tensor]:
    """Three images: two objects and an ignore region, none, one object."""
    grid = make_grid(SPEC, SIZE)
    images = [
        torch.tensor([[1.0, 2.0, 34.0, 30.0], [30.0, 0.0, 92.0, 60.0]]),
        torch.zeros(0, 4),
        torch.tensor([[50.0, 20.0, 80.0, 48.0]]),
    ]
    ignore = [torch.tensor([[60.0, 30.0, 96.0, 64.0]]), torch.zeros(0, 4), torch.zeros(0, 4)]
    matched = assign_batch(grid, images, ignore)
    assert {IGNORE, BACKGROUND, 0, 1, 2} == set(matched.flatten().tolist())  # everything occurs
    return grid, matched, torch.cat(images), torch.tensor([2, 0, 1])


def part(outputs: Outputs, first: int, last: int) -> Outputs:
    """The predictions for images ``first`` … ``last`` − 1."""
    return Outputs([t[first:last] for t in outputs.logits], [t[first:last] for t in outputs.deltas])


def gradients(loss: Tensor, outputs: Outputs) -> Tensor:
    """Of logits and deltas of all levels, in one vector."""
    leaves = (*outputs.logits, *outputs.deltas)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return torch.cat([torch.zeros(t.numel()) if g is None else g.flatten() for g, t in zip(found, leaves, strict=True)])
