"""COCO average precision, computed by hotcoco."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.detections import Detections
from retinanet.evaluation.limits import COCO_LIMIT, counted

if TYPE_CHECKING:
    from hotcoco import COCOeval

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

# The metrics if all detections count: the same, COCO's AP of 100 detections, and the recall of all detections, AR.
DENSE_SUMMARY = (*SUMMARY[:6], "AP@100", "AP50@100", "AR1", "AR10", "AR100", "AR", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Metrics:
    """COCO's and Pascal VOC's metrics.

    Attributes:
        summary: the 12 COCO metrics by name (``SUMMARY``), 0–1; −1 where there is nothing to measure. If more than 100
            detections of an image and class count, ``DENSE_SUMMARY``: AR1, AR10, AR100 and the metrics with @100 count
            so many detections, all others count as many as ``AP``.
        per_class: ``AP``, ``AP50`` and the number of ``boxes`` of each class with objects.
        voc: the result of :func:`retinanet.evaluation.voc_ap.voc_metrics`; empty if it was not computed.
    """

    summary: dict[str, float]
    per_class: dict[str, dict[str, float]]
    voc: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to the form of ``metrics.json``."""
        return {**self.summary, "per_class": self.per_class} | ({"voc": self.voc} if self.voc else {})


def coco_results(detections: Detections, dataset: Dataset) -> list[dict[str, Any]]:
    """Convert to the content of a COCO results file, with the ids of ``dataset``."""
    return [
        {
            "image_id": int(image),
            "category_id": int(category),
            "bbox": [round(float(v), 3) for v in box],
            "score": round(float(score), 6),
        }
        for image, category, *box, score in coco_rows(detections, dataset)[:, [0, 6, 1, 2, 3, 4, 5]]
    ]


def coco_rows(detections: Detections, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Convert to rows ``(D, 7)``: image id, x, y, width, height, score, category id."""
    ids = dataset.image_ids[detections.images].astype(np.float64)
    categories = np.asarray(dataset.category_ids, dtype=np.float64)[detections.labels]
    boxes = detections.boxes.astype(np.float64)
    return np.column_stack([ids, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], detections.scores, categories])


def coco_metrics(dataset: Dataset, predictions: Detections, limit: int | None = None) -> Metrics:
    """Compute the COCO box metrics of ``predictions`` on ``dataset``.

    Ignore regions are treated as crowd regions. A detection mostly inside such a region is neither a true nor a false
    positive.

    Args:
        dataset: images and objects.
        predictions: detections with scores from 0 to 1.
        limit: how many detections of each image and class count, at least 100. Unset: see
            :func:`retinanet.evaluation.limits.counted`.
    """
    limit = counted(dataset) if limit is None else limit
    evaluation = coco_evaluation(dataset, predictions, limit)
    accumulated: dict[str, Any] = evaluation.eval or {}
    # The axes of precision are IoU thresholds, recall thresholds, classes, areas (all, small, medium, large) and
    # detection limits (1, 10, 100 and, if it is higher, ``limit``). The axis of recall thresholds is missing in recall.
    precision, recall = (np.asarray(accumulated[name]) for name in ("precision", "recall"))
    values = {name: precision[..., area, -1] for area, name in enumerate(("AP", "APs", "APm", "APl"))}
    values |= {"AP50": precision[0, ..., 0, -1], "AP75": precision[5, ..., 0, -1]}
    values |= {"AP@100": precision[..., 0, 2], "AP50@100": precision[0, ..., 0, 2]}
    values |= {name: recall[..., 0, k] for k, name in enumerate(("AR1", "AR10", "AR100"))}
    values |= {name: recall[..., area, -1] for area, name in enumerate(("AR", "ARs", "ARm", "ARl"))}
    names = DENSE_SUMMARY if limit > COCO_LIMIT else SUMMARY
    order = {category: k for k, category in enumerate(sorted(dataset.category_ids))}
    per_class = {}
    for name, category in zip(dataset.classes, dataset.category_ids, strict=True):
        curve = values["AP"][:, :, order[category]]
        boxes = int(((dataset.labels == dataset.classes.index(name)) & ~dataset.ignore).sum())
        if boxes:
            per_class[name] = {"AP": float(curve.mean()), "AP50": float(curve[0].mean()), "boxes": boxes}
    return Metrics({name: _mean(values[name]) for name in names}, per_class)


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Compute the mean without the values −1, which stand for classes without objects; −1 if there are no others."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def coco_evaluation(dataset: Dataset, predictions: Detections, limit: int = COCO_LIMIT) -> COCOeval:
    """Run hotcoco's evaluation of ``predictions`` on ``dataset``, up to ``accumulate``.

    The numbers of detections are 1, 10, 100 and, if it is higher, ``limit``.
    """
    from hotcoco import COCO, COCOeval

    images = [
        {"id": int(i), "width": int(w), "height": int(h), "file_name": ""}
        for i, (w, h) in zip(dataset.image_ids, dataset.sizes, strict=True)
    ]
    categories = [{"id": k, "name": name} for k, name in zip(dataset.category_ids, dataset.classes, strict=True)]
    # hotcoco needs a class for each box, so a copy of an ignore region without a class is added to every class.
    copies = np.where(dataset.labels == NO_CLASS, len(categories), 1)
    rows = np.repeat(np.arange(len(dataset.labels)), copies)
    labels = np.where(dataset.labels[rows] == NO_CLASS, _count_up(copies), dataset.labels[rows])
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[rows]
    xyxy = dataset.boxes[rows].astype(np.float64)
    truth = COCO.from_arrays(
        images,
        categories,
        dataset.image_ids[owner],
        np.asarray(dataset.category_ids, dtype=np.int64)[labels],
        np.column_stack([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]]),
        area=dataset.areas[rows].astype(np.float64),
        iscrowd=dataset.ignore[rows].astype(np.int64),
    )
    found = truth.load_res(coco_rows(predictions, dataset))
    evaluation = COCOeval(truth, found, "bbox")
    if limit > COCO_LIMIT:
        evaluation.params.max_dets = [1, 10, COCO_LIMIT, max(COCO_LIMIT + 1, min(limit, len(predictions)))]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _count_up(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Concatenate 0 … n − 1 for each n of ``lengths``."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
