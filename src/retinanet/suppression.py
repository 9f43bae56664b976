"""Non-maximum suppression of tensors, with the results of ``torchvision.ops.nms``, and in O(n log n) on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from retinanet.box_suppression import Boxes, suppress_many
from retinanet.overlaps import Ints

# Up to this number of boxes, comparing all pairs in torchvision is faster.
FEW = 2500


def suppress_sorted(boxes: Tensor, threshold: float) -> Tensor:
    """Find the boxes that greedy suppression keeps: a box is dropped if its IoU with a better kept box is too high.

    The result equals that of ``torchvision.ops.nms``, which compares every kept box with all boxes after it. Here only
    boxes of similar size and position are compared (:mod:`retinanet.overlaps`). On the CPU this takes one thread.

    Args:
        boxes: float ``(n, 4)`` ``xyxy``, finite, best first, on any device.
        threshold: IoU above which the worse of two boxes is dropped.

    Returns:
        int64 positions of the kept boxes, in ascending order, on the device of ``boxes``.
    """
    if boxes.device.type != "cpu" or len(boxes) <= FEW or not 0 < threshold < 1:
        scores = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
        kept: Tensor = nms(boxes, scores, threshold)
        return kept
    return torch.from_numpy(suppress_many(boxes.numpy(), threshold, FEW, _suppress_few))


def _suppress_few(boxes: Boxes, threshold: float) -> Ints:
    kept: Ints = suppress_sorted(torch.from_numpy(boxes), threshold).numpy()
    return kept
