"""Losses of the box subnet, over positive anchors only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from retinanet.anchors.coding import decode_boxes, encode
from retinanet.config import LossConfig

_SMALLEST_SIDE = 1e-2  # pixels

_OF_DECODED_BOXES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


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
    if config.box in _OF_DECODED_BOXES:
        predicted = decode_boxes(deltas, anchors)
        if config.box == "ciou":  # CIoU compares width / height, which is undefined for a height of 0
            corner = torch.maximum(predicted[:, 2:], predicted[:, :2] + _SMALLEST_SIDE)
            predicted = torch.cat([predicted[:, :2], corner], dim=1)
        loss: Tensor = _OF_DECODED_BOXES[config.box](predicted, boxes, reduction="sum")
        return loss
    targets = encode(boxes, anchors)
    if config.box == "l1":
        return F.l1_loss(deltas, targets, reduction="sum")
    return F.smooth_l1_loss(deltas, targets, beta=config.beta, reduction="sum")
