"""Online hard example mining (OHEM), a baseline of the paper (section 5.1, Table 1d).

The other baselines, cross entropy and α-balanced cross entropy, are :func:`retinanet.losses.focal_loss` with γ = 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from retinanet.anchors.matches import IGNORE
from retinanet.errors import ArgumentError
from retinanet.losses.arguments import out_of_range, require_labels
from retinanet.suppression import suppress_sorted


def ohem_loss(
    logits: Tensor, labels: Tensor, anchors: Tensor, batch: int = 128, nms_iou: float = 0.5, ratio: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the hardest anchors of one image; the loss of all other anchors is left out.

    An anchor's loss is the sum over the classes. Of two anchors that overlap by more than ``nms_iou``, only the anchor
    with the higher loss is kept, as in https://arxiv.org/abs/1604.03540. Of the kept anchors, the ``batch`` anchors
    with the highest loss count. With ``ratio`` (3 for SSD's 1:3), at most ``batch`` / (1 + ``ratio``) foreground
    anchors count, and ``ratio`` times as many background anchors, the hardest of each. In an image without foreground,
    ``ratio`` background anchors count.

    The paper does not state the normalizer of the sum. Training here divides it by the number of anchors that count, as
    Fast R-CNN divides by the size of its minibatch.

    Args:
        logits: ``(A, K)`` of all levels.
        labels: int64 ``(A,)``: class, ``BACKGROUND`` or ``IGNORE``; ignored anchors are left out.
        anchors: ``(A, 4)`` ``xyxy``.
        batch: largest number of anchors that count.
        nms_iou: IoU above which two anchors are duplicates.
        ratio: background anchors per foreground anchor. None: the hardest anchors of any kind.

    Returns:
        The summed loss, and the number of anchors in the sum, int64.

    Raises:
        ArgumentError: the shapes do not fit, or a value is out of range, as in :func:`retinanet.losses.focal_loss`.
    """
    require_labels(logits, labels)
    if batch < 1 or not 0 < nms_iou <= 1 or (ratio is not None and ratio < 1):
        raise ArgumentError(
            f"batch {batch}, nms_iou {nms_iou}, ratio {ratio}: give batch and ratio ≥ 1, 0 < nms_iou ≤ 1"
        )
    with torch.autocast(logits.device.type, enabled=False):
        x = logits if logits.dtype == torch.float64 else logits.float()
        positive = labels[:, None] == torch.arange(x.shape[-1], device=x.device)
        loss = F.binary_cross_entropy_with_logits(x, positive.to(x.dtype), reduction="none").sum(dim=1)  # (A,)
        loss = torch.where(out_of_range(labels, x.shape[-1]), math.nan, loss)
        hardness = loss.detach()
        considered = torch.nonzero(labels != IGNORE).squeeze(1)
        order = considered[hardness[considered].argsort(descending=True, stable=True)]
        # Suppression goes from hard to easy, so its result for the hardest anchors does not depend on easier ones. It
        # starts with few anchors, and continues with more while too few are kept.
        taken = min(len(order), 16 * batch)
        while True:
            part = order[:taken]
            left = part[suppress_sorted(anchors[part], nms_iou)]
            chosen, enough = _choose(
                left, labels, batch, ratio, more_foreground=bool((labels[order[taken:]] >= 0).any())
            )
            if enough or taken == len(order):
                return loss[chosen].sum(), torch.tensor(len(chosen), device=x.device)
            taken = min(len(order), 4 * taken)


def _choose(left: Tensor, labels: Tensor, batch: int, ratio: int | None, more_foreground: bool) -> tuple[Tensor, bool]:
    """Choose the anchors that count from ``left``, hardest first. Also return whether the choice is final, that is,
    easier anchors cannot change it."""
    if ratio is None:
        return left[:batch], len(left) >= batch
    most = batch // (1 + ratio)
    foreground = left[labels[left] >= 0][:most]
    wanted = ratio * max(1, len(foreground))
    background = left[labels[left] < 0][:wanted]
    enough = (len(foreground) == most or not more_foreground) and len(background) == wanted
    return torch.cat([foreground, background]), enough
