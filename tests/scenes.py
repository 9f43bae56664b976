"""Random objects and detections with ties, ignore regions and crowding, and pycocotools' metrics of them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.data.dataset import NO_CLASS, Dataset, DatasetBuilder
from retinanet.detections import Detections

CLASSES = ("cat", "dog", "fox", "owl")


def random_truth(
    seed: int,
    images: int = 20,
    ignore: float = 0.15,
    everywhere: float = 0.0,
    most: int = 9,
    category_ids: tuple[int, ...] = (7, 3, 9, 1),
    scale: int = 1,
) -> Dataset:
    """Images of 200 × 160 pixels times ``scale``; there is no owl, and every fifth image is empty.

    ``ignore`` is the share of ignore regions, ``everywhere`` the share of those that are of no class.
    """
    rng = np.random.default_rng(seed)
    builder = DatasetBuilder("random", Path("/data"), CLASSES, category_ids)
    for image in range(images):
        builder.add_image(f"{image}.jpg", 200 * scale, 160 * scale, image_id=(image * 37) % 1009)
        for _ in range(0 if image % 5 == 0 else int(rng.integers(1, most))):
            x, y = rng.integers(0, 150), rng.integers(0, 120)
            box = (float(x), float(y), float(x + rng.integers(4, 130)), float(y + rng.integers(4, 100)))
            region = rng.uniform() < ignore
            label = NO_CLASS if region and rng.uniform() < everywhere else int(rng.integers(0, 3))
            box = (box[0] * scale, box[1] * scale, min(200.0, box[2]) * scale, min(160.0, box[3]) * scale)
            area = (box[2] - box[0]) * (box[3] - box[1]) * float(rng.uniform(0.5, 1))
            builder.add_box(box, label, "", ignore=bool(region), area=area)
    return builder.build()


def random_detections(dataset: Dataset, seed: int, noise: int = 6) -> Detections:
    """Detections of the objects, precise, imprecise, twice or as another class, and noise; many scores are equal."""
    rng = np.random.default_rng(seed + 1000)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    rows = np.flatnonzero(rng.uniform(size=2 * len(owner)) < 0.6) % max(1, len(owner))
    boxes = dataset.boxes[rows]
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
    boxes = boxes + rng.normal(0, 0.1, boxes.shape) * sides
    other = rng.integers(0, 4, len(rows))
    labels = np.where((rng.uniform(size=len(rows)) < 0.75) & (dataset.labels[rows] >= 0), dataset.labels[rows], other)
    count = noise * len(dataset)
    corners = rng.uniform(0, [150, 120], (count, 2))
    boxes = np.concatenate([boxes, np.concatenate([corners, corners + rng.uniform(4, 60, (count, 2))], axis=1)])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = np.concatenate([rng.uniform(0.2, 1, len(rows)), rng.uniform(0, 0.7, count)])
    order = rng.permutation(len(boxes))
    return Detections(
        images=np.concatenate([owner[rows], rng.integers(0, len(dataset), count)])[order].astype(np.int64),
        boxes=boxes[order].astype(np.float32),
        scores=scores[order].round(2).astype(np.float32),
        labels=np.concatenate([labels, rng.integers(0, 4, count)])[order].astype(np.int64),
    )


def apart(predictions: Detections) -> Detections:
    """The same detections with different scores."""
    return replace(predictions, scores=predictions.scores + np.arange(len(predictions.scores)) * 1e-7)


def nothing() -> Detections:
    none = np.zeros(0, dtype=np.int64)
    return Detections(none, np.zeros((0, 4), dtype=np.float32), none.astype(np.float32), none)


def repeated(dataset: Dataset, predictions: Detections, times: npt.NDArray[np.int64]) -> tuple[Dataset, Detections]:
    """The dataset with ``times[i]`` copies of image ``i``, each with an id of its own and its detections.

    Ids keep the order of the images. Copies of detections with equal scores in one image take turns.
    """
    indices = np.repeat(np.arange(len(dataset)), times)
    ids = dataset.image_ids[indices] * 1000 + np.arange(len(indices))
    rows = [np.flatnonzero(predictions.images == i) for i in indices]
    taken = np.concatenate(rows)
    images = np.repeat(np.arange(len(indices)), [len(r) for r in rows])
    return replace(dataset.subset(indices), image_ids=ids), Detections(
        images, predictions.boxes[taken], predictions.scores[taken], predictions.labels[taken]
    )


def pycoco(
    dataset: Dataset,
    predictions: Detections,
    areas: npt.NDArray[np.float64] | None = None,
    found_areas: npt.NDArray[np.float64] | None = None,
    ranges: list[tuple[float, float]] | None = None,
    limits: tuple[int, ...] = (1, 10, 100),
) -> COCOeval:
    """pycocotools' evaluation, with other areas of objects and detections, area ranges and limits, if given."""
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    objects: list[dict[str, Any]] = []
    for i, (x1, y1, x2, y2) in enumerate(dataset.boxes.astype(np.float64).tolist()):
        everywhere = dataset.labels[i] == NO_CLASS
        for category in dataset.category_ids if everywhere else [dataset.category_ids[dataset.labels[i]]]:
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": int(dataset.image_ids[owner[i]]),
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(dataset.areas[i] if areas is None else areas[i]),
                    "iscrowd": int(dataset.ignore[i]),
                }
            )
    found = []
    for i, (x1, y1, x2, y2) in enumerate(predictions.boxes.astype(np.float64).tolist()):
        row = {
            "image_id": int(dataset.image_ids[predictions.images[i]]),
            "category_id": dataset.category_ids[predictions.labels[i]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(predictions.scores[i]),
        }
        found.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": int(i)} for i in dataset.image_ids],
            "categories": [{"id": k, "name": c} for k, c in zip(dataset.category_ids, dataset.classes, strict=True)],
            "annotations": objects,
        }
        truth.createIndex()
        results = truth.loadRes(found)
        if found_areas is not None:  # ids count from 1, in the order given
            for number, area in enumerate(found_areas.tolist(), start=1):
                results.anns[number]["area"] = area
        evaluation = COCOeval(truth, results, "bbox")
        if ranges is not None:
            evaluation.params.areaRng = [list(bounds) for bounds in ranges]
            evaluation.params.areaRngLbl = [str(bounds) for bounds in ranges]
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def dense_reference(dataset: Dataset, predictions: Detections, limit: int) -> dict[str, float]:
    """pycocotools' metrics at ``maxDets = [1, 10, 100, limit]``, by the names of ``DENSE_SUMMARY``.

    They are from its arrays, because its summary is only for a limit of 100.
    """
    found = pycoco(dataset, predictions, limits=(1, 10, 100, limit)).eval
    precision, recall = found["precision"], found["recall"]  # (T, 101, K, areas, limits), (T, K, areas, limits)
    parts = {
        "AP": precision[:, :, :, 0, 3],
        "AP50": precision[0, :, :, 0, 3],
        "AP75": precision[5, :, :, 0, 3],
        "APs": precision[:, :, :, 1, 3],
        "APm": precision[:, :, :, 2, 3],
        "APl": precision[:, :, :, 3, 3],
        "AP@100": precision[:, :, :, 0, 2],
        "AP50@100": precision[0, :, :, 0, 2],
        "AR1": recall[:, :, 0, 0],
        "AR10": recall[:, :, 0, 1],
        "AR100": recall[:, :, 0, 2],
        "AR": recall[:, :, 0, 3],
        "ARs": recall[:, :, 1, 3],
        "ARm": recall[:, :, 2, 3],
        "ARl": recall[:, :, 3, 3],
    }
    return {name: float(part[part > -1].mean()) if (part > -1).any() else -1.0 for name, part in parts.items()}


def dense_truth(seed: int = 0, images: int = 3, most: int = 700) -> Dataset:
    """Like :func:`random_truth`, with hundreds of objects in most images, and more than 100 of a class in some."""
    dataset = random_truth(seed, images=images, most=most, scale=3)
    assert np.bincount(np.repeat(np.arange(images), np.diff(dataset.offsets))).max() > 200
    return dataset


def reference(dataset: Dataset, predictions: Detections) -> tuple[list[float], dict[str, dict[str, float]]]:
    """pycocotools' 12 metrics, and AP and AP50 of each class with objects."""
    evaluation = pycoco(dataset, predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    values = class_aps(evaluation, dataset)
    known = [(k, name) for k, name in enumerate(dataset.classes) if not np.isnan(values[0, k])]
    return evaluation.stats.tolist(), {n: {"AP": values[:, k].mean(), "AP50": values[0, k]} for k, n in known}


def class_aps(evaluation: COCOeval, dataset: Dataset, area: int = 0) -> npt.NDArray[np.float64]:
    """AP of each IoU threshold and class of ``dataset``, ``(T, K)``; NaN without objects."""
    precision = evaluation.eval["precision"][:, :, :, area, -1]  # (T, 101, categories in order of their ids)
    values = np.where((precision > -1).all(axis=1), precision.mean(axis=1), np.nan)
    order = [sorted(dataset.category_ids).index(category) for category in dataset.category_ids]
    result: npt.NDArray[np.float64] = values[:, order]
    return result


def naive_iou(a: Any, b: Any) -> float:
    """Compute the IoU in plain Python."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = float(width * height)
    return shared / (float((a[2] - a[0]) * (a[3] - a[1])) + float((b[2] - b[0]) * (b[3] - b[1])) - shared)


def perfect(dataset: Dataset) -> Detections:
    keep = ~dataset.ignore
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    return Detections(
        owner[keep].astype(np.int64),
        dataset.boxes[keep],
        np.full(int(keep.sum()), 0.9, dtype=np.float32),
        dataset.labels[keep].astype(np.int64),
    )


def one_cat() -> tuple[Dataset, Detections]:
    builder = DatasetBuilder("one", Path("/data"), ("cat",))
    builder.add_image("0.jpg", 200, 200)
    builder.add_box((10, 10, 60, 60), 0, "")
    box = np.array([[10, 10, 60, 60]], dtype=np.float32)
    return builder.build(), Detections(np.array([0]), box, np.array([0.8], np.float32), np.array([0]))
