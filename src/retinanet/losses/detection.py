"""The training objective: classification loss + box loss, both divided by the number of positive anchors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from retinanet.anchors.coding import aligned_iou, decode_boxes
from retinanet.anchors.grid import AnchorGrid
from retinanet.anchors.matches import Matches
from retinanet.config import LossConfig
from retinanet.hardware import to_device
from retinanet.losses.boxes import box_loss
from retinanet.losses.classification import Focal, FocalStar, QualityFocal, Varifocal
from retinanet.losses.formula import Formula
from retinanet.losses.mining import ohem_loss
from retinanet.losses.sum import summed_loss
from retinanet.losses.targets import Targets, make_targets
from retinanet.model import Outputs

# Initial value and decay per step of detectron2's moving average of the number of positive anchors.
_MOVING_START, _MOVING_KEEP = 100.0, 0.9


class Losses(NamedTuple):
    """Scalars: normalized ``classification`` and ``box`` loss; ``foreground``: positive anchors of this process."""

    classification: Tensor
    box: Tensor
    foreground: Tensor

    @property
    def total(self) -> Tensor:
        """The sum that is minimized."""
        return self.classification + self.box


class Normalizer:
    """Turn the number of positive anchors into the number that divides the losses.

    ``batch``: the number of positive anchors of the whole batch, on all processes, at least 1 (the paper). Gradients
    are averaged over processes, so each process divides by the total ÷ processes. ``rank``: the number of positive
    anchors of this process (mmdetection). ``moving``: the moving average of that number (detectron2). ``image``: the
    losses of each image are divided by the number of its own positive anchors (torchvision).

    Attributes:
        average: float32 scalar, the state of ``moving``.
    """

    def __init__(self, config: LossConfig) -> None:
        self.kind = config.normalizer
        self.average = torch.tensor(_MOVING_START)

    def __call__(self, positives: int) -> float:
        """Return the normalizer for a number of positive anchors."""
        if self.kind != "moving":
            return float(self.of_all(torch.tensor(positives)))
        own = torch.tensor(float(max(1, positives)))
        self.average = _MOVING_KEEP * self.average + (1 - _MOVING_KEEP) * own
        return float(self.average)

    def of_all(self, count: Tensor) -> Tensor:
        """Return ``count``, at least 1; for ``batch``, the mean of the counts of all processes."""
        count, processes = count.float(), 1
        if self.kind == "batch" and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            processes = distributed.get_world_size()
        return count.clamp(min=1) / processes


def detection_losses(
    outputs: Outputs,
    grid: AnchorGrid,
    matches: Matches,
    boxes: Tensor,
    labels: Tensor,
    config: LossConfig,
    normalizer: Normalizer | None = None,
    divisor: float | None = None,
) -> Losses:
    """Losses of a batch.

    ``outputs`` may be on a GPU; ``grid``, ``matches``, ``boxes`` and ``labels`` are on the CPU. This function never
    waits for the GPU, because the positive anchors are known on the CPU.

    Args:
        outputs: the network's predictions.
        grid: the anchors they refer to.
        matches: positive and ignored anchors, from :func:`retinanet.anchors.match_batch`.
        boxes: ``(G, 4)``, the ground truth of all images together.
        labels: int64 ``(G,)``, their classes.
        config: which losses.
        normalizer: holds the state of ``config.normalizer``. None: a new normalizer.
        divisor: the normalizer of the whole step, if this batch is a slice of the step; the losses of all slices add up
            to those of the step. None: the normalizer of this batch. The setting ``image`` ignores it, and so does the
            classification loss of OHEM.
    """
    normalizer = normalizer or Normalizer(config)
    positives = torch.tensor(len(matches.positive))
    if config.normalizer == "image":
        parts = [
            _losses(_of_image(outputs, i), grid, matches[i : i + 1], boxes, labels, config, normalizer)
            for i in range(matches.images)
        ]
        classification, box = (torch.stack(values).mean() for values in zip(*parts, strict=True))
        return Losses(classification, box, positives)
    return Losses(*_losses(outputs, grid, matches, boxes, labels, config, normalizer, divisor), positives)


def _losses(
    outputs: Outputs,
    grid: AnchorGrid,
    matches: Matches,
    boxes: Tensor,
    labels: Tensor,
    config: LossConfig,
    normalizer: Normalizer,
    divisor: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute classification and box loss of images that share a normalizer."""
    targets = make_targets(matches, grid, boxes, labels, outputs.logits[0].device)
    if divisor is None:
        divisor = normalizer(len(matches.positive))
    deltas = targets.of_positives(outputs.deltas)  # (P, 4)
    box = config.box_weight * (box_loss(deltas, targets.anchors, targets.boxes, config) / divisor)
    if config.classification in ("ohem", "ohem_1_3"):
        return _mined_loss(outputs, grid, targets, config, normalizer), box
    formula = formula_of(config)
    qualities: list[Tensor] | list[None] = [None] * len(targets.classes)
    if config.classification in ("quality_focal", "varifocal"):
        qualities = targets.spread(box_quality(deltas, targets.anchors, targets.boxes))
    levels = zip(outputs.logits, targets.classes, qualities, strict=True)
    sums = [summed_loss(logits, classes, formula, quality, divisor) for logits, classes, quality in levels]
    return torch.stack(sums).sum(), box


def _mined_loss(
    outputs: Outputs, grid: AnchorGrid, targets: Targets, config: LossConfig, normalizer: Normalizer
) -> Tensor:
    """Classification loss of the mined anchors, divided by their number."""
    ratio = 3 if config.classification == "ohem_1_3" else None
    every = torch.cat(outputs.logits, dim=1)  # (B, A, K)
    anchors = to_device(grid.boxes, every.device)
    of_images = [
        ohem_loss(logits, classes, anchors, config.ohem_batch, config.ohem_nms, ratio)
        for logits, classes in zip(every, torch.cat(targets.classes, dim=1), strict=True)
    ]
    losses, counts = (torch.stack(values).sum() for values in zip(*of_images, strict=True))
    return losses / to_device(normalizer.of_all(counts), losses.device)


def box_quality(deltas: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
    """IoU of predicted boxes with their objects, ``(F, 4)`` each → ``(F,)``; no gradient flows through it."""
    return aligned_iou(decode_boxes(deltas.detach().float(), anchors), objects)


def formula_of(config: LossConfig) -> Formula:
    """Return the formula of the configured classification loss; for OHEM, that of the loss before mining."""
    match config.classification:
        case "ce" | "ohem" | "ohem_1_3":
            return Focal(None, 0.0)
        case "alpha_ce":
            return Focal(config.alpha, 0.0)
        case "focal_star":
            return FocalStar(config.alpha, config.gamma, config.star_beta)
        case "quality_focal":
            return QualityFocal(config.gamma)
        case "varifocal":
            return Varifocal(config.alpha, config.gamma)
        case "focal":
            return Focal(config.alpha, config.gamma)


def _of_image(outputs: Outputs, index: int) -> Outputs:
    logits, deltas = ([level[index : index + 1] for level in levels] for levels in outputs)
    return Outputs(logits, deltas)
