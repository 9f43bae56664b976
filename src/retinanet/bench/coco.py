"""A COCO evaluation of random boxes for this package and pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.dataset import Dataset, DatasetBuilder
from retinanet.detections import Detections
from retinanet.evaluation.coco_ap import SUMMARY, coco_metrics, coco_rows

_CLASSES = 80
_SIDE = 640


def evaluation_sides(images: int, detections: int) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    """The evaluations of this package and of pycocotools on the same boxes. None: pycocotools is not installed."""
    rng = np.random.default_rng(0)
    builder = DatasetBuilder("random", Path("."), [f"class {i}" for i in range(_CLASSES)])
    found: list[np.ndarray[Any, Any]] = []
    for image in range(images):
        builder.add_image(f"{image}.jpg", _SIDE, _SIDE)
        boxes = _boxes(rng, 7)
        labels = rng.integers(0, _CLASSES, len(boxes))
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            builder.add_box(tuple(box), label, f"image {image}")
        near = np.repeat(boxes, 3, axis=0)
        near = near + rng.normal(0, 3, near.shape)
        others = _boxes(rng, detections - len(near))
        column = np.full((detections, 1), image)
        label = np.concatenate([np.repeat(labels, 3), rng.integers(0, _CLASSES, len(others))])[:, None]
        found.append(
            np.concatenate([column, np.concatenate([near, others]), rng.random((detections, 1)), label], axis=1)
        )
    dataset = builder.build()
    flat = np.concatenate(found)
    predictions = Detections(
        flat[:, 0].astype(np.int64),
        flat[:, 1:5].astype(np.float32),
        flat[:, 5].astype(np.float32),
        flat[:, 6].astype(np.int64),
    )
    theirs = _pycocotools(dataset, predictions)
    return lambda: coco_metrics(dataset, predictions), theirs


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    corner = rng.uniform(0, 0.7 * _SIDE, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 0.3 * _SIDE, (count, 2))], axis=1)


def _pycocotools(dataset: Dataset, predictions: Detections) -> Callable[[], Any] | None:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    size = dataset.boxes[:, 2:] - dataset.boxes[:, :2]
    annotations = [
        {
            "id": i + 1,
            "image_id": int(dataset.image_ids[owner[i]]),
            "category_id": int(dataset.labels[i]) + 1,
            "bbox": [*map(float, box[:2]), *map(float, size[i])],
            "area": float(dataset.areas[i]),
            "iscrowd": 0,
        }
        for i, box in enumerate(dataset.boxes)
    ]
    truth = {
        "info": {},
        "images": [{"id": int(i), "width": _SIDE, "height": _SIDE} for i in dataset.image_ids],
        "categories": [{"id": k, "name": name} for k, name in zip(dataset.category_ids, dataset.classes, strict=True)],
        "annotations": annotations,
    }
    columns = coco_rows(predictions, dataset)

    def run() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = truth
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(columns), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(SUMMARY, map(float, evaluation.stats), strict=True))

    return run
