from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from retinanet.anchors import BACKGROUND, IGNORE, AnchorGrid, AnchorSpec, Matches, assign_batch, make_grid
from retinanet.config import LossConfig
from retinanet.losses import detection_losses, focal_loss, quality_focal_loss, varifocal_loss
from retinanet.model import Outputs

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

CLASSES = 4


def targets(labels: Labels, quality: Array, classes: int) -> tuple[Array, Array]:
    """What every logit should give, and whether it counts (1 or 0)."""
    q = np.where(labels[..., None] == np.arange(classes), quality[..., None], 0.0)
    return q, np.broadcast_to((labels != IGNORE)[..., None], q.shape).astype(np.float64)


def quality_focal(x: Array, labels: Labels, quality: Array, gamma: float) -> tuple[Array, Array]:
    """−|q − σ|^γ ((1 − q) log(1 − σ) + q log σ) (equation 5, σ the score) and its derivative by the logit."""
    q, counted = targets(labels, quality, x.shape[-1])
    p = 1 / (1 + np.exp(-x))
    distance = np.abs(q - p)
    entropy = -((1 - q) * np.log1p(-p) + q * np.log(p))
    gradient = distance**gamma * (p - q)
    gradient += gamma * distance ** (gamma - 1) * np.sign(p - q) * p * (1 - p) * entropy
    return counted * distance**gamma * entropy, counted * gradient


def varifocal(x: Array, labels: Labels, quality: Array, alpha: float, gamma: float) -> tuple[Array, Array]:
    """−q (q log p + (1 − q) log(1 − p)) where q > 0, −α p^γ log(1 − p) elsewhere (equation 2), and the derivative."""
    q, counted = targets(labels, quality, x.shape[-1])
    p = 1 / (1 + np.exp(-x))
    positive = -q * (q * np.log(p) + (1 - q) * np.log1p(-p))
    negative = -alpha * p**gamma * np.log1p(-p)
    slope = alpha * p**gamma * (p - gamma * (1 - p) * np.log1p(-p))
    return counted * np.where(q > 0, positive, negative), counted * np.where(q > 0, q * (p - q), slope)


def case(seed: int, shape: tuple[int, ...] = (2, 60), spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels (a third foreground, a fifth ignored) and qualities; of anchors without object these are junk."""
    rng = np.random.default_rng(seed)
    kind = rng.uniform(size=shape)
    labels = np.where(kind < 1 / 3, rng.integers(0, CLASSES, shape), BACKGROUND)
    labels = np.where(kind > 0.8, IGNORE, labels)
    quality = rng.uniform(0.05, 0.95, shape)
    return tuple(torch.from_numpy(v) for v in (rng.normal(0, spread, (*shape, CLASSES)), labels, quality))  # type: ignore[return-value]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 1e-2)]
)
def test_quality_focal_loss_is_equation_5(gamma: float, dtype: torch.dtype, tolerance: float) -> None:
    logits, labels, quality = case(0)
    x = logits.to(dtype).requires_grad_()
    loss = quality_focal_loss(x, labels, quality, gamma)
    values, gradient = quality_focal(x.detach().double().numpy(), labels.numpy(), quality.numpy(), gamma)
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(values.sum(), rel=min(tolerance, 1e-5))
    (found,) = torch.autograd.grad(loss, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), gradient, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("alpha", [0.75, 0.25, None])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 1e-2)]
)
def test_varifocal_loss_is_equation_2(alpha: float | None, gamma: float, dtype: torch.dtype, tolerance: float) -> None:
    logits, labels, quality = case(1)
    quality = torch.where(torch.arange(60) % 4 == 0, 0.0, quality)  # boxes that miss: as a negative, also with q = 0
    assert ((quality == 0) & (labels >= 0)).any()
    x = logits.to(dtype).requires_grad_()
    loss = varifocal_loss(x, labels, quality, alpha, gamma)
    weight = 1.0 if alpha is None else alpha
    values, gradient = varifocal(x.detach().double().numpy(), labels.numpy(), quality.numpy(), weight, gamma)
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(values.sum(), rel=min(tolerance, 1e-5))
    (found,) = torch.autograd.grad(loss, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), gradient, rtol=tolerance, atol=tolerance / 10)


def test_the_papers_settings_are_the_defaults() -> None:
    """β = 2, and α = 0.75 with γ = 2."""
    logits, labels, quality = case(2)
    assert quality_focal_loss(logits, labels, quality) == quality_focal_loss(logits, labels, quality, 2.0)
    assert varifocal_loss(logits, labels, quality) == varifocal_loss(logits, labels, quality, 0.75, 2.0)


LOSSES: dict[str, Loss] = {
    "quality_focal": lambda x, y, q: quality_focal_loss(x, y, q, 2.0),
    "quality_focal_1.5": lambda x, y, q: quality_focal_loss(x, y, q, 1.5),
    "varifocal": lambda x, y, q: varifocal_loss(x, y, q, 0.75, 2.0),
    "varifocal_1.5": lambda x, y, q: varifocal_loss(x, y, q, None, 1.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    logits, labels, quality = case(3, (2, 12))
    x = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: LOSSES[name](v, labels, quality), (x,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_for_large_logits(dtype: torch.dtype, name: str) -> None:
    values, labels, qualities = (1e4, -1e4, 104.0, -104.0, 0.0), (0, 1, BACKGROUND, IGNORE), (0.0, 0.5, 1.0)
    for value, label, quality in itertools.product(values, labels, qualities):
        x = torch.full((1, 2), value, dtype=dtype, requires_grad=True)
        loss = LOSSES[name](x, torch.tensor([label]), torch.tensor([quality]))
        (gradient,) = torch.autograd.grad(loss, x)
        assert torch.isfinite(loss)
        assert loss >= 0
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("label", [0, BACKGROUND, IGNORE])
@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_finite_for_large_logits_with_gamma_below_one(name: str, label: int) -> None:
    loss: Loss = {
        "quality_focal": lambda x, y, q: quality_focal_loss(x, y, q, 0.5),
        "varifocal": lambda x, y, q: varifocal_loss(x, y, q, 0.75, 0.5),
    }[name]
    x = torch.full((1, 2), -1e4, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(x, torch.tensor([label]), torch.tensor([0.5])), x)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
def test_quality_focal_loss_of_perfect_boxes_is_the_focal_loss(gamma: float) -> None:
    logits, labels, _ = case(4)
    ours = logits.clone().requires_grad_()
    focal = logits.clone().requires_grad_()
    loss = quality_focal_loss(ours, labels, torch.ones(labels.shape), gamma)
    expected = focal_loss(focal, labels, alpha=None, gamma=gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, ours), torch.autograd.grad(expected, focal), rtol=1e-8, atol=1e-12
    )


def test_varifocal_loss_of_perfect_boxes_is_focal_for_the_negatives_alone() -> None:
    logits, labels, _ = case(5)
    ones = torch.ones(labels.shape)
    positives = torch.where(labels >= 0, labels, IGNORE)
    negatives = torch.where(labels >= 0, IGNORE, labels)
    loss = varifocal_loss(logits, negatives, ones, alpha=0.75, gamma=2.0)
    torch.testing.assert_close(loss, focal_loss(logits, negatives, alpha=0.25, gamma=2.0), rtol=1e-10, atol=0)
    whole = varifocal_loss(logits, positives, ones, alpha=0.0)
    own = logits[labels >= 0].gather(-1, labels[labels >= 0][:, None])
    torch.testing.assert_close(whole, -torch.nn.functional.logsigmoid(own).sum(), rtol=1e-10, atol=0)


@given(q=st.floats(0.05, 0.95), away=st.floats(0.01, 8), side=st.sampled_from([-1, 1]))
def test_the_best_score_is_the_quality(q: float, away: float, side: int) -> None:
    best = torch.logit(torch.tensor([[q]], dtype=torch.float64))
    label, quality = torch.tensor([0]), torch.tensor([q], dtype=torch.float64)
    for loss in (quality_focal_loss, varifocal_loss):
        least = loss(best, label, quality)
        assert loss(best + side * away, label, quality) > least
    assert quality_focal_loss(best, label, quality).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_anchors_and_junk_qualities_do_not_count(name: str) -> None:
    logits, labels, quality = case(6)
    x = logits.requires_grad_()
    loss = LOSSES[name](x, labels, quality)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal((gradient != 0).all(dim=-1), labels != IGNORE)
    assert torch.equal((gradient != 0).any(dim=-1), labels != IGNORE)
    clean = torch.where(labels >= 0, quality, 0.0)
    assert LOSSES[name](x, labels, clean).item() == loss.item()
    kept = labels != IGNORE
    assert LOSSES[name](x[kept], labels[kept], quality[kept]).item() == pytest.approx(loss.item(), rel=1e-12)
    nothing = LOSSES[name](x, torch.full_like(labels, IGNORE), quality)
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, x)[0].abs().sum() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast(name: str) -> None:
    logits, labels, quality = case(7)
    x = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](x, labels, quality.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == LOSSES[name](x.float(), labels, quality.bfloat16().float()).item()


SPEC = AnchorSpec(sizes=(32.0, 64.0), scales=(1.0, 1.3), ratios=(1.0,), strides=(16, 32))


def scene() -> tuple[Outputs, AnchorGrid, Tensor, Tensor, Tensor]:
    """Three images on two levels; the predicted boxes are near their objects, beside them, and some far away."""
    grid = make_grid(SPEC, (64, 96))
    images = [
        torch.tensor([[1.0, 2.0, 34.0, 30.0], [30.0, 0.0, 92.0, 60.0]]),
        torch.zeros(0, 4),
        torch.tensor([[50.0, 20.0, 80.0, 48.0]]),
    ]
    ignore = [torch.tensor([[60.0, 30.0, 96.0, 64.0]]), torch.zeros(0, 4), torch.zeros(0, 4)]
    matched = assign_batch(grid, images, ignore)
    assert {IGNORE, BACKGROUND, 0, 1, 2} == set(matched.flatten().tolist())  # everything occurs
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, n, CLASSES, generator=generator, dtype=torch.float64) * 3 for n in grid.level_sizes]
    deltas = [torch.randn(3, n, 4, generator=generator) * 0.3 for n in grid.level_sizes]
    index = torch.nonzero(matched[2] >= 0)[0].item()
    assert index < deltas[0].shape[1]
    deltas[0][2, int(index)] = torch.tensor([3.0, 3.0, 0.0, 0.0])  # a box that misses its object
    outputs = Outputs([t.requires_grad_() for t in logits], [t.requires_grad_() for t in deltas])
    return outputs, grid, matched, torch.cat(images), torch.tensor([2, 0, 1])


def qualities(outputs: Outputs, grid: AnchorGrid, matched: Tensor, boxes: Tensor) -> Tensor:
    """IoU of the predicted box with its object, 0 without one: torchvision's decoding and IoU, image by image."""
    deltas = torch.cat([t.detach() for t in outputs.deltas], dim=1).double()
    result = torch.zeros(matched.shape, dtype=torch.float64)
    for image in range(len(matched)):
        anchor = torch.nonzero(matched[image] >= 0).squeeze(1)
        predicted = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas[image, anchor], grid.boxes[anchor].double())
        result[image, anchor] = box_iou(predicted, boxes[matched[image, anchor]].double()).diag()
    return result


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_the_quality_is_the_iou_of_the_predicted_box(name: str, box: str) -> None:
    outputs, grid, matched, boxes, classes = scene()
    config = LossConfig(classification=name, alpha=0.4, gamma=1.5, box=box)  # type: ignore[arg-type]
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, classes, config)
    quality = qualities(outputs, grid, matched, boxes)
    of_objects = quality[matched >= 0]
    assert of_objects.min() == 0
    assert of_objects.max() > 0.6
    x = torch.cat([t.detach() for t in outputs.logits], dim=1).numpy()
    labels = torch.where(matched >= 0, classes[matched.clamp(min=0)], matched).numpy()
    if name == "quality_focal":
        values, gradient = quality_focal(x, labels, quality.numpy(), 1.5)
    else:
        values, gradient = varifocal(x, labels, quality.numpy(), 0.4, 1.5)
    foreground = len(of_objects)
    assert losses.foreground.item() == foreground
    assert losses.classification.item() == pytest.approx(values.sum() / foreground, rel=1e-5)
    found = torch.cat(torch.autograd.grad(losses.classification, outputs.logits), dim=1)
    np.testing.assert_allclose(found.numpy(), gradient / foreground, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_the_box_subnet_does_not_learn_from_the_quality(name: str) -> None:
    outputs, grid, matched, boxes, classes = scene()
    config = LossConfig(classification=name, box="giou")  # type: ignore[arg-type]
    losses = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, classes, config)
    focal = detection_losses(outputs, grid, Matches.from_dense(matched), boxes, classes, LossConfig(box="giou"))
    assert losses.box.item() == focal.box.item() > 0
    alone = torch.autograd.grad(losses.classification, outputs.deltas, allow_unused=True, retain_graph=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in alone)
    total, expected = (torch.autograd.grad(loss, outputs.deltas) for loss in (losses.total, focal.box))
    assert all(torch.equal(a, b) for a, b in zip(total, expected, strict=True))


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_a_better_box_asks_for_a_higher_score(name: str) -> None:
    """The gradient pulls the score of an anchor that fits exactly up, of one that misses down, at p = ½."""
    grid = make_grid(SPEC, (64, 96))
    boxes, classes = grid.boxes[:1].clone(), torch.tensor([1])
    matched = torch.full((1, len(grid.boxes)), BACKGROUND)
    matched[0, 0] = 0
    slopes = []
    for shift in (0.0, 0.2, 0.9):
        logits = [torch.zeros(1, n, CLASSES, requires_grad=True) for n in grid.level_sizes]
        deltas = [torch.zeros(1, n, 4) for n in grid.level_sizes]
        deltas[0][0, 0, 0] = shift
        config = LossConfig(classification=name)  # type: ignore[arg-type]
        losses = detection_losses(Outputs(logits, deltas), grid, Matches.from_dense(matched), boxes, classes, config)
        slopes.append(torch.autograd.grad(losses.classification, logits)[0][0, 0, 1].item())
    assert slopes[0] < slopes[1] < 0 < slopes[2]


@pytest.mark.parametrize("name", ["quality_focal", "varifocal"])
def test_an_image_without_objects(name: str) -> None:
    outputs, grid, matched, _, _ = scene()
    empty = torch.full_like(matched, BACKGROUND)
    config = LossConfig(classification=name, alpha=0.75)  # type: ignore[arg-type]
    nothing, no_classes = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    losses = detection_losses(outputs, grid, Matches.from_dense(empty), nothing, no_classes, config)
    x = torch.cat([t.detach() for t in outputs.logits], dim=1).numpy()
    zeros = np.zeros(empty.shape)
    if name == "quality_focal":
        values, _ = quality_focal(x, empty.numpy(), zeros, 2.0)
    else:
        values, _ = varifocal(x, empty.numpy(), zeros, 0.75, 2.0)
    assert losses.classification.item() == pytest.approx(values.sum(), rel=1e-6)
    assert losses.box.item() == 0
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in outputs.logits)
