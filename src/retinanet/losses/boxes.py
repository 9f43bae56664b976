"""Losses of the box subnet, over positive anchors only."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss

from retinanet.anchors.coding import MAX_LOG_SCALE, aligned_iou, decode_boxes, encode
from retinanet.config import LossConfig

_SMALLEST_SIDE = 1e-2  # pixels
# Deltas beyond this move a box by a million anchors. Squares of the distance could overflow, and the gradient is 0.
_LARGEST_DELTA = 1e6


def box_loss(deltas: Tensor, anchors: Tensor, boxes: Tensor, config: LossConfig) -> Tensor:
    """Regression loss of matched anchors, summed, in float32.

    ``smooth_l1`` and ``l1`` compare the four predicted deltas with the deltas of the ground truth (Fast R-CNN,
    https://arxiv.org/abs/1504.08083, equation 3). ``giou`` (https://arxiv.org/abs/1902.09630), ``diou`` and ``ciou`` (https://arxiv.org/abs/1911.08287)
    compare the decoded boxes.

    Args:
        deltas: predictions, ``(P, 4)``.
        anchors: the anchors they refer to, ``(P, 4)`` ``xyxy``.
        boxes: the ground-truth box of each anchor, ``(P, 4)`` ``xyxy``.
        config: which loss, and smooth L1's β.
    """
    deltas = deltas.float()
    if config.box in ("giou", "diou", "ciou"):
        deltas = deltas.clamp(-_LARGEST_DELTA, _LARGEST_DELTA)
        predicted = decode_boxes(deltas, anchors)
        of_boxes = generalized_box_iou_loss if config.box == "giou" else distance_box_iou_loss
        loss: Tensor = of_boxes(predicted, boxes, reduction="sum")
        return loss + _shape_loss(deltas, predicted, anchors, boxes).sum() if config.box == "ciou" else loss
    targets = encode(boxes, anchors)
    if config.box == "l1":
        return F.l1_loss(deltas, targets, reduction="sum")
    return F.smooth_l1_loss(deltas, targets, beta=config.beta, reduction="sum")


def _shape_loss(deltas: Tensor, predicted: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    """The part ``α v`` that CIoU adds to DIoU, ``(P,)``; α is constant in the gradient.

    The sides come from the deltas, because far from the origin the corners are too coarse. They are bounded below,
    because CIoU compares width / height, which is undefined for a height of 0.
    """
    sizes = (anchors[:, 2:] - anchors[:, :2]) * torch.exp(deltas[:, 2:].clamp(max=MAX_LOG_SCALE))
    width, height = sizes.clamp(min=_SMALLEST_SIDE).unbind(1)
    true_width, true_height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    v = 4 / math.pi**2 * (torch.atan(true_width / true_height) - torch.atan(width / height)) ** 2
    with torch.no_grad():
        alpha = v / (1 - aligned_iou(predicted, boxes) + v).clamp(min=torch.finfo(v.dtype).eps)
    return alpha * v
