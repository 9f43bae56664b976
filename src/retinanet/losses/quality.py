"""Classification losses whose target is how well the box fits, so that a score ranks boxes as well as classes.

The target of a foreground anchor's class is q, the IoU of its predicted box with its object, instead of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retinanet.anchors.assign import IGNORE


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss, ``|q − p|^γ · BCE(p, q)``, summed (https://arxiv.org/abs/2006.04388, equation 5, β = γ).

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class, ``BACKGROUND`` or ``IGNORE``, as for :func:`retinanet.losses.focal_loss`.
        quality: ``(…,)`` in [0, 1], q of the foreground anchors; the others' is not read.
        gamma: focusing parameter, ≥ 0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        x, q, counted = _prepare(logits, labels, quality)
        loss = F.binary_cross_entropy_with_logits(x, q, reduction="none") * _power((q - x.sigmoid()).abs(), gamma)
        return torch.where(counted, loss, 0.0).sum()


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, alpha: float | None = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss, summed: ``q · BCE(p, q)`` for the foreground class, ``−α p^γ log(1 − p)`` for the others.

    Source: https://arxiv.org/abs/2008.13367, equation 2. Arguments as for :func:`quality_focal_loss`; ``alpha``
    None is 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        x, q, counted = _prepare(logits, labels, quality)
        weight = torch.where(q > 0, q, (1.0 if alpha is None else alpha) * _power(x.sigmoid(), gamma))
        loss = F.binary_cross_entropy_with_logits(x, q, reduction="none") * weight
        return torch.where(counted, loss, 0.0).sum()


def _power(base: Tensor, gamma: float) -> Tensor:
    # for γ < 1 the power's derivative at 0 is infinite; the loss there is 0 anyway
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** gamma


def _prepare(logits: Tensor, labels: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in at least float32, targets q ``(…, K)``, and which of them count."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    positive = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    q = torch.where(positive, quality[..., None].to(x.dtype).clamp(0, 1), 0.0)
    return x, q, (labels != IGNORE)[..., None]
