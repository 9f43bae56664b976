"""Average precision as the Pascal VOC challenges measured it: at IoU 0.5, in both of their versions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.evaluation.coco_ap import Predictions

_IOU = 0.5


def evaluate_voc(dataset: Dataset, predictions: Predictions) -> dict[str, Any]:
    """Pascal VOC's average precision of ``predictions``, by the rule of its development kit.

    Best score first, each detection goes to the object of its class that it overlaps most. At an IoU of 0.5 or more it
    is right if it is the first there, and wrong if another was; at less it is wrong. One that goes to an ignore region
    (a difficult object) counts neither way. All detections count, not the best 100 of an image.

    The kit's boxes include their last pixel, so it adds 1 to widths and heights. Boxes here are half-open, which the
    reader makes of the challenge's own files: the same sides without adding anything.

    Returns:
        ``mAP11``, the mean over the classes with objects of the 11-point version (VOC2007), ``mAP`` of the area under
        the curve (VOC2010 and later), and both for each class in ``per_class``: ``{name: {"AP11": …, "AP": …}}``;
        the means are −1 if there is no object.
    """
    overlaps, targets = _best(dataset, predictions)
    per_class = {}
    for label, name in enumerate(dataset.classes):
        objects = int(((dataset.labels == label) & ~dataset.ignore).sum())
        if objects:
            mine = np.flatnonzero(predictions.labels == label)
            mine = mine[np.argsort(-predictions.scores[mine], kind="stable")]
            right, counted = _verdicts(overlaps[mine], targets[mine], dataset.ignore)
            found, wrong = np.cumsum(right[counted], dtype=np.int64), np.cumsum(~right[counted], dtype=np.int64)
            per_class[name] = {"AP11": eleven_points(found, wrong, objects), "AP": area(found, wrong, objects)}
    means = {f"m{key}": float(np.mean([row[key] for row in per_class.values()] or [-1])) for key in ("AP11", "AP")}
    return {**means, "per_class": per_class}


def eleven_points(found: npt.NDArray[np.int64], wrong: npt.NDArray[np.int64], objects: int) -> float:
    """Mean over the recalls 0, 0.1, … 1 of the best precision at that recall or more.

    Args:
        found: ``(D,)``, objects found by the best 1, 2, … D detections.
        wrong: ``(D,)``, how many of those are wrong.
        objects: how many there are.
    """
    precision = found / np.maximum(found + wrong, 1)
    # In whole numbers: 3 of 10 reach the recall 0.3, whatever floating point makes of 0.3.
    return float(np.mean([precision[found * 10 >= tenth * objects].max(initial=0) for tenth in range(11)]))


def area(found: npt.NDArray[np.int64], wrong: npt.NDArray[np.int64], objects: int) -> float:
    """Area under the precision–recall curve, with precision made to fall; arguments as of :func:`eleven_points`."""
    precision = found / np.maximum(found + wrong, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(found, prepend=0)).sum() / objects)


def _best(dataset: Dataset, predictions: Predictions) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """For each detection its largest IoU with a box of its class, and that box's row in the dataset; else 0 and −1."""
    overlaps = np.zeros(len(predictions.labels))
    targets = np.full(len(predictions.labels), -1, dtype=np.int64)
    order = np.argsort(predictions.images, kind="stable")
    starts = np.searchsorted(predictions.images[order], np.arange(len(dataset) + 1))
    for image in dataset:
        mine, rows = order[starts[image] : starts[image + 1]], dataset.rows(image)
        labels = dataset.labels[rows]
        if not len(mine) or not len(labels):
            continue
        found, boxes = (torch.from_numpy(b.astype(np.float64)) for b in (predictions.boxes[mine], dataset.boxes[rows]))
        iou = box_iou(found, boxes).numpy()  # (D, G)
        iou[(labels != predictions.labels[mine][:, None]) & (labels != NO_CLASS)] = 0
        best = iou.argmax(axis=1)
        overlaps[mine] = iou[np.arange(len(mine)), best]
        targets[mine] = np.where(overlaps[mine] > 0, rows.start + best, -1)
    return overlaps, targets


def _verdicts(
    overlaps: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], ignore: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which detections of a class, best score first, are right, and which count at all."""
    reached = np.flatnonzero(overlaps >= _IOU)
    to_ignore = ignore[targets[reached]]
    counted = np.ones(len(overlaps), dtype=np.bool_)
    counted[reached[to_ignore]] = False
    claims = reached[~to_ignore]
    _, first = np.unique(targets[claims], return_index=True)
    right = np.zeros(len(overlaps), dtype=np.bool_)
    right[claims[first]] = True
    return right, counted
