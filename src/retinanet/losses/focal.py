"""The focal loss (section 3), computed from logits.

    FL(p_t) = −α_t (1 − p_t)^γ log p_t,    p_t = p for the true class and 1 − p otherwise, p = sigmoid(logit)

γ = 0 is α-balanced cross entropy; γ = 0 with α = None is cross entropy. Everything is computed in at least float32,
also under autocast, and from log-sigmoids, so that value and gradient are finite for every finite logit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from retinanet.losses.terms import Focal, FocalStar, summed


def focal_loss(logits: Tensor, labels: Tensor, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of one-vs-all classifiers with integer labels, summed over everything that is not ignored.

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class ``0..K-1``, ``BACKGROUND`` (−1, all classes negative) or ``IGNORE`` (−2, no loss).
        alpha: weight of the positive class, 1 − alpha of the negatives; None weighs both 1.
        gamma: focusing parameter, ≥ 0.

    Returns:
        Scalar, float32 (float64 for float64 logits). Differentiable once.

    Raises:
        ValueError: the shapes do not fit, or (on the CPU) a label is not below K.
    """
    return summed(logits, labels, Focal(alpha, gamma))


def focal_star_loss(
    logits: Tensor, labels: Tensor, alpha: float | None = 0.25, gamma: float = 2.0, beta: float = 1.0
) -> Tensor:
    """FL*, the alternative of appendix A: ``−α_t log(sigmoid(γ x_t + β)) / γ`` with ``x_t`` = ±logit, summed.

    The paper's good settings are γ = 2, β = 1 and γ = 4, β = 0. Arguments as for :func:`focal_loss`; γ > 0.
    """
    return summed(logits, labels, FocalStar(alpha, gamma, beta))


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
        alpha: weight of the positive class; None or a negative number weighs both 1.
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
        cross_entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        wrong = torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t  # 1 − p_t without cancellation
        # where 1 − p_t underflows to 0, the power's derivative is infinite for γ < 1; the loss there is 0 anyway
        loss = cross_entropy * wrong.clamp(min=torch.finfo(x.dtype).tiny) ** gamma
        if alpha is not None and alpha >= 0:
            loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
        loss = loss.to(inputs.dtype) if reduction == "none" else loss
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss
