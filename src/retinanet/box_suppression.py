"""Non-maximum suppression in O(n log n), with the results of ``torchvision.ops.nms``. NumPy, no torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from retinanet.overlaps import Bools, BoxIndex, Floats, Ints, PairRanges, shared_area

# Up to this number of boxes, or of kept boxes, comparing each box with all kept boxes is faster.
_FEW = 300

# Boxes that are compared with the kept boxes at once: at first, and at most.
_FIRST_BLOCK, _LARGEST_BLOCK = 64, 512

# Largest number of pairs per box that are resolved at once. With more, the better half of the boxes is suppressed
# first, and it drops most of the others. The number is estimated from a sample of the boxes.
_PAIRS, _SAMPLE = 16, 500

Boxes = npt.NDArray[np.floating]


def suppress_boxes(boxes: Boxes, threshold: float, most: int | None = None) -> Ints:
    """Find the boxes that greedy suppression keeps: a box is dropped if its IoU with a better kept box is too high.

    Args:
        boxes: float ``(n, 4)`` ``xyxy``, finite, best first.
        threshold: IoU above which the worse of two boxes is dropped, above 0.
        most: only the first ``most`` kept boxes are wanted; ``None``: all.

    Returns:
        int64 positions of the kept boxes, in ascending order.
    """
    count = len(boxes)
    most = count if most is None else most
    if threshold >= 1:
        return np.arange(min(count, most))  # no IoU is above 1
    kept = suppress_in_blocks(boxes, threshold, min(most, _FEW + 1))
    if len(kept) <= _FEW or len(kept) >= most:
        return kept[:most]
    # Worse boxes do not affect the result for better ones.
    taken = min(count, 2 * most)
    while True:
        kept = suppress_many(boxes[:taken], threshold, _FEW, suppress_in_blocks)
        if len(kept) >= most or taken == count:
            return kept[:most]
        taken = min(count, 2 * taken)


def suppress_in_blocks(boxes: Boxes, threshold: float, most: int | None = None) -> Ints:
    """Apply :func:`suppress_boxes` by comparing each box with all kept boxes; the last block may exceed ``most``."""
    kept = np.zeros(0, dtype=np.int64)
    begin, block = 0, _FIRST_BLOCK
    while begin < len(boxes) and (most is None or len(kept) < most):
        own = np.arange(begin, min(begin + block, len(boxes)))
        own = own[~_overlapping(boxes[kept], boxes[own], threshold).any(axis=0)]
        better, worse = np.nonzero(np.triu(_overlapping(boxes[own], boxes[own], threshold), 1))
        kept = np.concatenate([kept, own[kept_of_pairs(len(own), better, worse)]])
        begin, block = begin + block, min(2 * block, _LARGEST_BLOCK)
    return kept


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
    return kept_of_pairs(count, better, worse)


def kept_of_pairs(count: int, better: Ints, worse: Ints) -> Bools:
    """Mark the boxes that greedy suppression keeps, bool ``(count,)``, if boxes are sorted, best first.

    Args:
        count: number of boxes.
        better: ``(P,)``, the better box of each pair of boxes that exclude each other, ascending.
        worse: ``(P,)``, the other box of each pair.
    """
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


def _overlapping(a: Boxes, b: Boxes, threshold: float) -> Bools:
    """Whether the IoU of each box of ``a`` with each box of ``b`` is above ``threshold``: bool ``(len(a), len(b))``."""
    (left, top, right, bottom), others = a.T[:, :, None], b.T.copy()  # (4, n, 1) and (4, m)
    width = np.minimum(right, others[2]) - np.maximum(left, others[0])  # (n, m)
    height = np.minimum(bottom, others[3]) - np.maximum(top, others[1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = (right - left) * (bottom - top) + (others[2] - others[0]) * (others[3] - others[1]) - shared
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, which is not above the threshold
        above: Bools = shared / union > threshold
    return above
