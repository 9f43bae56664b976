"""The classification losses: the focal loss (section 3), its variant FL* (appendix A), and two box-quality losses.

    FL(p_t) = −α_t (1 − p_t)^γ log p_t,    p_t = p for the true class and 1 − p otherwise, p = sigmoid(logit)

γ = 0 is α-balanced cross entropy; γ = 0 with α = None is cross entropy. Everything is computed in at least float32,
also under autocast. Value and gradient of a logit are finite for every finite logit: log-sigmoids do not overflow, and
factors such as (1 − p_t)^γ are constant beyond :data:`LARGE_LOGIT`. All functions can be differentiated with respect to
the logits any number of times: by ``backward``, ``torch.autograd.grad`` and ``torch.autograd.functional``, and by
``grad``, ``vmap``, ``hessian``, ``jacrev``, ``jacfwd`` and ``jvp`` of ``torch.func``. Dual tensors of
``torch.autograd.forward_ad`` outside ``torch.func`` are not supported (NotImplementedError).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from retinanet.errors import ArgumentError
from retinanet.losses.arguments import (
    checked_alpha,
    is_number,
    labels_with_quality,
    require_floating,
    require_gamma,
    values_are_known,
)
from retinanet.losses.formula import LARGE_LOGIT, Coefficients
from retinanet.losses.sum import summed_loss


def focal_loss(logits: Tensor, labels: Tensor, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of one-vs-all classifiers with integer labels, summed over everything that is not ignored.

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class ``0..K-1``, ``BACKGROUND`` (−1, all classes negative) or ``IGNORE`` (−2, no loss).
        alpha: weight of the positive class, in [0, 1]; negative classes have 1 − alpha. None or −1: all classes have 1.
        gamma: focusing parameter, ≥ 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). NaN if a label is out of range on a GPU, in ``torch.compile`` or
        in ``torch.func``, where a check would wait or break the trace.

    Raises:
        ArgumentError: the shapes do not fit, ``alpha`` or ``gamma`` is out of range, or (on the CPU) a label is.
    """
    return summed_loss(logits, labels, Focal(alpha, gamma))


def focal(x_t: Tensor, gamma: float) -> Tensor:
    """``−(1 − p_t)^γ log p_t`` of single logits, element by element; ``x_t`` is the logit of the true class."""
    log_p = F.logsigmoid(x_t)
    if gamma == 0:
        return -log_p
    # exp(γ log(1 − p_t)) has a finite derivative for every γ ≥ 0. The derivative of (1 − p_t) ** γ is not finite if
    # 1 − p_t underflows. Below −LARGE_LOGIT the factor is 1, and clamp() also stops γ log p_t, which may overflow.
    return -torch.exp(gamma * F.logsigmoid(-x_t.clamp(min=-LARGE_LOGIT))) * log_p


def softplus_over(x: Tensor, gamma: float, beta: float) -> Tensor:
    """``log(1 + exp(γ x − β)) / γ``, without overflow of γ x."""
    z = gamma * x - beta
    small = -F.logsigmoid(-z.clamp(-LARGE_LOGIT, LARGE_LOGIT)) / gamma
    # At z = LARGE_LOGIT, clamp() may pass no gradient.
    return torch.where(z >= LARGE_LOGIT, x - beta / gamma, small)


@dataclass(frozen=True)
class Focal:
    """``−α_t (1 − p_t)^γ log p_t`` (section 3.2); γ = 0 is (α-balanced) cross entropy."""

    alpha: float | None
    gamma: float

    def __post_init__(self) -> None:
        checked_alpha(self.alpha)
        require_gamma(self.gamma)

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits: p_t = 1 − p and α_t = 1 − α."""
        return self.coefficients.background * focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits: p_t = p and α_t = α."""
        return self.coefficients.foreground * focal(x, self.gamma)

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
        return Coefficients("focal", *_balance(self.alpha), self.gamma)


@dataclass(frozen=True)
class FocalStar:
    """``−α_t log(sigmoid(γ x_t + β)) / γ`` (appendix A)."""

    alpha: float | None
    gamma: float
    beta: float

    def __post_init__(self) -> None:
        checked_alpha(self.alpha)
        require_gamma(self.gamma, positive=True)
        if not is_number(self.beta) or not math.isfinite(self.beta):
            raise ArgumentError(f"beta is {self.beta!r}; it must be a finite number")

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits: x_t = −x."""
        return self.coefficients.background * softplus_over(x, self.gamma, self.beta)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits: x_t = x."""
        return self.coefficients.foreground * softplus_over(-x, self.gamma, self.beta)

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
        return Coefficients("focal_star", *_balance(self.alpha), self.gamma, self.beta)


@dataclass(frozen=True)
class QualityFocal:
    """``|q − p|^γ · BCE(p, q)`` (https://arxiv.org/abs/2006.04388, equation 5), q = 0 for the background."""

    gamma: float

    def __post_init__(self) -> None:
        require_gamma(self.gamma)

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits, where q = 0."""
        return focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits, where q is ``quality``."""
        assert quality is not None
        return torch.exp(self.gamma * _log_distance(x, quality)) * _cross_entropy(x, quality)

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
        return Coefficients("quality_focal", 1.0, 1.0, self.gamma)


@dataclass(frozen=True)
class Varifocal:
    """``q · BCE(p, q)`` for q > 0, ``−α p^γ log(1 − p)`` else (https://arxiv.org/abs/2008.13367, equation 2)."""

    alpha: float | None
    gamma: float

    def __post_init__(self) -> None:
        checked_alpha(self.alpha)
        require_gamma(self.gamma)

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits, where q = 0."""
        return self.coefficients.background * focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits, where q is ``quality``; a box without any overlap counts as background."""
        assert quality is not None
        return torch.where(quality > 0, quality * _cross_entropy(x, quality), self.background(x))

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
        alpha = checked_alpha(self.alpha)
        return Coefficients("varifocal", 1.0 if alpha is None else alpha, 1.0, self.gamma)


def focal_star_loss(
    logits: Tensor, labels: Tensor, alpha: float | None = 0.25, gamma: float = 2.0, beta: float = 1.0
) -> Tensor:
    """FL*, the alternative of appendix A: ``−α_t log(sigmoid(γ x_t + β)) / γ`` with ``x_t`` = ±logit, summed.

    The paper's good settings are γ = 2, β = 1 and γ = 4, β = 0. Arguments as for :func:`focal_loss`; γ > 0.
    """
    return summed_loss(logits, labels, FocalStar(alpha, gamma, beta))


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss, ``|q − p|^γ · BCE(p, q)``, summed (https://arxiv.org/abs/2006.04388, equation 5, β = γ).

    The target of a positive anchor's class is not 1 but q, the IoU of the anchor's predicted box with its object. So
    scores also rank boxes by their quality.

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class, ``BACKGROUND`` or ``IGNORE``, as for :func:`focal_loss`.
        quality: ``(…,)`` in [0, 1], q of the positive anchors; values of other anchors are not read.
        gamma: focusing parameter, ≥ 0.

    Raises:
        ArgumentError: as :func:`focal_loss`, or (on the CPU) q of a positive anchor is not in [0, 1]. Elsewhere the
            loss of such an anchor is NaN.
    """
    return summed_loss(logits, labels_with_quality(labels, quality), QualityFocal(gamma), quality)


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, alpha: float | None = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss, summed: ``q · BCE(p, q)`` for a positive anchor's class, else ``−α p^γ log(1 − p)``.

    Source: https://arxiv.org/abs/2008.13367, equation 2. Arguments as for :func:`quality_focal_loss`;
    ``alpha=None`` means α = 1.
    """
    return summed_loss(logits, labels_with_quality(labels, quality), Varifocal(alpha, gamma), quality)


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2,
    reduction: Literal["none", "mean", "sum"] = "none",
) -> Tensor:
    """Focal loss with the signature of ``torchvision.ops.sigmoid_focal_loss``.

    Args:
        inputs: logits of any shape.
        targets: the same shape; 1 for the positive class, 0 for the negative, or a soft value between.
        alpha: weight of the positive class, in [0, 1]; None or −1: all classes have weight 1.
        gamma: focusing parameter, ≥ 0.
        reduction: ``"none"`` keeps the shape; ``"mean"`` and ``"sum"`` give a scalar.

    Raises:
        ArgumentError: unknown ``reduction``, the shapes differ, ``alpha`` or ``gamma`` is out of range, or (on the CPU)
            a target is. Elsewhere the loss of such a target is NaN.
    """
    alpha = checked_alpha(alpha)
    require_gamma(gamma)
    require_floating(inputs, "inputs")
    if inputs.shape != targets.shape:
        raise ArgumentError(f"targets {tuple(targets.shape)} and inputs {tuple(inputs.shape)} have different shapes")
    known = values_are_known(inputs) and values_are_known(targets)
    if known and bool(((targets < 0) | (targets > 1)).any()):
        raise ArgumentError("targets hold values outside 0 to 1; give 1 for the positive class and 0 for the others")
    if reduction not in ("none", "mean", "sum"):
        raise ArgumentError(f"reduction is {reduction!r}; choose 'none', 'mean' or 'sum'")
    with torch.autocast(inputs.device.type, enabled=False):
        x = inputs if inputs.dtype == torch.float64 else inputs.float()
        t = targets.to(x.dtype)
        loss = torch.exp(gamma * _log_complement(x, t)) * _cross_entropy(x, t)
        if alpha is not None:
            loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
        loss = loss if known else torch.where((t < 0) | (t > 1), math.nan, loss)
        loss = loss.to(inputs.dtype) if reduction == "none" else loss
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def _log_complement(x: Tensor, target: Tensor) -> Tensor:
    """Logarithm of ``1 − p_t = p (1 − t) + (1 − p) t`` for soft targets t.

    A power of 1 − p_t itself has derivatives that overflow for γ < 1, where 1 − p_t is tiny.
    """
    x, least = x.clamp(-LARGE_LOGIT, LARGE_LOGIT), torch.finfo(x.dtype).tiny
    negative, positive = (torch.log(weight.clamp(min=least)) for weight in (1 - target, target))
    a, b = F.logsigmoid(x) + negative, F.logsigmoid(-x) + positive
    # logaddexp(a, b). The second derivative of PyTorch's own overflows.
    return torch.where(a > b, a - F.logsigmoid(a - b), b - F.logsigmoid(b - a))


def _log_distance(x: Tensor, quality: Tensor) -> Tensor:
    """Logarithm of ``|q − p|``, as :func:`_log_complement`; bounded below, because |q − p| is 0 where p = q."""
    x = x.clamp(-LARGE_LOGIT, LARGE_LOGIT)
    none, full = quality <= 0, quality >= 1
    distance = torch.where(none | full, 1.0, (quality - x.sigmoid()).abs())
    between = torch.log(distance.clamp(min=torch.finfo(x.dtype).tiny ** 0.5))
    return torch.where(none, F.logsigmoid(x), torch.where(full, F.logsigmoid(-x), between))


def _cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, target, reduction="none")


def _balance(alpha: float | None) -> tuple[float, float]:
    """Weights of background and foreground: 1 − α and α, or 1 and 1 if ``alpha`` is None or −1."""
    alpha = checked_alpha(alpha)
    return (1.0, 1.0) if alpha is None else (1 - alpha, alpha)
