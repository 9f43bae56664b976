from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from retinanet.config import LossConfig
from retinanet.losses import box_loss

ANCHOR = torch.tensor([[0.0, 0.0, 10.0, 20.0]])  # centre (5, 10)
BOX = torch.tensor([[5.0, 5.0, 25.0, 15.0]])  # centre (15, 10), 20 × 10
TARGET = [1.0, 0.0, math.log(2), -math.log(2)]
KINDS = ("smooth_l1", "l1", "giou", "diou", "ciou")


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


def distance_and_shape(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """DIoU and CIoU losses of each pair of boxes (https://arxiv.org/abs/1911.08287, equations 6–11).

    L_DIoU = 1 − IoU + ρ²/c² with ρ the distance of the centres and c the diagonal of the smallest enclosing box;
    L_CIoU = L_DIoU + αv with v = 4/π² (arctan(w/h of the truth) − arctan(w/h))² and α = v / (1 − IoU + v), a
    trade-off parameter: no gradient flows through it.
    """
    diou, ciou = [], []
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(predicted.unbind(), truth.unbind(), strict=True):
        width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
        height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
        shared = width * height
        iou = shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared)
        rho2 = ((x1 + x2 - u1 - u2) / 2) ** 2 + ((y1 + y2 - v1 - v2) / 2) ** 2
        c2 = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) ** 2 + (torch.maximum(y2, v2) - torch.minimum(y1, v1)) ** 2
        v = 4 / math.pi**2 * (torch.atan((u2 - u1) / (v2 - v1)) - torch.atan((x2 - x1) / (y2 - y1))) ** 2
        alpha = (v / (1 - iou + v)).detach()
        diou.append(1 - iou + rho2 / c2)
        ciou.append(1 - iou + rho2 / c2 + alpha * v)
    return torch.stack(diou), torch.stack(ciou)


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


def test_diou_and_ciou_by_hand() -> None:
    # the anchor against the box: IoU 50 / 350, centres 10 apart, enclosing box 25 × 20
    diou = 1 - 50 / 350 + 10**2 / (25**2 + 20**2)
    v = 4 / math.pi**2 * (math.atan(20 / 10) - math.atan(10 / 20)) ** 2
    ciou = diou + v / (1 - 50 / 350 + v) * v
    assert v > 0.1
    assert box_loss(torch.zeros(1, 4), ANCHOR, BOX, LossConfig(box="diou")).item() == pytest.approx(diou, rel=1e-5)
    assert box_loss(torch.zeros(1, 4), ANCHOR, BOX, LossConfig(box="ciou")).item() == pytest.approx(ciou, rel=1e-5)


@pytest.mark.parametrize("kind", ["diou", "ciou"])
def test_diou_and_ciou_against_float64(kind: str) -> None:
    """Value, and gradient into the deltas; boxes that overlap, contain one another, and lie apart."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (40, 2))
    anchors = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(10, 60, (40, 2))], axis=1)).float()
    boxes = anchors + torch.from_numpy(rng.uniform(-4, 4, (40, 4))).float()
    boxes[:5] += 300  # apart
    boxes[5:10] = anchors[5:10] + torch.tensor([-30.0, -20.0, 30.0, 20.0])  # inside
    deltas = torch.from_numpy(rng.normal(0, 0.3, (40, 4))).float().requires_grad_()
    exact = deltas.detach().double().requires_grad_()
    size = (anchors[:, 2:] - anchors[:, :2]).double()
    centre = anchors[:, :2].double() + size / 2 + exact[:, :2] * size
    half = size * exact[:, 2:].exp() / 2
    diou, ciou = distance_and_shape(torch.cat([centre - half, centre + half], dim=1), boxes.double())
    expected = (diou if kind == "diou" else ciou).sum()
    assert (ciou - diou).max() > 0.01
    loss = box_loss(deltas, anchors, boxes, LossConfig(box=kind))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = torch.autograd.grad(loss, deltas)
    (wanted,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


def test_diou_is_giou_and_ciou_is_diou_where_they_should_be() -> None:
    """Concentric boxes have no distance, boxes of one shape no penalty on the shape."""
    inside = torch.tensor([[0.0, 0.0, -math.log(2), -math.log(2)]])  # half the sides: IoU ¼
    losses = {kind: box_loss(inside, ANCHOR, ANCHOR, LossConfig(box=kind)).item() for kind in ("giou", "diou", "ciou")}
    assert losses == pytest.approx(dict.fromkeys(losses, 0.75), rel=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
@pytest.mark.parametrize("shift", [1e2, 1e3, 1e6])
def test_finite_and_attractive_for_boxes_far_away(kind: str, shift: float) -> None:
    """Where nothing overlaps, the loss still says in which direction to move, at distances there are in images."""
    deltas = torch.tensor([[0.1, 0.0, 0.2, -0.1]], requires_grad=True)
    box = BOX + shift
    loss = box_loss(deltas, ANCHOR, box, LossConfig(box=kind))  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, deltas)
    assert 1 < loss.item() < 2.5
    assert torch.isfinite(gradient).all()
    assert (gradient[0, :2] < 0).all() or shift == 1e6  # the object lies right and below


@pytest.mark.parametrize("scales", [(-1e4, -1e4), (0.0, -1e4), (0.0, -17.0)])
def test_ciou_of_a_prediction_without_area_is_finite(scales: tuple[float, float]) -> None:
    deltas = torch.tensor([[0.0, 0.0, *scales]], requires_grad=True)
    loss = box_loss(deltas, ANCHOR, BOX, LossConfig(box="ciou"))
    (gradient,) = torch.autograd.grad(loss, deltas)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_at_the_target_and_nothing_for_nothing(kind: str) -> None:
    config = LossConfig(box=kind)  # type: ignore[arg-type]
    assert box_loss(torch.tensor([TARGET]), ANCHOR, BOX, config).item() == pytest.approx(0, abs=1e-5)
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = box_loss(empty, torch.zeros(0, 4), torch.zeros(0, 4), config)
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
def test_float32_from_bfloat16(kind: str) -> None:
    deltas = torch.tensor([[0.3, -0.2, 0.1, 0.4]]).bfloat16()
    config = LossConfig(box=kind)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = box_loss(deltas, ANCHOR, BOX, config)
    assert loss.dtype == torch.float32
    assert loss.item() == box_loss(deltas.float(), ANCHOR, BOX, config).item()


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "giou", "diou"])  # part of CIoU is constant in the gradient
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


WILD = [0.0, 1.0, -1.0, 100.0, -100.0, 1e4, -1e4, 65504.0, -65504.0, 1e19, -1e19, 3.3e38, -3.3e38]


@pytest.mark.parametrize("kind", KINDS)
def test_finite_for_wild_predictions(kind: str) -> None:
    """Each delta at every size, and all at once; also for anchors far from the origin."""
    rows = [[a if at == i else b for at in range(4)] for i in range(4) for a in WILD for b in (0.0, 0.3)]
    rows += [[x, y, w, h] for x in (-1e4, 1e4) for y in (-1e4, 1e4) for w in (-1e4, 1e4) for h in (-1e4, 1e4)]
    rows += [[value] * 4 for value in WILD]
    for place in (0.0, 8000.0):
        for row in rows:
            deltas = torch.tensor([row], requires_grad=True)
            loss = box_loss(deltas, ANCHOR + place, BOX + place, LossConfig(box=kind))  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(loss, deltas)
            assert torch.isfinite(gradient).all(), row
            assert torch.isfinite(loss) or (kind in ("smooth_l1", "l1") and row[0] == row[1] != 0), (
                row
            )  # a sum overflows
