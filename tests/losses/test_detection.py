from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retinanet.anchors import BACKGROUND, IGNORE, AnchorGrid, AnchorSpec, assign_batch
from retinanet.config import LossConfig
from retinanet.losses import detection_losses
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
                box += 0.5 * d * d if d < 1 else d - 0.5
    return classification / max(1, foreground), box / max(1, foreground), foreground


def scene() -> tuple[AnchorGrid, Tensor, Tensor, Tensor]:
    """Three images: two objects and an ignore region, none, one object."""
    grid = SPEC.grid(SIZE)
    images = [
        torch.tensor([[1.0, 2.0, 34.0, 30.0], [30.0, 0.0, 92.0, 60.0]]),
        torch.zeros(0, 4),
        torch.tensor([[50.0, 20.0, 80.0, 48.0]]),
    ]
    ignore = [torch.tensor([[60.0, 30.0, 96.0, 64.0]]), torch.zeros(0, 4), torch.zeros(0, 4)]
    matched = assign_batch(grid, images, ignore)
    assert {IGNORE, BACKGROUND, 0, 1, 2} == set(matched.flatten().tolist())  # everything occurs
    return grid, matched, torch.cat(images), torch.tensor([2, 0, 1])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.0), (0.5, 0.5)])
def test_against_a_slow_oracle(alpha: float, gamma: float) -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    losses = detection_losses(outputs, grid, matched, boxes, labels, LossConfig(alpha=alpha, gamma=gamma))
    classification, box, foreground = slow(outputs, grid, matched, boxes, labels, alpha, gamma)
    assert losses.foreground.item() == foreground > 3
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)
    assert losses.box.item() == pytest.approx(box, rel=1e-5)
    assert losses.total.item() == pytest.approx(classification + box, rel=1e-5)


def test_the_box_weight_scales_the_box_loss_only() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    once = detection_losses(outputs, grid, matched, boxes, labels, LossConfig())
    twice = detection_losses(outputs, grid, matched, boxes, labels, LossConfig(box_weight=2.0))
    assert twice.box.item() == pytest.approx(2 * once.box.item())
    assert twice.classification.item() == once.classification.item()


def test_gradients_flow_only_where_they_should() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    losses = detection_losses(outputs, grid, matched, boxes, labels, LossConfig())
    losses.total.backward()  # type: ignore[no-untyped-call]
    for level, part in enumerate(grid.split(matched, 1)):
        logits, deltas = outputs.logits[level].grad, outputs.deltas[level].grad
        assert logits is not None
        assert deltas is not None
        assert torch.equal((logits != 0).all(dim=-1), part != IGNORE)
        assert torch.equal((logits != 0).any(dim=-1), part != IGNORE)
        assert torch.equal((deltas != 0).any(dim=-1), part >= 0)


def test_normalised_by_the_foreground_of_the_whole_batch() -> None:
    """Not image by image: an image with one foreground anchor weighs as much per anchor as one with many."""
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    together = detection_losses(outputs, grid, matched, boxes, labels, LossConfig())
    sums = torch.zeros(2)
    count = 0
    for row in range(3):
        alone = Outputs([t[row : row + 1] for t in outputs.logits], [t[row : row + 1] for t in outputs.deltas])
        losses = detection_losses(alone, grid, matched[row : row + 1], boxes, labels, LossConfig())
        foreground = int(losses.foreground)
        count += foreground
        sums += torch.stack([losses.classification, losses.box]).detach() * max(1, foreground)
    assert together.foreground.item() == count
    torch.testing.assert_close(torch.stack([together.classification, together.box]).detach(), sums / count)


def test_a_batch_without_objects() -> None:
    grid = SPEC.grid(SIZE)
    outputs = predictions(grid, 2)
    matched = assign_batch(grid, [torch.zeros(0, 4)] * 2, [torch.zeros(0, 4)] * 2)
    nothing, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    losses = detection_losses(outputs, grid, matched, nothing, no_labels, LossConfig())
    classification, _, _ = slow(outputs, grid, matched, nothing, no_labels, 0.25, 2.0)
    assert losses.foreground.item() == 0
    assert losses.box.item() == 0
    assert losses.classification.item() == pytest.approx(classification, rel=1e-5)  # divided by 1, not by 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in outputs.logits)
    assert all(t.grad is None or t.grad.abs().sum() == 0 for t in outputs.deltas)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou"])
def test_objects_that_no_anchor_reaches(kind: str) -> None:
    grid = SPEC.grid(SIZE)
    outputs = predictions(grid, 1)
    boxes, labels = torch.tensor([[3.0, 3.0, 5.0, 5.0]]), torch.tensor([1])
    matched = assign_batch(grid, [boxes], [torch.zeros(0, 4)])
    losses = detection_losses(outputs, grid, matched, boxes, labels, LossConfig(box=kind))  # type: ignore[arg-type]
    assert losses.foreground.item() == 0
    assert losses.box.item() == 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in outputs.logits)


def test_float32_from_bfloat16_outputs() -> None:
    grid, matched, boxes, labels = scene()
    outputs = predictions(grid, 3)
    rounded = Outputs([t.detach().bfloat16() for t in outputs.logits], [t.detach().bfloat16() for t in outputs.deltas])
    exact = Outputs([t.float() for t in rounded.logits], [t.float() for t in rounded.deltas])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detection_losses(rounded, grid, matched, boxes, labels, LossConfig())
    assert losses.total.dtype == torch.float32
    expected = detection_losses(exact, grid, matched, boxes, labels, LossConfig())
    assert losses.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
