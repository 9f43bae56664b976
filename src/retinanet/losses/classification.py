"""The classification losses: the focal loss (section 3), its variant FL* (appendix A), and two box-quality losses.

    FL(p_t) = −α_t (1 − p_t)^γ log p_t,    p_t = p for the true class and 1 − p otherwise, p = sigmoid(logit)

γ = 0 is α-balanced cross entropy; γ = 0 with α = None is cross entropy. Everything is computed in at least float32,
also under autocast. The use of log-sigmoids keeps value and gradient finite for every finite logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from retinanet.losses.formula import Coefficients
from retinanet.losses.sum import summed_loss


def focal_loss(logits: Tensor, labels: Tensor, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of one-vs-all classifiers with integer labels, summed over everything that is not ignored.

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class ``0..K-1``, ``BACKGROUND`` (−1, all classes negative) or ``IGNORE`` (−2, no loss).
        alpha: weight of the positive class; negative classes have 1 − alpha. None: all classes have 1.
        gamma: focusing parameter, ≥ 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Differentiable once.

    Raises:
        ValueError: the shapes do not fit, or (on the CPU) a label is not below K.
    """
    return summed_loss(logits, labels, Focal(alpha, gamma))


def focal(x_t: Tensor, gamma: float) -> Tensor:
    """``−(1 − p_t)^γ log p_t`` of single logits, element by element; ``x_t`` is the logit of the true class."""
    log_p = F.logsigmoid(x_t)
    if gamma == 0:
        return -log_p
    # exp(γ log(1 − p_t)) has a finite derivative for every γ ≥ 0. The derivative of (1 − p_t) ** γ is not finite if
    # 1 − p_t underflows.
    return -torch.exp(gamma * F.logsigmoid(-x_t)) * log_p


@dataclass(frozen=True)
class Focal:
    """``−α_t (1 − p_t)^γ log p_t`` (section 3.2); γ = 0 is (α-balanced) cross entropy."""

    alpha: float | None
    gamma: float

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

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits: x_t = −x."""
        return self.coefficients.background * -F.logsigmoid(self.beta - self.gamma * x) / self.gamma

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits: x_t = x."""
        return self.coefficients.foreground * -F.logsigmoid(self.gamma * x + self.beta) / self.gamma

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
        return Coefficients("focal_star", *_balance(self.alpha), self.gamma, self.beta)


@dataclass(frozen=True)
class QualityFocal:
    """``|q − p|^γ · BCE(p, q)`` (https://arxiv.org/abs/2006.04388, equation 5), q = 0 for the background."""

    gamma: float

    def background(self, x: Tensor) -> Tensor:
        """Loss of background logits, where q = 0."""
        return focal(-x, self.gamma)

    def foreground(self, x: Tensor, quality: Tensor | None) -> Tensor:
        """Loss of foreground logits, where q is ``quality``."""
        assert quality is not None
        distance = (quality - x.sigmoid()).abs()
        # for γ < 1 the power's derivative at 0 is infinite; the loss there is 0 anyway
        power = distance.clamp(min=torch.finfo(x.dtype).tiny) ** self.gamma
        return power * _cross_entropy(x, quality)

    @property
    def coefficients(self) -> Coefficients:
        """The formula as numbers."""
        return Coefficients("quality_focal", 1.0, 1.0, self.gamma)


@dataclass(frozen=True)
class Varifocal:
    """``q · BCE(p, q)`` for q > 0, ``−α p^γ log(1 − p)`` else (https://arxiv.org/abs/2008.13367, equation 2)."""

    alpha: float | None
    gamma: float

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
        return Coefficients("varifocal", 1.0 if self.alpha is None else self.alpha, 1.0, self.gamma)


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
    """
    return summed_loss(logits, labels, QualityFocal(gamma), quality)


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, alpha: float | None = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss, summed: ``q · BCE(p, q)`` for a positive anchor's class, else ``−α p^γ log(1 − p)``.

    Source: https://arxiv.org/abs/2008.13367, equation 2. Arguments as for :func:`quality_focal_loss`;
    ``alpha=None`` means α = 1.
    """
    return summed_loss(logits, labels, Varifocal(alpha, gamma), quality)


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
        alpha: weight of the positive class; None or a negative number: all classes have weight 1.
        gamma: focusing parameter, ≥ 0.
        reduction: ``"none"`` keeps the shape; ``"mean"`` and ``"sum"`` give a scalar.

    Raises:
        ValueError: unknown ``reduction``.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; choose 'none', 'mean' or 'sum'")
    with torch.autocast(inputs.device.type, enabled=False):
        x = inputs if inputs.dtype == torch.float64 else inputs.float()
        t = targets.to(x.dtype)
        complement = torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t  # 1 − p_t without cancellation
        # where 1 − p_t underflows to 0, the power's derivative is infinite for γ < 1; the loss there is 0 anyway
        loss = _cross_entropy(x, t) * complement.clamp(min=torch.finfo(x.dtype).tiny) ** gamma
        if alpha is not None and alpha >= 0:
            loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
        loss = loss.to(inputs.dtype) if reduction == "none" else loss
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def _cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, target, reduction="none")


def _balance(alpha: float | None) -> tuple[float, float]:
    """Weights of background and foreground: 1 − α and α, or 1 and 1 if ``alpha`` is None."""
    return (1.0, 1.0) if alpha is None else (1 - alpha, alpha)
