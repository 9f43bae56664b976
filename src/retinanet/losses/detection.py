"""The training objective: classification loss + box loss, both divided by the number of foreground anchors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from retinanet.anchors.coding import aligned_iou, decode
from retinanet.anchors.grid import AnchorGrid
from retinanet.config import LossConfig
from retinanet.hardware import send
from retinanet.losses.baselines import ohem_loss
from retinanet.losses.boxes import box_loss
from retinanet.losses.terms import Focal, FocalStar, QualityFocal, Terms, Varifocal, summed
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
    ``moving``: a moving average of this process's alone (detectron2). ``image`` divides each image's losses by its own
    (torchvision).

    Attributes:
        average: float32 scalar, the state of ``moving``.
    """

    def __init__(self, config: LossConfig) -> None:
        self.kind = config.normalizer
        self.average = torch.tensor(_MOVING_START)

    def __call__(self, foreground: Tensor) -> Tensor:
        """The divisor, float32, for a number of foreground anchors (int64 scalar)."""
        if self.kind != "moving":
            return self.of_all(foreground)
        own = foreground.float().clamp(min=1)
        self.average = _MOVING_KEEP * self.average.to(own.device) + (1 - _MOVING_KEEP) * own
        return self.average

    def of_all(self, count: Tensor) -> Tensor:
        """``count``, at least 1; of all processes ÷ their number, if the kind is ``batch``."""
        count, processes = count.float(), 1
        if self.kind == "batch" and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(count)
            processes = distributed.get_world_size()
        return count.clamp(min=1) / processes


def detection_losses(
    outputs: Outputs,
    grid: AnchorGrid,
    matched: Tensor,
    boxes: Tensor,
    labels: Tensor,
    config: LossConfig,
    normalizer: Normalizer | None = None,
    divisor: Tensor | None = None,
) -> Losses:
    """Losses of a batch.

    ``grid``, ``matched``, ``boxes`` and ``labels`` may lie on the CPU while ``outputs`` lie on a GPU. Then nothing here
    waits for the GPU: which anchors are foreground is known without asking it.

    Args:
        outputs: the network's predictions.
        grid: the anchors they refer to.
        matched: int64 ``(B, A)`` from :func:`retinanet.anchors.assign_batch`, indices into ``boxes``.
        boxes: ``(G, 4)``, the ground truth of all images together.
        labels: int64 ``(G,)``, their classes.
        config: which losses.
        normalizer: keeps the state of ``config.normalizer``; None starts afresh.
        divisor: what ``normalizer`` gave for a step of which this batch is only a part; unset: it is asked for this
            batch. The losses of all parts add up to those of the step. (Each image has its own where the normaliser is
            ``image``; mined anchors are counted part by part.)
    """
    device = outputs.logits[0].device
    targets = class_targets(send(matched, device), send(labels, device))  # (B, A)
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
        of_boxes = normalizer(part.foreground) if divisor is None or config.normalizer == "image" else divisor
        of_classes = of_boxes if part.mined is None else normalizer.of_all(part.mined)
        of_boxes, of_classes = (send(of, part.box.device) for of in (of_boxes, of_classes))
        parts.append(torch.stack([part.classification / of_classes, part.box / of_boxes]))
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
    device = outputs.logits[0].device
    classification, box = torch.zeros((), device=device), torch.zeros((), device=device)
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
        objects, anchors = send(boxes[level_matched[image, anchor]], device), send(anchors[anchor], device)
        image, anchor = send(image, device), send(anchor, device)
        box = box + box_loss(deltas[image, anchor], anchors, objects, config)
        if mining:
            continue
        quality = None
        if config.classification in ("quality_focal", "varifocal"):
            quality = torch.zeros(level_targets.shape, device=device)
            quality[image, anchor] = box_quality(deltas[image, anchor], anchors, objects)
        classification = classification + summed(logits, level_targets, terms_of(config), quality)
    mined = None
    if mining:
        ratio = 3 if config.classification == "ohem_1_3" else None
        logits = torch.cat(outputs.logits, dim=1)  # (B, A, K)
        losses, counts = zip(
            *(
                ohem_loss(image, labels, send(grid.boxes, device), config.ohem_batch, config.ohem_nms, ratio)
                for image, labels in zip(logits, targets, strict=True)
            ),
            strict=True,
        )
        classification, mined = torch.stack(losses).sum(), torch.stack(counts).sum()
    return _Sums(classification, box, (matched >= 0).sum(), mined)


def class_targets(matched: Tensor, labels: Tensor) -> Tensor:
    """Class, ``BACKGROUND`` or ``IGNORE`` of every anchor, shaped as ``matched``."""
    return torch.where(matched >= 0, labels[matched.clamp(min=0)], matched) if len(labels) else matched


def box_quality(deltas: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
    """IoU of predicted boxes with their objects, ``(F, 4)`` each → ``(F,)``; no gradient flows through it."""
    return aligned_iou(decode(deltas.detach().float(), anchors), objects)


def terms_of(config: LossConfig) -> Terms:
    """The classification loss by its name; of losses that mine, what is mined from."""
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
