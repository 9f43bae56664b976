"""The training objective: classification loss + box loss, both divided by the number of foreground anchors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from retinanet.anchors.coding import aligned_iou, decode
from retinanet.anchors.grid import AnchorGrid
from retinanet.config import LossConfig
from retinanet.losses.baselines import ohem_loss
from retinanet.losses.boxes import box_loss
from retinanet.losses.focal import focal_loss, focal_star_loss
from retinanet.losses.quality import quality_focal_loss, varifocal_loss
from retinanet.model import Outputs

# detectron2's moving average of the foreground anchors: where it starts, and what it keeps at each step.
_MOVING_START, _MOVING_KEEP = 100.0, 0.9


class Losses(NamedTuple):
    """Scalars: ``classification`` and ``box``, normalised, and the ``foreground`` anchors of this process's batch."""

    classification: Tensor
    box: Tensor
    foreground: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.classification + self.box


class Normalizer:
    """Number of foreground anchors → what the losses are divided by.

    ``batch``: the foreground anchors of the whole batch, on all processes, at least 1 (the paper). Gradients are
    averaged over processes, so each divides by the total ÷ processes. ``rank``: this process's alone (mmdetection).
    ``moving``: their moving average (detectron2). ``image`` divides each image's losses by its own (torchvision).

    Attributes:
        average: float32 scalar, the state of ``moving``.
    """

    def __init__(self, config: LossConfig) -> None:
        self.kind = config.normalizer
        self.average = torch.tensor(_MOVING_START)

    def __call__(self, foreground: Tensor) -> Tensor:
        """The divisor, float32, for a number of foreground anchors (int64 scalar)."""
        count = foreground.float()
        if self.kind == "moving":
            average = self.average.to(count.device)
            self.average = _MOVING_KEEP * average + (1 - _MOVING_KEEP) * count.clamp(min=1)
            return self.average
        return self.of_all(count)

    def of_all(self, count: Tensor) -> Tensor:
        """``count``, at least 1; of all processes ÷ their number, if the kind is ``batch``."""
        count = count.float()
        if self.kind == "batch" and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            return count.clamp(min=1) / distributed.get_world_size()
        return count.clamp(min=1)


def detection_losses(
    outputs: Outputs,
    grid: AnchorGrid,
    matched: Tensor,
    boxes: Tensor,
    labels: Tensor,
    config: LossConfig,
    normalizer: Normalizer | None = None,
) -> Losses:
    """Losses of a batch.

    Args:
        outputs: the network's predictions.
        grid: the anchors they refer to.
        matched: int64 ``(B, A)`` from :func:`retinanet.anchors.assign_batch`, indices into ``boxes``.
        boxes: ``(G, 4)``, the ground truth of all images together.
        labels: int64 ``(G,)``, their classes.
        config: which losses.
        normalizer: keeps the state of ``config.normalizer``; None starts afresh.
    """
    if len(labels):
        targets = torch.where(matched >= 0, labels[matched.clamp(min=0)], matched)  # (B, A) class, BACKGROUND or IGNORE
    else:
        targets = matched
    normalizer = normalizer or Normalizer(config)
    if config.normalizer == "image":
        images = [_of_image(outputs, i) for i in range(len(matched))]
        sums = [
            _sums(image, grid, targets[i : i + 1], matched[i : i + 1], boxes, config) for i, image in enumerate(images)
        ]
    else:
        sums = [_sums(outputs, grid, targets, matched, boxes, config)]
    parts = []
    for part in sums:
        divisor = normalizer(part.foreground)
        of_classes = divisor if part.mined is None else normalizer.of_all(part.mined)
        parts.append(torch.stack([part.classification / of_classes, part.box / divisor]))
    classification, box = torch.stack(parts).mean(dim=0)
    return Losses(classification, config.box_weight * box, sum((s.foreground for s in sums), matched.new_zeros(())))


class _Sums(NamedTuple):
    classification: Tensor
    box: Tensor
    foreground: Tensor
    mined: Tensor | None  # anchors that count, where mining leaves only some


def _sums(
    outputs: Outputs, grid: AnchorGrid, targets: Tensor, matched: Tensor, boxes: Tensor, config: LossConfig
) -> _Sums:
    classification = torch.zeros((), device=matched.device)
    box = torch.zeros((), device=matched.device)
    mining = config.classification in ("ohem", "ohem_1_3")
    per_level = zip(
        outputs.logits,
        outputs.deltas,
        grid.split(grid.boxes),
        grid.split(targets, 1),
        grid.split(matched, 1),
        strict=True,
    )
    for logits, deltas, anchors, level_targets, level_matched in per_level:
        image, anchor = torch.nonzero(level_matched >= 0, as_tuple=True)
        objects = boxes[level_matched[image, anchor]]
        box = box + box_loss(deltas[image, anchor], anchors[anchor], objects, config)
        if mining:
            continue
        quality = None
        if config.classification in ("quality_focal", "varifocal"):
            predicted = decode(deltas[image, anchor].detach().float(), anchors[anchor])
            quality = torch.zeros(level_targets.shape, device=logits.device)
            quality[image, anchor] = aligned_iou(predicted, objects)
        classification = classification + _classification(logits, level_targets, quality, config)
    mined = None
    if mining:
        ratio = 3 if config.classification == "ohem_1_3" else None
        logits = torch.cat(outputs.logits, dim=1)  # (B, A, K)
        losses, counts = zip(
            *(
                ohem_loss(image, labels, grid.boxes, config.ohem_batch, config.ohem_nms, ratio)
                for image, labels in zip(logits, targets, strict=True)
            ),
            strict=True,
        )
        classification, mined = torch.stack(losses).sum(), torch.stack(counts).sum()
    return _Sums(classification, box, (matched >= 0).sum(), mined)


def _classification(logits: Tensor, labels: Tensor, quality: Tensor | None, config: LossConfig) -> Tensor:
    """Summed classification loss of a level: logits ``(B, A, K)``, labels ``(B, A)``."""
    match config.classification:
        case "ce":
            return focal_loss(logits, labels, None, 0.0)
        case "alpha_ce":
            return focal_loss(logits, labels, config.alpha, 0.0)
        case "focal_star":
            return focal_star_loss(logits, labels, config.alpha, config.gamma, config.star_beta)
        case "quality_focal":
            assert quality is not None
            return quality_focal_loss(logits, labels, quality, config.gamma)
        case "varifocal":
            assert quality is not None
            return varifocal_loss(logits, labels, quality, config.alpha, config.gamma)
        case _:
            return focal_loss(logits, labels, config.alpha, config.gamma)


def _of_image(outputs: Outputs, index: int) -> Outputs:
    logits, deltas = ([level[index : index + 1] for level in levels] for levels in outputs)
    return Outputs(logits, deltas)
