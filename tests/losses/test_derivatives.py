"""First and second derivatives of the classification losses: at extreme logits, by ``create_graph``, by torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinanet.losses import (
    focal_loss,
    focal_star_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)

CLASSES = 3
LABELS = torch.tensor([0, 2, -1, -2, 1])
QUALITY = torch.tensor([0.3, 0.9, 0.0, 0.0, 0.6], dtype=torch.float64)
Loss = Callable[[Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "focal": lambda x: focal_loss(x, LABELS),
    "cross entropy": lambda x: focal_loss(x, LABELS, None, 0.0),
    "focal, gamma 0.5": lambda x: focal_loss(x, LABELS, 0.4, 0.5),
    "focal, gamma 5": lambda x: focal_loss(x, LABELS, None, 5.0),
    "focal star": lambda x: focal_star_loss(x, LABELS, 0.25, 4.0, 0.5),
    "quality focal": lambda x: quality_focal_loss(x, LABELS, QUALITY),
    "varifocal": lambda x: varifocal_loss(x, LABELS, QUALITY),
    "sigmoid focal": lambda x: sigmoid_focal_loss(x, (LABELS[:, None] == torch.arange(CLASSES)).to(x), reduction="sum"),
}


def logits(seed: int = 0) -> Tensor:
    return 2 * torch.randn(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_by_finite_differences(name: str) -> None:
    loss, x = LOSSES[name], logits().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_the_gradient_has_the_whole_gradient(name: str) -> None:
    """As in a gradient penalty; the classification loss is not taken for linear."""
    loss = LOSSES[name]

    def slope(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]

    x = logits().requires_grad_()
    (first,) = torch.autograd.grad(loss(x) + (x**2).sum(), x, create_graph=True)
    torch.testing.assert_close(first.detach(), slope(x) + 2 * x.detach())
    (second,) = torch.autograd.grad(first.sum(), x)
    step = 1e-5  # all losses are sums over the logits, so the Hessian is diagonal
    expected = (slope(x + step) - slope(x - step)) / (2 * step) + 2
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_of_torch_func(name: str) -> None:
    loss, x = LOSSES[name], logits().requires_grad_()
    value = loss(x)
    (slope,) = torch.autograd.grad(value, x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x), slope)
    gradient, again = torch.func.grad_and_value(loss)(x)
    torch.testing.assert_close((gradient, again), (slope, value.detach()))
    many = torch.stack([logits(seed) for seed in range(3)])
    torch.testing.assert_close(torch.func.vmap(loss)(many), torch.stack([loss(each) for each in many]))
    of_each = torch.stack([torch.func.grad(loss)(each) for each in many])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(many), of_each)
    hessian = torch.func.hessian(loss)(x)
    expected = torch.autograd.functional.hessian(loss, x, vectorize=True)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(hessian, expected)
    assert hessian.abs().sum() > 0


def test_several_gradients_at_once() -> None:
    x = logits().requires_grad_()
    loss = focal_loss(x, LABELS)
    (slope,) = torch.autograd.grad(loss, x, retain_graph=True)
    factors = torch.tensor([1.0, 3.0], dtype=torch.float64)
    (found,) = torch.autograd.grad(loss, x, factors, is_grads_batched=True)
    torch.testing.assert_close(found, factors[:, None, None] * slope)


FINITE = {
    dtype: st.sampled_from([sign * size * torch.finfo(dtype).max for sign in (1, -1) for size in (1, 0.53, 0.3, 1e-4)])
    | st.floats(-torch.finfo(dtype).max, torch.finfo(dtype).max, allow_nan=False)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    dtype=st.sampled_from(list(FINITE)),
    label=st.sampled_from([0, -1, -2]),
    gamma=st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0]),
    quality=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_value_and_gradient_are_finite_for_every_finite_logit(
    data: st.DataObject, dtype: torch.dtype, label: int, gamma: float, quality: float
) -> None:
    value = data.draw(FINITE[dtype] | st.floats(-200, 200) | st.sampled_from([-1000.0, 1000.0]))
    labels, fits = torch.tensor([label]), torch.tensor([quality])
    target = torch.full((1, 1), float(label == 0))
    losses: list[Loss] = [
        lambda x: focal_loss(x, labels, 0.25, gamma),
        lambda x: focal_star_loss(x, labels, 0.25, gamma or 4.0, 1.0),
        lambda x: quality_focal_loss(x, labels, fits, gamma),
        lambda x: varifocal_loss(x, labels, fits, 0.75, gamma),
        lambda x: sigmoid_focal_loss(x, target, 0.25, gamma, "sum"),
    ]
    for loss in losses:
        x = torch.tensor([[value]], dtype=torch.float64).to(dtype).requires_grad_()
        found = loss(x)
        (slope,) = torch.autograd.grad(found, x, retain_graph=True)
        assert found.isfinite()
        assert found >= 0
        assert slope.isfinite().all()
        (readable,) = torch.autograd.grad(found, x, create_graph=True)
        torch.testing.assert_close(readable.detach(), slope, rtol=1e-2, atol=1e-6)
        assert torch.autograd.grad(readable.sum(), x)[0].isfinite().all()


ALONE: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "focal": lambda x, label, quality, gamma: focal_loss(x, label, 0.25, gamma),
    "focal star": lambda x, label, quality, gamma: focal_star_loss(x, label, 0.25, gamma, 0.0),
    "quality focal": lambda x, label, quality, gamma: quality_focal_loss(x, label, quality, gamma),
    "varifocal": lambda x, label, quality, gamma: varifocal_loss(x, label, quality, 0.75, gamma),
    "sigmoid focal": lambda x, label, quality, gamma: sigmoid_focal_loss(
        x, torch.where(label[:, None] == 0, quality[:, None], 0).to(x), 0.25, gamma, "sum"
    ),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("quality", [0.0, 0.3, 1.0])
def test_three_derivatives_are_finite_at_every_ordinary_logit(
    name: str, dtype: torch.dtype, gamma: float, quality: float
) -> None:
    """Also at those that are ignored: a NaN of a branch that is not taken would spread."""
    values = torch.cat([torch.arange(-1100, 1101, 25), torch.arange(-110, 111, 5)]).to(dtype)
    for label in (0, -1, -2):
        labels, fits = torch.full((len(values),), label), torch.full((len(values),), quality)
        x = values[:, None].clone().requires_grad_()
        slope = ALONE[name](x, labels, fits, gamma)
        for _ in range(3):
            (slope,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
            assert slope.isfinite().all()


@pytest.mark.parametrize("name", ["sigmoid focal", "quality focal"])
@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.0])
def test_second_derivatives_of_soft_targets_by_finite_differences(name: str, gamma: float) -> None:
    labels, fits = torch.tensor([0, 0, 0, -1, 0]), torch.tensor([0.0, 0.2, 0.9, 0.5, 1.0], dtype=torch.float64)
    x = torch.tensor([[-3.0], [1.5], [-2.0], [4.0], [0.3]], dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return ALONE[name](x, labels, fits, gamma)

    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradgradcheck(loss, (x,))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_focal_star_has_its_gradient_where_the_straight_line_begins(beta: float) -> None:
    """At z = γ x − β = 1000 exactly, for the background."""
    x = torch.tensor([[(1000.0 + beta) / 4]], dtype=torch.float64, requires_grad=True)
    for create_graph in (False, True):
        loss = focal_star_loss(x, torch.tensor([-1]), None, 4.0, beta)
        (slope,) = torch.autograd.grad(loss, x, create_graph=create_graph)
        assert slope.item() == 1


@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_of_torch_func(name: str) -> None:
    loss, x = LOSSES[name], logits()
    direction = logits(1)
    value, tangent = torch.func.jvp(loss, (x,), (direction,))[:2]
    slope = torch.func.grad(loss)(x)
    torch.testing.assert_close(value, loss(x))
    torch.testing.assert_close(tangent, (slope * direction).sum())
    torch.testing.assert_close(torch.func.jacrev(loss)(x), slope)
    torch.testing.assert_close(torch.func.jacfwd(loss)(x), slope)


@pytest.mark.parametrize("size", [1e4, 1.8e38, 3.4e38])
def test_extreme_logits_have_the_loss_of_a_straight_line(size: float) -> None:
    """Of a wrong and certain logit: cross entropy, since (1 − p_t)^γ = 1; FL* has the same slope, less β/γ."""
    for label, value in ((0, -size), (-1, size)):
        x = torch.tensor([[value]], requires_grad=True)
        labels, weight = torch.tensor([label]), 0.25 if label == 0 else 0.75
        for loss in (focal_loss(x, labels), focal_star_loss(x, labels, beta=0.0)):
            (slope,) = torch.autograd.grad(loss, x)
            assert loss.item() == pytest.approx(weight * size, rel=1e-6)
            assert slope.item() == pytest.approx(math.copysign(weight, value), rel=1e-6)
