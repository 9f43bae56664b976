"""Boxes ↔ deltas relative to anchors, the parametrization of R-CNN (https://arxiv.org/abs/1311.2524, appendix C)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

# An untrained network may predict any log scale; the limit keeps exp() from overflowing. Detectron has the same limit,
# a factor of 62.5.
MAX_LOG_SCALE = math.log(1000 / 16)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas that turn ``anchors`` into ``boxes``: ``((x − xₐ)/wₐ, (y − yₐ)/hₐ, log(w/wₐ), log(h/hₐ))``.

    (x, y) is the center of a box, and (xₐ, yₐ) that of its anchor.

    Args:
        boxes: ``(…, 4)`` ``xyxy`` with positive sides.
        anchors: ``(…, 4)`` ``xyxy``, broadcastable against ``boxes``.
    """
    box_size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    box_center = boxes[..., :2] + 0.5 * box_size
    anchor_center = anchors[..., :2] + 0.5 * anchor_size
    return torch.cat([(box_center - anchor_center) / anchor_size, torch.log(box_size / anchor_size)], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor, limit: Literal["above", "both", "none"] = "above") -> Tensor:
    """Return the boxes ``(…, 4)`` ``xyxy`` that ``deltas`` ``(…, 4)`` describe; inverse of :func:`encode`.

    Log scales are at most ``MAX_LOG_SCALE``; if ``limit`` is ``both``, they are also at least −``MAX_LOG_SCALE``.
    """
    size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + 0.5 * size
    new_center = center + deltas[..., :2] * size
    log_scale = deltas[..., 2:]
    if limit != "none":
        log_scale = log_scale.clamp(min=-MAX_LOG_SCALE if limit == "both" else None, max=MAX_LOG_SCALE)
    half = 0.5 * size * torch.exp(log_scale)
    return torch.cat([new_center - half, new_center + half], dim=-1)


def aligned_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each box of ``a`` with its partner in ``b``: ``(…, 4)`` ``xyxy``, broadcastable → ``(…,)``."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = size.prod(dim=-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(dim=-1), (b[..., 2:] - b[..., :2]).prod(dim=-1)
    return intersection / (area_a + area_b - intersection)
