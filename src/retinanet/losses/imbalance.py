"""Who owns the classification loss: foreground, hard background or the easy background that the paper is about."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.assign import IGNORE
from retinanet.anchors.grid import AnchorGrid
from retinanet.config import LossConfig
from retinanet.hardware import send
from retinanet.losses.detection import box_quality, class_targets, terms_of
from retinanet.model import Outputs


class Imbalance(NamedTuple):
    """Sums of a batch's classification loss, not normalised, and its foreground anchors by level.

    Attributes:
        foreground: float32 scalar, the loss of the foreground anchors' own classes.
        easy: the loss of background logits that are right (p < 0.5).
        hard: the loss of background logits that are wrong (p ≥ 0.5).
        positives: int64 ``(L,)``, foreground anchors.
    """

    foreground: Tensor
    easy: Tensor
    hard: Tensor
    positives: Tensor

    def plus(self, other: Imbalance) -> Imbalance:
        """The sums of both batches."""
        return Imbalance(*(a + b for a, b in zip(self, other, strict=True)))

    def to_dict(self) -> dict[str, float]:
        """Shares of the loss, which add up to 1 (0 where there is no loss at all), and anchors per level."""
        parts = {name: float(getattr(self, name)) for name in ("foreground", "easy", "hard")}
        total = sum(parts.values())
        shares = {f"share_{name}": round(value / total if total > 0 else 0.0, 4) for name, value in parts.items()}
        return shares | {f"positives_p{3 + i}": int(n) for i, n in enumerate(self.positives.tolist())}


@torch.no_grad()
def loss_shares(
    outputs: Outputs, grid: AnchorGrid, matched: Tensor, boxes: Tensor, labels: Tensor, config: LossConfig
) -> Imbalance:
    """Divide the classification loss of a batch among foreground, hard and easy background.

    Of losses that mine hard examples (OHEM), the cross entropy before mining is divided.

    Args:
        outputs: the network's predictions.
        grid: the anchors they refer to.
        matched: int64 ``(B, A)``, indices into ``boxes``, or ``BACKGROUND`` or ``IGNORE``; it may lie on the CPU.
        boxes: ``(G, 4)`` of all images.
        labels: int64 ``(G,)``.
        config: which loss.
    """
    terms, device = terms_of(config), outputs.logits[0].device
    foreground, easy, hard = torch.zeros(3, device=device)
    per_level = [grid.split(t, dim) for t, dim in ((grid.boxes, 0), (matched, 1))]
    for logits, deltas, anchors, level in zip(outputs.logits, outputs.deltas, *per_level, strict=True):
        image, anchor = torch.nonzero(level >= 0, as_tuple=True)
        objects, own = boxes[level[image, anchor]], labels[level[image, anchor]]
        ignored = send(class_targets(level, labels) == IGNORE, device)
        objects, anchors, own = (send(t, device) for t in (objects, anchors[anchor], own))
        image, anchor = send(image, device), send(anchor, device)
        positive = logits[image, anchor, own].float()  # (F,)
        quality = box_quality(deltas[image, anchor], anchors, objects)
        foreground = foreground + terms.foreground(positive, quality).sum()
        for x, left_out in zip(logits, ignored, strict=True):  # image by image: whole levels would take much memory
            background = terms.background(x.float()).masked_fill(left_out[:, None], 0)  # (A_l, K)
            wrong = torch.where(x >= 0, background, 0).sum()
            hard, easy = hard + wrong, easy + background.sum() - wrong
        loss = terms.background(positive)  # those were no background
        wrong = torch.where(positive >= 0, loss, 0).sum()
        hard, easy = hard - wrong, easy - (loss.sum() - wrong)
    positives = torch.stack([(level >= 0).sum() for level in per_level[1]])
    return Imbalance(foreground, easy.clamp(min=0), hard.clamp(min=0), positives)
