"""Compare the outputs and the detections of an exported file with those of its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retinanet.detections import Detections
from retinanet.overlaps import BoxIndex, pair_iou

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Tolerance:
    """The differences that a verification accepts.

    Attributes:
        raw: largest difference of a logit or delta, for values up to 1; in proportion for larger ones.
        box: a corner of a detection may differ by this many pixels in images of up to 1,000 pixels; in proportion in
            larger ones.
        score: a score may differ by this much.
        differing: largest fraction of detections that differ by more, or that only one side has.
    """

    raw: float
    box: float
    score: float
    differing: float


# float32: rounding in another order of operations. It also decides between candidates with nearly equal scores, so that
# suppression may keep another one; an untrained ConvNeXt has many of these. The rest: reduced precision moves boxes and
# scores, and detections near the threshold come and go; whether that matters is measured by AP.
EXACT = Tolerance(raw=1e-4, box=0.01, score=1e-5, differing=0.01)
REDUCED = Tolerance(raw=np.inf, box=np.inf, score=0.25, differing=0.15)

# Two detections can be the same object if the IoU of their boxes is at least this.
_SAME = 0.5

# Rounding error of a score near a threshold.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Agreement:
    """Differences on some images, at most or in all.

    Attributes:
        images: number of images.
        detections: detections of the model.
        differing: detections that differ by more than the tolerance, or that only one side has.
        raw: largest difference of a logit or delta, relative to the larger of 1 and the value; ``None`` if the file
            has no such outputs.
        box: largest difference of a corner of the other detections in pixels, relative to 1,000 pixels if the image is
            larger.
        score: largest difference of a score of the other detections.
    """

    images: int = 0
    detections: int = 0
    differing: int = 0
    raw: float | None = None
    box: float = 0.0
    score: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        raw = [each for each in (self.raw, other.raw) if each is not None]
        return Agreement(
            self.images + other.images,
            self.detections + other.detections,
            self.differing + other.differing,
            max(raw) if raw else None,
            max(self.box, other.box),
            max(self.score, other.score),
        )

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether no difference is larger than ``tolerance``; NaN is larger than everything."""
        return (self.raw is None or self.raw <= tolerance.raw) and (
            self.differing <= tolerance.differing * max(1, self.detections)
        )


def compare_raw(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """Return the largest difference of outputs, relative to the larger of 1 and the value.

    It is infinite if the shapes differ or a value is NaN.
    """
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return float("inf")
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.size:
            a, b = a.astype(np.float64), b.astype(np.float64)
            difference = float((np.abs(a - b) / np.maximum(1, np.abs(a))).max())
            largest = max(largest, np.inf if np.isnan(difference) else difference)
    return largest


def compare_detections(
    ours: Detections, theirs: Detections, size: tuple[int, int], tolerance: Tolerance, floor: float = 0.0
) -> Agreement:
    """Match the detections of one image, and return the differences.

    Detections of one class are paired if their IoU is at least 0.5, first those with the highest IoU. A detection of
    only one side is not counted if its score is within a rounding error of the threshold ``floor``, or of the lowest
    score of the other side if that side has reached its limit.

    Args:
        ours: detections of the model.
        theirs: detections of the file.
        size: ``(height, width)`` of the image.
        tolerance: differences of a box or score up to which two detections are equal.
        floor: score threshold of both.
    """
    unit = max(1.0, max(size) / 1000)
    pairs = _pairs(ours, theirs)
    mine, other = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    box = np.abs(ours.boxes[mine].astype(np.float64) - theirs.boxes[other]).max(axis=1, initial=0.0) / unit
    score = np.abs(ours.scores[mine].astype(np.float64) - theirs.scores[other])
    equal = (box <= tolerance.box) & (score <= tolerance.score)
    alone = [np.delete(ours.scores, mine), np.delete(theirs.scores, other)]
    floors = [_lowest(theirs, floor), _lowest(ours, floor)]
    unmatched = sum(int((scores > low + _ROUNDING).sum()) for scores, low in zip(alone, floors, strict=True))
    differing = unmatched + int((~equal).sum())
    return Agreement(
        1, len(ours), differing, None, float(box[equal].max(initial=0.0)), float(score[equal].max(initial=0.0))
    )


def _pairs(ours: Detections, theirs: Detections) -> list[tuple[int, int]]:
    """Positions of the detections that are the same object on both sides."""
    boxes, others = ours.boxes.astype(np.float64), theirs.boxes.astype(np.float64)
    index = BoxIndex(others, _SAME, theirs.labels)
    found = [np.stack(part) for part in index.search(boxes, ours.labels).chunks()]
    first, second = np.concatenate([np.zeros((2, 0), dtype=np.int64), *found], axis=1)
    overlap = pair_iou(boxes[first], others[second])
    # Overlaps are rounded, because of two equal boxes of one side the score decides which is which.
    apart = np.abs(ours.scores[first].astype(np.float64) - theirs.scores[second])
    order = np.lexsort((apart, -overlap.round(4)))
    order = order[overlap[order] >= _SAME]
    taken, other_taken, pairs = set[int](), set[int](), []
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if i not in taken and j not in other_taken:
            taken.add(i)
            other_taken.add(j)
            pairs.append((i, j))
    return pairs


def _lowest(found: Detections, floor: float) -> float:
    """The score that a detection needs to be among ``found``."""
    return max(floor, float(found.scores.min())) if len(found.limited) and len(found) else floor
