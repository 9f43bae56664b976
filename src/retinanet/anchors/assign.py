"""Ground truth → what every anchor learns: an object's index, ``BACKGROUND`` or ``IGNORE`` (section 4, Anchors)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from retinanet.anchors.atss import assign_atss
from retinanet.anchors.grid import AnchorGrid
from retinanet.config import AssignConfig

BACKGROUND = -1
IGNORE = -2

# Boxes compared with all anchors at once: bounds the memory at 32 × A numbers, however many objects there are.
_CHUNK = 32


def assign(grid: AnchorGrid, boxes: Tensor, ignore: Tensor | None = None, config: AssignConfig | None = None) -> Tensor:
    """Match every anchor of an image with at most one ground-truth box.

    Method ``iou`` (the paper): the box of highest IoU (the first of equals) if that IoU is at least
    ``config.foreground``; ``BACKGROUND`` if it is below ``config.background``; ``IGNORE`` between. With
    ``config.force_best``, an anchor that overlaps some box as much as any other anchor does keeps its own best box
    whatever the IoU (torchvision's low-quality matches); a box that overlaps no anchor at all still gets none.

    Method ``atss``: see :func:`retinanet.anchors.atss.assign_atss`.

    Background anchors of which at least ``config.ignore_overlap`` lies inside an ``ignore`` region become ``IGNORE``.

    Args:
        grid: the image's anchors.
        boxes: ``(G, 4)`` ``xyxy`` pixels.
        ignore: ``(R, 4)`` regions that are neither object nor background.
        config: thresholds; the paper's by default.

    Returns:
        int64 ``(A,)``: index into ``boxes``, ``BACKGROUND`` (−1) or ``IGNORE`` (−2).
    """
    config = config or AssignConfig()
    anchors = grid.boxes
    if config.method == "atss":
        matched = assign_atss(grid, boxes, config.candidates)
    else:
        overlap, nearest = best_overlap(anchors, boxes)
        matched = torch.where(overlap >= config.foreground, nearest, IGNORE)
        matched = torch.where(overlap < config.background, BACKGROUND, matched)
        if config.force_best:
            matched = torch.where(_best_of_some_box(anchors, boxes), nearest, matched)
    if ignore is not None and len(ignore) > 0:
        covered = covered_share(anchors, ignore) >= config.ignore_overlap
        matched = torch.where(covered & (matched == BACKGROUND), IGNORE, matched)
    return matched


def assign_batch(
    grid: AnchorGrid, boxes: Sequence[Tensor], ignore: Sequence[Tensor], config: AssignConfig | None = None
) -> Tensor:
    """:func:`assign` for each image of a batch, as indices into ``torch.cat(boxes)``.

    Returns:
        int64 ``(B, A)``.
    """
    rows, start = [], 0
    for image_boxes, image_ignore in zip(boxes, ignore, strict=True):
        matched = assign(grid, image_boxes, image_ignore, config)
        rows.append(torch.where(matched >= 0, matched + start, matched))
        start += len(image_boxes)
    return torch.stack(rows)


def best_overlap(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Highest IoU of every anchor with any of ``boxes`` ``(G, 4)``, and the first box that reaches it.

    Returns:
        float32 ``(A,)`` (0 where there is no box) and int64 ``(A,)`` (0 where there is none).
    """
    best = anchors.new_zeros(len(anchors))
    index = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    for start in range(0, len(boxes), _CHUNK):
        overlap = box_iou(boxes[start : start + _CHUNK].to(anchors), anchors)  # (chunk, A)
        value = overlap.amax(dim=0)
        position = torch.arange(start, start + len(overlap), device=anchors.device)[:, None]
        first = torch.where(overlap == value, position, len(boxes)).amin(dim=0)  # argmax leaves the order of ties open
        index = torch.where(value > best, first, index)
        best = torch.maximum(value, best)
    return best, index


def _best_of_some_box(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Whether each anchor is one of those that overlap some box the most: bool ``(A,)``."""
    best = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for start in range(0, len(boxes), _CHUNK):
        overlap = box_iou(boxes[start : start + _CHUNK].to(anchors), anchors)  # (chunk, A)
        highest = overlap.amax(dim=1, keepdim=True)
        best |= ((overlap == highest) & (highest > 0)).any(dim=0)
    return best


def covered_share(anchors: Tensor, regions: Tensor) -> Tensor:
    """Largest share of each anchor's area that lies inside one of ``regions`` ``(R, 4)``: float32 ``(A,)``."""
    area = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1)
    share = anchors.new_zeros(len(anchors))
    for region in regions.to(anchors):
        size = (torch.minimum(anchors[:, 2:], region[2:]) - torch.maximum(anchors[:, :2], region[:2])).clamp(min=0)
        share = torch.maximum(share, size.prod(dim=1) / area)
    return share
