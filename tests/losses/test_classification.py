from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from retinanet.anchors import BACKGROUND, IGNORE
from retinanet.losses import focal_loss, focal_star_loss, sigmoid_focal_loss
from retinanet.model import RetinaNet

Array = npt.NDArray[np.float64]

GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
ALPHAS = (None, 0.0, 0.25, 0.5, 1.0)
STARRED = ((2.0, 1.0), (4.0, 0.0), (1.0, 0.5))  # γ, β of FL*


def oracle(x: Array, labels: npt.NDArray[np.int64], alpha: float | None, gamma: float) -> tuple[Array, Array]:
    """Loss and derivative (appendix B) of every logit in float64; ``x`` (…, K), ``labels`` (…)."""
    y = np.where(labels[..., None] == np.arange(x.shape[-1]), 1.0, -1.0)
    log_p = -np.logaddexp(0, -y * x)
    q = np.exp(-np.logaddexp(0, y * x))  # 1 − p_t
    weight = np.ones_like(y) if alpha is None else np.where(y > 0, alpha, 1 - alpha)
    weight = weight * (labels != IGNORE)[..., None]
    loss = -weight * q**gamma * log_p
    gradient = weight * y * q**gamma * (gamma * (1 - q) * log_p - q)
    return loss, gradient


def case(name: str, shape: tuple[int, ...], spread: float) -> tuple[Tensor, Tensor]:
    """Logits and labels, with about a tenth foreground and a tenth ignored; ``spread`` is the largest logit."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    logits = rng.uniform(-1, 1, shape) ** 3 * spread
    kind = rng.uniform(size=shape[:-1])
    labels = np.where(kind < 0.1, rng.integers(0, shape[-1], shape[:-1]), BACKGROUND)
    labels = np.where(kind > 0.9, IGNORE, labels)
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 1e-5, 2e-5), (torch.bfloat16, 1e-5, 1e-2)],
)
def test_value_and_gradient(
    alpha: float | None, gamma: float, dtype: torch.dtype, value_tolerance: float, gradient_tolerance: float
) -> None:
    x64, labels = case("main", (2, 150, 5), 100.0)
    x = x64.to(dtype).requires_grad_()
    loss = focal_loss(x, labels, alpha, gamma)
    loss.backward()  # type: ignore[no-untyped-call]
    values, gradient = oracle(x.detach().double().numpy(), labels.numpy(), alpha, gamma)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(values.sum(), rel=value_tolerance)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    np.testing.assert_allclose(x.grad.double().numpy(), gradient, rtol=gradient_tolerance, atol=gradient_tolerance)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_against_torchvision(alpha: float | None, gamma: float) -> None:
    logits, labels = case("torchvision", (3, 40, 4), 8.0)
    one_hot = (labels[..., None] == torch.arange(4)).double()
    theirs_x = logits.clone().requires_grad_()
    theirs = torchvision_focal_loss(theirs_x, one_hot, -1 if alpha is None else alpha, gamma)
    counted = theirs[labels != IGNORE].sum()
    counted.backward()
    x = logits.clone().requires_grad_()
    loss = focal_loss(x, labels, alpha, gamma)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, counted.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(x.grad, theirs_x.grad, rtol=1e-8, atol=1e-12)
    for reduction in ("none", "sum", "mean"):
        torch.testing.assert_close(
            sigmoid_focal_loss(logits, one_hot, alpha, gamma, reduction),
            torchvision_focal_loss(logits, one_hot, -1 if alpha is None else alpha, gamma, reduction),
            rtol=1e-10,
            atol=1e-15,
        )


def test_torchvisions_signature_and_defaults() -> None:
    logits, labels = case("defaults", (30, 3), 5.0)
    one_hot = (labels[..., None] == torch.arange(3)).double()
    torch.testing.assert_close(sigmoid_focal_loss(logits, one_hot), torchvision_focal_loss(logits, one_hot))
    soft = torch.rand(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sigmoid_focal_loss(logits, soft, -1, 1.5), torchvision_focal_loss(logits, soft, -1, 1.5))
    assert sigmoid_focal_loss(logits.bfloat16(), one_hot).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="reduction"):
        sigmoid_focal_loss(logits, one_hot, reduction="average")  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradcheck(gamma: float) -> None:
    logits, labels = case("gradcheck", (2, 6, 3), 4.0)
    x = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: focal_loss(v, labels, 0.25, gamma), (x,))
    one_hot = (labels[..., None] == torch.arange(3)).double()
    assert torch.autograd.gradcheck(lambda v: sigmoid_focal_loss(v, one_hot, 0.25, gamma), (x,))


def test_cross_entropy_is_the_special_case() -> None:
    logits, labels = case("ce", (200, 3), 50.0)
    labels = labels.clamp(min=BACKGROUND)
    one_hot = (labels[..., None] == torch.arange(3)).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum")
    torch.testing.assert_close(focal_loss(logits, labels, alpha=None, gamma=0.0), expected)


@pytest.mark.parametrize(("p_t", "gamma", "times"), [(0.9, 2, 100), (0.968377, 2, 1000), (0.5, 2, 4), (0.9, 5, 1e5)])
def test_easy_examples_count_less(p_t: float, gamma: float, times: float) -> None:
    """Section 3.2: with γ = 2, p_t = 0.9 has 100× lower loss than with CE, p_t ≈ 0.968 1000×, p_t = 0.5 only 4×."""
    x = torch.tensor([[math.log(p_t / (1 - p_t))]], dtype=torch.float64)
    for label, logit in ((0, x), (BACKGROUND, -x)):
        target = torch.tensor([label])
        cross_entropy = focal_loss(logit, target, alpha=None, gamma=0)
        assert cross_entropy.item() == pytest.approx(-math.log(p_t))
        ratio = cross_entropy / focal_loss(logit, target, alpha=None, gamma=gamma)
        assert ratio.item() == pytest.approx(times, rel=1e-4)


def test_alpha_weighs_foreground_and_background() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64)  # p_t = ½ either way
    foreground = focal_loss(x, torch.tensor([0]), alpha=0.25, gamma=2)
    background = focal_loss(x, torch.tensor([BACKGROUND]), alpha=0.25, gamma=2)
    assert foreground.item() == pytest.approx(0.25 * 0.25 * math.log(2))
    assert background.item() == pytest.approx(0.75 * 0.25 * math.log(2))


def test_another_class_is_a_negative() -> None:
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    values, _ = oracle(x.numpy(), np.array([1]), 0.25, 2.0)
    assert focal_loss(x, torch.tensor([1])).item() == pytest.approx(values.sum())
    assert values[0, 0] > 10 * values[0, 1]  # wrongly sure of class 0


@pytest.mark.parametrize("shape", [(7, 1), (2, 5, 1), (2, 0, 3), (1, 1, 80), (4,)])
def test_shapes(shape: tuple[int, ...]) -> None:
    logits, labels = case("shapes", shape, 6.0)
    values, _ = oracle(logits.numpy(), labels.numpy(), 0.25, 2.0)
    assert focal_loss(logits, labels).item() == pytest.approx(values.sum())


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        focal_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))


def test_background_only_and_ignored_only() -> None:
    logits, _ = case("edges", (50, 3), 10.0)
    x = logits.requires_grad_()
    loss = focal_loss(x, torch.full((50,), BACKGROUND))
    values, gradient = oracle(x.detach().numpy(), np.full(50, BACKGROUND), 0.25, 2.0)
    assert loss.item() == pytest.approx(values.sum())
    np.testing.assert_allclose(torch.autograd.grad(loss, x)[0].numpy(), gradient, atol=1e-12)
    ignored = focal_loss(x, torch.full((50,), IGNORE))
    assert ignored.item() == 0
    assert torch.autograd.grad(ignored, x)[0].abs().sum() == 0


@given(
    value=st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**100), 2.0**100, width=32),
    label=st.sampled_from([0, BACKGROUND, IGNORE]),
    gamma=st.floats(0, 1) | st.floats(0, 10),
    alpha=st.sampled_from(ALPHAS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_finite_for_every_finite_logit(
    value: float, label: int, gamma: float, alpha: float | None, dtype: torch.dtype
) -> None:
    x = torch.tensor([[value]], dtype=dtype, requires_grad=True)
    loss = focal_loss(x, torch.tensor([label]), alpha, gamma)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(gradient).all()
    target = torch.full_like(x, float(label == 0)).detach()
    loss = sigmoid_focal_loss(x, target, alpha, gamma, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_float32_under_autocast() -> None:
    logits, labels = case("autocast", (4, 30, 6), 12.0)
    x = logits.float()
    plain = focal_loss(x, labels)
    one_hot = (labels[..., None] == torch.arange(6)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = focal_loss(x, labels)
        summed = sigmoid_focal_loss(x, one_hot, reduction="sum")
        rounded = focal_loss(x.bfloat16(), labels)
    assert inside.dtype == summed.dtype == rounded.dtype == torch.float32
    assert inside.item() == plain.item()
    assert summed.item() == sigmoid_focal_loss(x, one_hot, reduction="sum").item()


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.0), (None, 0.0)])
def test_loss_of_an_untrained_network(alpha: float | None, gamma: float) -> None:
    """Section 3.3: every anchor starts at p = π = 0.01, so N background anchors cost N·K·(1 − α)·π^γ·(−log(1 − π))."""
    model = RetinaNet("resnet18", num_classes=3, channels=32, prior=0.01)
    with torch.no_grad():
        logits = model.classification([torch.zeros(2, 32, 8, 8)])[0]
    count = 2 * 8 * 8 * 9
    labels = torch.full((2, 8 * 8 * 9), BACKGROUND)
    weight = 1 if alpha is None else 1 - alpha
    closed_form = count * 3 * weight * 0.01**gamma * -math.log(0.99)
    assert focal_loss(logits, labels, alpha, gamma).item() == pytest.approx(closed_form, rel=1e-4)


def star_oracle(
    x: Array, labels: npt.NDArray[np.int64], alpha: float | None, gamma: float, beta: float
) -> tuple[Array, Array]:
    """FL* = −α_t log(p*_t) / γ, p*_t = sigmoid(γ x_t + β), and its derivative α_t y (p*_t − 1) (appendices A and B)."""
    y = np.where(labels[..., None] == np.arange(x.shape[-1]), 1.0, -1.0)
    p_star = 1 / (1 + np.exp(-(gamma * y * x + beta)))
    weight = np.ones_like(y) if alpha is None else np.where(y > 0, alpha, 1 - alpha)
    weight = weight * (labels != IGNORE)[..., None]
    return -weight * np.log(p_star) / gamma, weight * y * (p_star - 1)


@pytest.mark.parametrize(("gamma", "beta"), STARRED)
@pytest.mark.parametrize("alpha", [None, 0.25, 0.75])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 1e-2)]
)
def test_focal_star_value_and_gradient(
    alpha: float | None, gamma: float, beta: float, dtype: torch.dtype, tolerance: float
) -> None:
    x64, labels = case("star", (2, 150, 5), 12.0)
    x = x64.to(dtype).requires_grad_()
    loss = focal_star_loss(x, labels, alpha, gamma, beta)
    values, gradient = star_oracle(x.detach().double().numpy(), labels.numpy(), alpha, gamma, beta)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(values.sum(), rel=min(tolerance, 1e-5))
    (found,) = torch.autograd.grad(loss, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.double().numpy(), gradient, rtol=tolerance, atol=tolerance)
    assert (found[labels == IGNORE] == 0).all()


def test_focal_stars_defaults() -> None:
    logits, labels = case("star defaults", (50, 3), 5.0)
    assert focal_star_loss(logits, labels) == focal_star_loss(logits, labels, 0.25, 2.0, 1.0)


@pytest.mark.parametrize(("gamma", "beta"), STARRED)
def test_focal_star_gradcheck(gamma: float, beta: float) -> None:
    logits, labels = case("star gradcheck", (2, 6, 3), 4.0)
    x = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: focal_star_loss(v, labels, 0.25, gamma, beta), (x,))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_focal_star_without_scale_and_shift_is_cross_entropy(alpha: float | None) -> None:
    logits, labels = case("star ce", (200, 3), 30.0)
    starred = focal_star_loss(logits, labels, alpha, gamma=1.0, beta=0.0)
    torch.testing.assert_close(starred, focal_loss(logits, labels, alpha, gamma=0.0), rtol=1e-12, atol=0)
    counted, target = logits[labels != IGNORE], labels[labels != IGNORE]
    one_hot = (target[..., None] == torch.arange(3)).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(counted, one_hot, reduction="sum")
    torch.testing.assert_close(focal_star_loss(logits, labels, None, 1.0, 0.0), expected)


@pytest.mark.parametrize(("gamma", "beta"), STARRED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_focal_star_is_finite_for_large_logits(dtype: torch.dtype, gamma: float, beta: float) -> None:
    for value in (1e4, -1e4):
        for label, x_t in ((0, value), (BACKGROUND, -value), (IGNORE, 1e4)):
            x = torch.tensor([[value]], dtype=dtype, requires_grad=True)
            loss = focal_star_loss(x, torch.tensor([label]), None, gamma, beta)
            (gradient,) = torch.autograd.grad(loss, x)
            rounded = abs(x.item())
            assert loss.item() == pytest.approx(0 if x_t > 0 else rounded - beta / gamma, rel=1e-5)
            assert gradient.item() == pytest.approx(0 if x_t > 0 else math.copysign(1, value))


@pytest.mark.parametrize("shape", [(7, 1), (2, 5, 1), (2, 0, 3), (1, 1, 80), (4,)])
def test_focal_star_shapes(shape: tuple[int, ...]) -> None:
    logits, labels = case("star shapes", shape, 6.0)
    values, _ = star_oracle(logits.numpy(), labels.numpy(), 0.25, 2.0, 1.0)
    assert focal_star_loss(logits, labels).item() == pytest.approx(values.sum())
    with pytest.raises(ValueError, match="labels"):
        focal_star_loss(logits[None], labels)


def test_focal_star_of_ignored_anchors_is_nothing() -> None:
    logits, labels = case("star ignored", (60, 3), 10.0)
    x = logits.requires_grad_()
    kept = labels != IGNORE
    loss = focal_star_loss(x, labels)
    assert loss.item() == pytest.approx(focal_star_loss(x[kept], labels[kept]).item(), rel=1e-12)
    nothing = focal_star_loss(x, torch.full((60,), IGNORE))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, x)[0].abs().sum() == 0


@given(
    x_t=st.floats(-60, 60),
    step=st.floats(1e-3, 20),
    label=st.sampled_from([0, BACKGROUND]),
    gamma=st.floats(0.1, 5),
    beta=st.floats(-3, 3),
    alpha=st.sampled_from([None, 0.25, 0.5]),
)
def test_focal_star_falls_as_the_logit_of_being_right_rises(
    x_t: float, step: float, label: int, gamma: float, beta: float, alpha: float | None
) -> None:
    sign = 1 if label == 0 else -1
    x = torch.tensor([[sign * x_t]], dtype=torch.float64)
    loss, easier = (focal_star_loss(v, torch.tensor([label]), alpha, gamma, beta).item() for v in (x, x + sign * step))
    assert loss > easier > 0


def test_focal_star_under_autocast() -> None:
    logits, labels = case("star autocast", (4, 30, 6), 12.0)
    x = logits.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = focal_star_loss(x, labels)
        rounded = focal_star_loss(x.bfloat16(), labels)
    assert inside.dtype == rounded.dtype == torch.float32
    assert inside.item() == focal_star_loss(x, labels).item()
    assert rounded.item() == focal_star_loss(x.bfloat16().float(), labels).item()


@pytest.mark.parametrize("starred", [False, True])
def test_alpha_is_as_exact_as_the_logits(starred: bool) -> None:
    x, labels = case("alpha", (40, 3), 5.0)
    values, _ = (
        star_oracle(x.numpy(), labels.numpy(), 0.1, 2.0, 1.0)
        if starred
        else oracle(x.numpy(), labels.numpy(), 0.1, 2.0)
    )
    loss = focal_star_loss(x, labels, 0.1, 2.0, 1.0) if starred else focal_loss(x, labels, 0.1, 2.0)
    assert loss.item() == pytest.approx(values.sum(), rel=1e-12)
