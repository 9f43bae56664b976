"""Outputs → detections (section 4, Inference): threshold and top-k per level, decode, merge, suppress per class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from retinanet.anchors.coding import decode as decode_boxes
from retinanet.anchors.grid import AnchorGrid
from retinanet.config import DecodeConfig
from retinanet.model import Outputs


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes: float32 ``(D, 4)``, ``xyxy`` pixels of the network's input, clipped to the image.
        scores: float32 ``(D,)``.
        labels: int64 ``(D,)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def decode(
    outputs: Outputs, grid: AnchorGrid, image_sizes: list[tuple[int, int]], config: DecodeConfig | None = None
) -> list[Detections]:
    """Detections of each image of a batch.

    Per level: scores above ``config.score``, of them the ``config.top_k`` highest, decoded. All levels together: per
    class, boxes that overlap a better one by more than IoU ``config.nms`` are dropped; ``config.max_detections`` stay.

    Args:
        outputs: the network's predictions for B images.
        grid: the anchors they refer to.
        image_sizes: ``(height, width)`` of each image inside the padded batch.
        config: thresholds; the paper's by default.
    """
    config = config or DecodeConfig()
    anchors = grid.split(grid.boxes)
    # Comparing logits spares the sigmoid of the 99 % of anchors that fall below the threshold.
    lowest = math.log(config.score / (1 - config.score)) if config.score > 0 else -math.inf
    results = []
    for image, (height, width) in enumerate(image_sizes):
        boxes, scores, labels = [], [], []
        for logits, deltas, level_anchors in zip(outputs.logits, outputs.deltas, anchors, strict=True):
            flat = logits[image].reshape(-1).float()  # (A_l · K,)
            candidates = torch.nonzero(flat > lowest).squeeze(1)
            top, order = flat[candidates].topk(min(config.top_k, len(candidates)))
            anchor, label = candidates[order] // logits.shape[-1], candidates[order] % logits.shape[-1]
            boxes.append(decode_boxes(deltas[image, anchor].float(), level_anchors[anchor]))
            scores.append(top.sigmoid())
            labels.append(label)
        box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        box = torch.minimum(box.clamp(min=0), box.new_tensor([width, height, width, height]))
        keep = batched_nms(box, score, label, config.nms)[: config.max_detections]
        results.append(Detections(box[keep], score[keep], label[keep]))
    return results
