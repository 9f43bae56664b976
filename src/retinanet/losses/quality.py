"""Classification losses whose target is how well the box fits, so that a score ranks boxes as well as classes.

The target of a foreground anchor's class is q, the IoU of its predicted box with its object, instead of 1.
"""

from __future__ import annotations

from torch import Tensor

from retinanet.losses.terms import QualityFocal, Varifocal, summed


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss, ``|q − p|^γ · BCE(p, q)``, summed (https://arxiv.org/abs/2006.04388, equation 5, β = γ).

    Args:
        logits: ``(…, K)``, any floating dtype.
        labels: int64 ``(…,)``: class, ``BACKGROUND`` or ``IGNORE``, as for :func:`retinanet.losses.focal_loss`.
        quality: ``(…,)`` in [0, 1], q of the foreground anchors; the others' is not read.
        gamma: focusing parameter, ≥ 0.
    """
    return summed(logits, labels, QualityFocal(gamma), quality)


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, alpha: float | None = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss, summed: ``q · BCE(p, q)`` for the foreground class, ``−α p^γ log(1 − p)`` for the others.

    Source: https://arxiv.org/abs/2008.13367, equation 2. Arguments as for :func:`quality_focal_loss`; ``alpha``
    None is 1.
    """
    return summed(logits, labels, Varifocal(alpha, gamma), quality)
