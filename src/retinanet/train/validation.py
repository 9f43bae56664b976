"""Measure the weights in training on val: each process a share of the images, merged so that each counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retinanet.config import Config
from retinanet.data.dataset import Dataset
from retinanet.detect.detector import Detector
from retinanet.detect.example_images import prediction_images, save_images
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import Predictions, coco_metrics
from retinanet.evaluation.predict import predict
from retinanet.model import RetinaNet
from retinanet.train.distributed import Processes
from retinanet.train.tracking import Image
from retinanet.zoo.weights import ModelInfo


def validate(
    model: RetinaNet, config: Config, val_set: Dataset, processes: Processes
) -> tuple[dict[str, Any], list[str]]:
    """COCO metrics of ``model`` on ``val_set``, and messages of images that could not be read and were left out.

    Every process gets the same result.

    Raises:
        DataError: no image can be read.
    """
    processes.same_buffers(model)
    detector = _detector(model, config, val_set)
    own = np.asarray(processes.share(range(len(val_set))))
    unreadable: dict[int, str] = {}
    try:
        found = predict(detector, val_set.subset(own), unreadable=unreadable) if len(own) else _nothing()
    finally:
        model.train()
    rows = np.column_stack([own[found.images], found.boxes, found.scores, found.labels]).astype(np.float64)
    rows = processes.gather_rows(rows)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    failed = dict(pair for part in processes.gather([(int(own[i]), m) for i, m in unreadable.items()]) for pair in part)
    kept = np.array([i for i in val_set if i not in failed], dtype=np.int64)
    if not len(kept):
        raise DataError(f"{val_set.name}: no image can be read any more; the first: {next(iter(failed.values()))}")
    predictions = Predictions(
        np.searchsorted(kept, rows[:, 0].astype(np.int64)),
        rows[:, 1:5].astype(np.float32),
        rows[:, 5].astype(np.float32),
        rows[:, 6].astype(np.int64),
    )
    read = val_set if len(kept) == len(val_set) else val_set.subset(kept)
    return coco_metrics(read, predictions).to_dict(), list(failed.values())


def draw_predictions(model: RetinaNet, config: Config, val_set: Dataset, folder: Path) -> dict[str, Image]:
    """Write the same few pictures of ``val_set`` each time, with what ``model`` finds, to ``folder``; returns them."""
    try:
        pictures = prediction_images(_detector(model, config, val_set), val_set)
    finally:
        model.train()
    save_images(folder, pictures)
    return pictures


def _detector(model: RetinaNet, config: Config, val_set: Dataset) -> Detector:
    info = ModelInfo.of(model, val_set.classes, config)
    return Detector(model, info, config.train.precision, str(next(model.parameters()).device))


def _nothing() -> Predictions:
    integers = np.zeros(0, dtype=np.int64)
    return Predictions(integers, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), integers)
