"""Other ways to merge the detections of tiles, for comparison: suppression of everything, and merging of boxes (NMM).

They follow the descriptions in SAHI's documentation. All compare boxes of one class, of whatever tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from retinanet.box_suppression import kept_of_pairs
from retinanet.detections import Detections
from retinanet.overlaps import BoxIndex, pair_iou, shared_area

Metric = Literal["iou", "ios"]
Ints = npt.NDArray[np.int64]


def unmerged(found: Detections) -> Detections:
    """All detections of all tiles."""
    return _of_image(found.take(np.argsort(-found.scores, kind="stable")))


def nms(found: Detections, metric: Metric = "iou", threshold: float = 0.5) -> Detections:
    """Drop a detection if a better one of its class overlaps it by more than ``threshold``."""
    ordered = found.take(np.argsort(-found.scores, kind="stable"))
    better, worse = matching_pairs(ordered, metric, threshold)
    return _of_image(ordered.take(kept_of_pairs(len(ordered), better, worse)))


def greedy_nmm(found: Detections, metric: Metric = "ios", threshold: float = 0.5) -> Detections:
    """Replace a detection and all worse ones that overlap it by the box around them, with the best score."""
    ordered = found.take(np.argsort(-found.scores, kind="stable"))
    boxes, alive = ordered.boxes.copy(), np.ones(len(ordered), dtype=np.bool_)
    for box, others in _groups(*matching_pairs(ordered, metric, threshold)):
        if not alive[box]:
            continue
        for other in others[alive[others]].tolist():
            if _overlap(boxes[box], ordered.boxes[other], metric) > threshold:
                boxes[box] = _around(boxes[box], ordered.boxes[other])
                alive[other] = False
    merged = Detections.of_one_image(boxes, ordered.scores, ordered.labels)
    return merged.take(alive)


def nmm(found: Detections, metric: Metric = "ios", threshold: float = 0.5) -> Detections:
    """As :func:`greedy_nmm`, but detections that overlap merged ones are merged, too."""
    ordered = found.take(np.argsort(-found.scores, kind="stable"))
    owner = np.full(len(ordered), -1)
    for box, others in _groups(*matching_pairs(ordered, metric, threshold)):
        root = box if owner[box] < 0 else owner[box]
        free = others[(owner[others] < 0) & (others != root)]
        owner[free] = root
    boxes = ordered.boxes.copy()
    for other in np.flatnonzero(owner >= 0).tolist():
        if _overlap(boxes[owner[other]], ordered.boxes[other], metric) > threshold:
            boxes[owner[other]] = _around(boxes[owner[other]], ordered.boxes[other])
    merged = Detections.of_one_image(boxes, ordered.scores, ordered.labels)
    return merged.take(owner < 0)


def matching_pairs(ordered: Detections, metric: Metric, threshold: float) -> tuple[Ints, Ints]:
    """Find the pairs of a class that overlap by more than ``threshold``: the better and the worse, sorted."""
    boxes = ordered.boxes.astype(np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    none = np.zeros(0, dtype=np.int64)
    keys = [none]
    pairs = BoxIndex(boxes, threshold, ordered.labels).search(boxes, ordered.labels, covered=metric == "ios")
    for first, second in pairs.chunks():
        if metric == "iou":
            overlap = pair_iou(boxes[first], boxes[second])
        else:
            overlap = shared_area(boxes[first], boxes[second]) / np.minimum(areas[first], areas[second])
        matched = (overlap > threshold) & (first != second)
        low, high = np.minimum(first, second)[matched], np.maximum(first, second)[matched]
        keys.append(low * len(boxes) + high)
    better, worse = np.divmod(np.unique(np.concatenate(keys)), max(1, len(boxes)))
    return better, worse


def _groups(better: Ints, worse: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each better box with the worse boxes that match it, best first."""
    starts = np.flatnonzero(np.diff(better, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(better)]):
        yield int(better[start]), worse[start:end]


def _overlap(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating], metric: Metric) -> float:
    if metric == "iou":
        return float(pair_iou(a[None].astype(np.float64), b[None].astype(np.float64))[0])
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return float(shared_area(a[None], b[None])[0]) / min(areas)


def _around(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.concatenate([np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])])


def _of_image(found: Detections) -> Detections:
    return Detections.of_one_image(found.boxes, found.scores, found.labels)
