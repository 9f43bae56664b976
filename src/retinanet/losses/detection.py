"""The training objective: focal loss + box loss, both divided by the number of foreground anchors of the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.grid import AnchorGrid
from retinanet.config import LossConfig
from retinanet.losses.boxes import box_loss
from retinanet.losses.focal import focal_loss
from retinanet.model import Outputs


class Losses(NamedTuple):
    """Scalars: ``classification`` and ``box``, normalised, and the ``foreground`` anchors they were divided by."""

    classification: Tensor
    box: Tensor
    foreground: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.classification + self.box


def detection_losses(
    outputs: Outputs, grid: AnchorGrid, matched: Tensor, boxes: Tensor, labels: Tensor, config: LossConfig
) -> Losses:
    """Losses of a batch.

    Args:
        outputs: the network's predictions.
        grid: the anchors they refer to.
        matched: int64 ``(B, A)`` from :func:`retinanet.anchors.assign_batch`, indices into ``boxes``.
        boxes: ``(G, 4)``, the ground truth of all images together.
        labels: int64 ``(G,)``, their classes.
        config: which losses.
    """
    if len(labels):
        targets = torch.where(
            matched >= 0, labels[matched.clamp(min=0)], matched
        )  # (B, A): class, BACKGROUND or IGNORE
    else:
        targets = matched
    foreground = (matched >= 0).sum()
    normalizer = foreground.clamp(min=1)
    classification = torch.zeros((), device=matched.device)
    box = torch.zeros((), device=matched.device)
    anchors = grid.split(grid.boxes)
    per_level = zip(
        outputs.logits, outputs.deltas, anchors, grid.split(targets, 1), grid.split(matched, 1), strict=True
    )
    for logits, deltas, level_anchors, level_targets, level_matched in per_level:
        classification = classification + focal_loss(logits, level_targets, config.alpha, config.gamma)
        image, anchor = torch.nonzero(level_matched >= 0, as_tuple=True)
        objects = boxes[level_matched[image, anchor]]
        box = box + box_loss(deltas[image, anchor], level_anchors[anchor], objects, config)
    return Losses(classification / normalizer, config.box_weight * box / normalizer, foreground)
