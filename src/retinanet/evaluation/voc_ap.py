"""Average precision at IoU 0.5 as in the Pascal VOC challenges, in the versions of VOC2007 and VOC2010."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.detections import Detections
from retinanet.overlaps import BoxIndex, pair_iou

_IOU = 0.5


def voc_metrics(dataset: Dataset, predictions: Detections) -> dict[str, Any]:
    """Compute Pascal VOC's average precision of ``predictions``, by the rules of the VOC development kit.

    Each detection, highest score first, is assigned to the object of its class with the highest IoU. If that IoU is at
    least 0.5, the first detection assigned to an object is a true positive, and later ones are false positives.
    Detections with a lower IoU are false positives. A detection assigned to an ignore region (a difficult object) does
    not count. There is no limit on the detections per image.

    The kit's boxes include their last pixel, so it adds 1 to widths and heights. This package's boxes do not
    include their right and lower ends. The reader of VOC files converts the boxes, so widths and heights are equal.

    Returns:
        ``mAP11`` (11 points, VOC2007) and ``mAP`` (area under the curve, VOC2010 and later), the means over the classes
        with objects, −1 without objects; and ``per_class``, ``{name: {"AP11": …, "AP": …}}``.
    """
    overlaps, targets = _best_objects(dataset, predictions)
    per_class = {}
    for label, name in enumerate(dataset.classes):
        objects = int(((dataset.labels == label) & ~dataset.ignore).sum())
        if objects:
            mine = np.flatnonzero(predictions.labels == label)
            mine = mine[np.argsort(-predictions.scores[mine], kind="stable")]
            hits, counted = _true_positives(overlaps[mine], targets[mine], dataset.ignore)
            tp, fp = np.cumsum(hits[counted], dtype=np.int64), np.cumsum(~hits[counted], dtype=np.int64)
            per_class[name] = {"AP11": eleven_points(tp, fp, objects), "AP": area(tp, fp, objects)}
    means = {f"m{key}": float(np.mean([row[key] for row in per_class.values()] or [-1])) for key in ("AP11", "AP")}
    return {**means, "per_class": per_class}


def eleven_points(tp: npt.NDArray[np.int64], fp: npt.NDArray[np.int64], objects: int) -> float:
    """Average the highest precision at or above each of the recalls 0, 0.1, … 1.

    Args:
        tp: ``(D,)``, true positives among the 1, 2, … D detections with the highest scores.
        fp: ``(D,)``, false positives among them.
        objects: number of objects.
    """
    precision = tp / np.maximum(tp + fp, 1)
    # Compare integers, because 0.3 has no exact floating-point value: 3 of 10 objects must reach the recall 0.3.
    return float(np.mean([precision[tp * 10 >= tenth * objects].max(initial=0) for tenth in range(11)]))


def area(tp: npt.NDArray[np.int64], fp: npt.NDArray[np.int64], objects: int) -> float:
    """Compute the area under the monotone precision–recall curve; for the arguments see :func:`eleven_points`."""
    precision = tp / np.maximum(tp + fp, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(tp, prepend=0)).sum() / objects)


def _best_objects(dataset: Dataset, predictions: Detections) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Find the highest IoU of each detection with a box of its class, and the row of this box.

    Without an IoU of at least ``_IOU``, they are 0 and −1.
    """
    overlaps = np.zeros(len(predictions.labels))
    targets = np.full(len(predictions.labels), -1, dtype=np.int64)
    detected, boxes = predictions.boxes.astype(np.float64), dataset.boxes.astype(np.float64)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    for mine, row in BoxIndex(boxes, _IOU, owner).search(detected, predictions.images).chunks():
        same = (dataset.labels[row] == predictions.labels[mine]) | (dataset.labels[row] == NO_CLASS)
        mine, row = mine[same], row[same]
        ious = pair_iou(detected[mine], boxes[row])
        # the best pair of each detection comes last: the highest IoU, then the first box
        order = np.lexsort((-row, ious))
        mine, row, ious = mine[order], row[order], ious[order]
        last = len(mine) - 1 - np.unique(mine[::-1], return_index=True)[1]
        mine, row, ious = mine[last], row[last], ious[last]
        better = (ious >= _IOU) & ((ious > overlaps[mine]) | ((ious == overlaps[mine]) & (row < targets[mine])))
        overlaps[mine[better]], targets[mine[better]] = ious[better], row[better]
    return overlaps, targets


def _true_positives(
    overlaps: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], ignore: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Mark the true positives among the detections of a class, highest score first, and the detections that count."""
    reached = np.flatnonzero(overlaps >= _IOU)
    to_ignore = ignore[targets[reached]]
    counted = np.ones(len(overlaps), dtype=np.bool_)
    counted[reached[to_ignore]] = False
    claims = reached[~to_ignore]
    _, first = np.unique(targets[claims], return_index=True)
    hits = np.zeros(len(overlaps), dtype=np.bool_)
    hits[claims[first]] = True
    return hits, counted
