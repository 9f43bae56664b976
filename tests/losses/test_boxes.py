from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from retinanet.config import LossConfig
from retinanet.losses import box_loss

ANCHOR = torch.tensor([[0.0, 0.0, 10.0, 20.0]])  # centre (5, 10)
BOX = torch.tensor([[5.0, 5.0, 25.0, 15.0]])  # centre (15, 10), 20 × 10
TARGET = [1.0, 0.0, math.log(2), -math.log(2)]


def smooth_l1(difference: float, beta: float) -> float:
    """Fast R-CNN, equation 3, with the change of slope at β."""
    size = abs(difference)
    return 0.5 * size**2 / beta if size < beta else size - 0.5 * beta


def giou(a: list[float], b: list[float]) -> float:
    """Generalized IoU, algorithm 1 of https://arxiv.org/abs/1902.09630."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (hull - union) / hull


@pytest.mark.parametrize("beta", [1.0, 0.5, 1 / 9])
def test_smooth_l1_by_hand(beta: float) -> None:
    offsets = [0.02, -0.7, 3.0, -0.1]  # both sides of every β
    deltas = torch.tensor([[t + o for t, o in zip(TARGET, offsets, strict=True)]])
    expected = sum(smooth_l1(o, beta) for o in offsets)
    assert box_loss(deltas, ANCHOR, BOX, LossConfig(beta=beta)).item() == pytest.approx(expected, rel=1e-5)


def test_l1_by_hand() -> None:
    deltas = torch.tensor([[0.5, 0.25, math.log(2) - 1, -math.log(2)]])
    assert box_loss(deltas, ANCHOR, BOX, LossConfig(box="l1")).item() == pytest.approx(0.5 + 0.25 + 1, rel=1e-5)


def test_giou_by_hand() -> None:
    # zero deltas: the anchor itself; 5 × 10 shared, union 200 + 200 − 50, hull 25 × 20
    expected = 1 - (50 / 350 - (500 - 350) / 500)
    assert box_loss(torch.zeros(1, 4), ANCHOR, BOX, LossConfig(box="giou")).item() == pytest.approx(expected, rel=1e-5)


def test_giou_against_float64() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (40, 2))
    anchors = np.concatenate([corner, corner + rng.uniform(10, 60, (40, 2))], axis=1)
    boxes = anchors + rng.uniform(-4, 4, anchors.shape)
    boxes[:5] += 300  # apart
    deltas = rng.normal(0, 0.4, (40, 4))
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    half = size * np.exp(deltas[:, 2:]) / 2
    decoded = np.concatenate([centre - half, centre + half], axis=1)
    expected = sum(1 - giou(a, b) for a, b in zip(decoded.tolist(), boxes.tolist(), strict=True))
    arguments = [torch.from_numpy(v).float() for v in (deltas, anchors, boxes)]
    loss = box_loss(arguments[0], arguments[1], arguments[2], LossConfig(box="giou"))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou"])
def test_zero_at_the_target_and_nothing_for_nothing(kind: str) -> None:
    config = LossConfig(box=kind)  # type: ignore[arg-type]
    assert box_loss(torch.tensor([TARGET]), ANCHOR, BOX, config).item() == pytest.approx(0, abs=1e-5)
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = box_loss(empty, torch.zeros(0, 4), torch.zeros(0, 4), config)
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou"])
def test_float32_from_bfloat16(kind: str) -> None:
    deltas = torch.tensor([[0.3, -0.2, 0.1, 0.4]]).bfloat16()
    config = LossConfig(box=kind)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = box_loss(deltas, ANCHOR, BOX, config)
    assert loss.dtype == torch.float32
    assert loss.item() == box_loss(deltas.float(), ANCHOR, BOX, config).item()


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou"])
def test_gradient_by_finite_differences(kind: str) -> None:
    config = LossConfig(box=kind, beta=0.5)  # type: ignore[arg-type]
    deltas = torch.tensor([[0.31, -0.22, 0.13, 0.44]], requires_grad=True)
    box_loss(deltas, ANCHOR, BOX, config).backward()  # type: ignore[no-untyped-call]
    assert deltas.grad is not None
    for i in range(4):
        step = torch.zeros(1, 4)
        step[0, i] = 1e-2
        with torch.no_grad():
            values = [box_loss(deltas + sign * step, ANCHOR, BOX, config).item() for sign in (1, -1)]
        assert deltas.grad[0, i].item() == pytest.approx((values[0] - values[1]) / 2e-2, abs=2e-3)


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou"])
def test_finite_for_wild_predictions(kind: str) -> None:
    deltas = torch.tensor([[1e4, -1e4, 1e4, 1e4], [0.0, 0.0, -1e4, -1e4]], requires_grad=True)
    loss = box_loss(deltas, ANCHOR.expand(2, 4), BOX.expand(2, 4), LossConfig(box=kind))  # type: ignore[arg-type]
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert deltas.grad is not None
    assert torch.isfinite(deltas.grad).all()
