"""How a loss is spread over the anchors of a trained model: the paper's Figure 4 (section 5.1).

The paper samples foreground and background anchors, computes their losses, divides them by the sum of each group, and
adds them up from the smallest to the largest. α is left out, because it is a constant factor of each group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retinanet.anchors.matches import BACKGROUND
from retinanet.losses.classification import focal
from retinanet.model import Outputs


@torch.no_grad()
def anchor_losses(outputs: Outputs, matched: Tensor, labels: Tensor, gammas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Focal loss of single anchors for several γ, without α.

    The loss of a foreground anchor is the loss of its own class. The loss of a background anchor is the sum over all
    classes. Ignored anchors are left out.

    Args:
        outputs: the network's predictions for a batch.
        matched: int64 ``(B, A)``: index into ``labels``, ``BACKGROUND`` or ``IGNORE``.
        labels: int64 ``(G,)``, the classes of the objects.
        gammas: focusing parameters.

    Returns:
        float32 ``(len(gammas), F)`` for the foreground and ``(len(gammas), N)`` for the background anchors.
    """
    logits = torch.cat([level.float() for level in outputs.logits], dim=1)  # (B, A, K)
    image, anchor = torch.nonzero(matched >= 0, as_tuple=True)
    own = logits[image, anchor, labels[matched[image, anchor]]]  # (F,)
    background = logits[matched == BACKGROUND]  # (N, K)
    return (
        torch.stack([focal(own, gamma) for gamma in gammas]),
        torch.stack([focal(-background, gamma).sum(dim=1) for gamma in gammas]),
    )


def cumulative(losses: Tensor, points: int) -> Tensor:
    """Share of the total loss that the easiest anchors contribute, for fractions 0, 1/(points − 1), …, 1 of anchors.

    Args:
        losses: ``(N,)``, ≥ 0.
        points: number of points of the curve, at least 2. The curve is linear between anchors.

    Returns:
        float64 ``(points,)``, from 0 to 1; all 0 where there is no loss at all.
    """
    ordered = losses.double().sort().values
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])  # (N + 1,)
    if sums[-1] == 0:
        return sums.new_zeros(points)
    position = torch.linspace(0, len(ordered), points, dtype=torch.float64)
    below = position.long().clamp(max=len(ordered) - 1)
    share = position - below
    return (sums[below] * (1 - share) + sums[below + 1] * share) / sums[-1]


def share_of_hardest(losses: Tensor, fraction: float) -> float:
    """Share of the total loss that the hardest anchors contribute: ``fraction`` of the N anchors, at least one."""
    count = max(1, round(fraction * len(losses)))
    total = losses.double().sum()
    return float(losses.double().topk(min(count, len(losses))).values.sum() / total) if total > 0 else 0.0
