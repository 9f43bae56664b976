"""Non-maximum suppression in O(n log n), with the results of ``torchvision.ops.nms``."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import nms

from retinanet.overlaps import Bools, BoxIndex, Floats, Ints, PairRanges, shared_area

# Up to this number of boxes, comparing all pairs is faster.
FEW = 2500

# Largest number of pairs per box that are resolved at once. With more, the better half of the boxes is suppressed
# first, and it drops most of the others. The number is estimated from a sample of the boxes.
_PAIRS, _SAMPLE = 16, 500

Boxes = npt.NDArray[np.floating]


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
    return torch.from_numpy(_kept(boxes.numpy(), threshold))


def _kept(boxes: Boxes, threshold: float) -> Ints:
    count = len(boxes)
    if count <= FEW:
        return suppress_sorted(torch.from_numpy(boxes), threshold).numpy()
    index = BoxIndex(boxes.astype(np.float64), threshold)
    sample = boxes[:: count // _SAMPLE + 1].astype(np.float64)
    if index.search(sample).total <= _PAIRS * len(sample):
        pairs = index.search(boxes.astype(np.float64))
        if pairs.total <= 2 * _PAIRS * count:
            return np.flatnonzero(_resolve(boxes, pairs, threshold))
    half = count // 2
    best, worse = _kept(boxes[:half], threshold), boxes[half:]
    free = np.ones(len(worse), dtype=np.bool_)
    pairs = BoxIndex(worse.astype(np.float64), threshold).search(boxes[best].astype(np.float64))
    for first, second in pairs.chunks():
        free[second[_overlap(boxes[best[first]], worse[second]) > threshold]] = False
    rest = half + np.flatnonzero(free)
    return np.concatenate([best, rest[_kept(boxes[rest], threshold)]])


def _resolve(boxes: Boxes, pairs: PairRanges, threshold: float) -> Bools:
    """Mark the kept boxes, bool ``(n,)``."""
    count = len(boxes)
    keys = []
    for first, second in pairs.chunks():
        once = first < second  # each pair of two boxes is found twice, and each box is paired with itself
        better, worse = first[once], second[once]
        too_high = _overlap(boxes[better], boxes[worse]) > threshold
        keys.append(better[too_high] * count + worse[too_high])
    better, worse = np.divmod(np.sort(np.concatenate([*keys, np.zeros(0, dtype=np.int64)])), count)
    keep = np.ones(count, dtype=np.bool_)
    flags = memoryview(keep)  # type: ignore[arg-type]  # faster than indexing the array
    starts = np.flatnonzero(np.diff(better, prepend=-1))
    for box, (start, end) in zip(better[starts].tolist(), pairwise([*starts.tolist(), len(worse)]), strict=True):
        if flags[box]:
            keep[worse[start:end]] = False
    return keep


def _overlap(a: Boxes, b: Boxes) -> Floats:
    """Compute the IoU of each box of ``a`` with its partner in ``b`` as ``torchvision.ops.nms`` does."""
    shared = shared_area(a, b)
    areas, other_areas = ((c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]) for c in (a, b))
    return (shared / (areas + other_areas - shared)).astype(np.float64)
