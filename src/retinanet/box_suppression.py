"""Non-maximum suppression in O(n log n), with the results of ``torchvision.ops.nms``. NumPy, no torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from retinanet.overlaps import Bools, BoxIndex, Floats, Ints, PairRanges, shared_area

# Up to this number of boxes, comparing all pairs in NumPy is faster.
FEW = 300

# Largest number of pairs per box that are resolved at once. With more, the better half of the boxes is suppressed
# first, and it drops most of the others. The number is estimated from a sample of the boxes.
_PAIRS, _SAMPLE = 16, 500

Boxes = npt.NDArray[np.floating]


def suppress_boxes(boxes: Boxes, threshold: float) -> Ints:
    """Find the boxes that greedy suppression keeps: a box is dropped if its IoU with a better kept box is too high.

    Args:
        boxes: float ``(n, 4)`` ``xyxy``, finite, best first.
        threshold: IoU above which the worse of two boxes is dropped, above 0.

    Returns:
        int64 positions of the kept boxes, in ascending order.
    """
    if threshold >= 1:
        return np.arange(len(boxes))  # no IoU is above 1
    return suppress_many(boxes, threshold, FEW, suppress_few)


def suppress_few(boxes: Boxes, threshold: float) -> Ints:
    """Apply :func:`suppress_boxes` by comparing all pairs: O(n²) time and memory."""
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top)
    width = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    height = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    shared = np.maximum(width, 0) * np.maximum(height, 0)  # (n, n)
    with np.errstate(invalid="ignore"):  # boxes without area: 0 / 0 is NaN, and NaN is not above the threshold
        too_high = shared / (area[:, None] + area - shared) > threshold
    better, worse = np.nonzero(np.triu(too_high, 1))
    return np.flatnonzero(_kept(len(boxes), better, worse))


def suppress_many(boxes: Boxes, threshold: float, few: int, suppress_few: Callable[[Boxes, float], Ints]) -> Ints:
    """Apply :func:`suppress_boxes` by comparing only boxes of similar size and position, see ``overlaps.py``.

    Args:
        boxes: see :func:`suppress_boxes`.
        threshold: above 0 and below 1.
        few: up to this number of boxes, ``suppress_few`` is faster.
        suppress_few: a function with the same result.
    """
    count = len(boxes)
    if count <= few:
        return suppress_few(boxes, threshold)
    index = BoxIndex(boxes.astype(np.float64), threshold)
    sample = boxes[:: count // _SAMPLE + 1].astype(np.float64)
    if index.search(sample).total <= _PAIRS * len(sample):
        pairs = index.search(boxes.astype(np.float64))
        if pairs.total <= 2 * _PAIRS * count:
            return np.flatnonzero(_resolve(boxes, pairs, threshold))
    half = count // 2
    best, worse = suppress_many(boxes[:half], threshold, few, suppress_few), boxes[half:]
    free = np.ones(len(worse), dtype=np.bool_)
    pairs = BoxIndex(worse.astype(np.float64), threshold).search(boxes[best].astype(np.float64))
    for first, second in pairs.chunks():
        free[second[_overlap(boxes[best[first]], worse[second]) > threshold]] = False
    rest = half + np.flatnonzero(free)
    return np.concatenate([best, rest[suppress_many(boxes[rest], threshold, few, suppress_few)]])


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
    return _kept(count, better, worse)


def _kept(count: int, better: Ints, worse: Ints) -> Bools:
    """Mark the kept boxes, bool ``(n,)``, of pairs with too high an IoU, sorted by the better box."""
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
