"""Loss shares: how the classification loss divides into foreground, hard background and easy background."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.grid import AnchorGrid
from retinanet.anchors.matches import IGNORE, Matches
from retinanet.config import LossConfig
from retinanet.losses.detection import box_quality, formula_of
from retinanet.losses.targets import make_targets
from retinanet.model import Outputs


class Imbalance(NamedTuple):
    """Sums of a batch's classification loss, not normalized, and the number of foreground anchors per level.

    Attributes:
        foreground: float32 scalar, the loss of the foreground anchors' own classes.
        easy: the loss of background logits with p < 0.5.
        hard: the loss of background logits with p ≥ 0.5.
        positives: int64 ``(L,)``, number of foreground anchors on each level.
    """

    foreground: Tensor
    easy: Tensor
    hard: Tensor
    positives: Tensor

    def plus(self, other: Imbalance) -> Imbalance:
        """The sums of both batches."""
        return Imbalance(*(a + b for a, b in zip(self, other, strict=True)))

    def to_dict(self) -> dict[str, float]:
        """Shares of the loss (they add up to 1, or are all 0 if the loss is 0), and foreground anchors per level."""
        parts = {name: float(getattr(self, name)) for name in ("foreground", "easy", "hard")}
        total = sum(parts.values())
        shares = {f"share_{name}": round(value / total if total > 0 else 0.0, 4) for name, value in parts.items()}
        return shares | {f"positives_p{3 + i}": int(n) for i, n in enumerate(self.positives.tolist())}


@torch.no_grad()
def loss_shares(
    outputs: Outputs, grid: AnchorGrid, matches: Matches, boxes: Tensor, labels: Tensor, config: LossConfig
) -> Imbalance:
    """Divide the classification loss of a batch among foreground, hard and easy background.

    For OHEM, these are shares of the cross entropy before mining.

    Args:
        outputs: the network's predictions.
        grid: the anchors they refer to.
        matches: positive and ignored anchors.
        boxes: ``(G, 4)`` of all images.
        labels: int64 ``(G,)``.
        config: which loss.
    """
    formula, device = formula_of(config), outputs.logits[0].device
    targets = make_targets(matches, grid, boxes, labels, device)
    logits = targets.of_positives(outputs.logits)  # (P, K)
    positive = logits.gather(1, targets.labels[:, None]).squeeze(1).float()  # (P,)
    quality = box_quality(targets.of_positives(outputs.deltas), targets.anchors, targets.boxes)
    foreground = formula.foreground(positive, quality).sum()
    easy, hard = torch.zeros(2, device=device)
    for level, classes in zip(outputs.logits, targets.classes, strict=True):
        for x, ignored in zip(
            level, classes == IGNORE, strict=True
        ):  # image by image, because a whole level would need much memory
            background = formula.background(x.float()).masked_fill(ignored[:, None], 0)  # (A_l, K)
            misclassified = torch.where(x >= 0, background, 0).sum()
            hard, easy = hard + misclassified, easy + background.sum() - misclassified
    loss = formula.background(positive)  # counted above, although these logits are not background
    misclassified = torch.where(positive >= 0, loss, 0).sum()
    hard, easy = hard - misclassified, easy - (loss.sum() - misclassified)
    return Imbalance(foreground, easy.clamp(min=0), hard.clamp(min=0), torch.tensor(targets.counts))
