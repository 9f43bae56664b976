"""Run a detector over a dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from retinanet.data.dataset import Dataset
from retinanet.data.loader import evaluation_loader
from retinanet.detect.detector import Detector
from retinanet.evaluation.coco_ap import Predictions


def predict(
    detector: Detector,
    dataset: Dataset,
    progress: Callable[[int], object] = lambda images: None,
    unreadable: dict[int, str] | None = None,
) -> Predictions:
    """Detect objects in every image of ``dataset``, with boxes in pixels of the original images.

    Args:
        detector: its classes must be those of the dataset, see :meth:`Dataset.with_classes`.
        dataset: the images.
        progress: called with the number of images just finished.
        unreadable: if given, collects the position and the error message of each image that cannot be read.

    Raises:
        DataError: an image cannot be read and ``unreadable`` is not given.
    """
    images, boxes, scores, labels = [], [], [], []
    for samples in evaluation_loader(dataset, detector.info.config.data, unreadable=unreadable):
        found = detector.detect_scaled([sample.image for sample in samples])
        for sample, detections in zip(samples, found, strict=True):
            height, width = sample.image.shape[-2:]
            factors = torch.tensor([sample.size[0] / width, sample.size[1] / height] * 2)
            images.append(np.full(len(detections.scores), sample.index, dtype=np.int64))
            boxes.append((detections.boxes * factors).numpy())
            scores.append(detections.scores.numpy())
            labels.append(detections.labels.numpy())
        progress(len(samples))
    order = np.argsort(np.concatenate(images), kind="stable")  # the loader groups images by size
    return Predictions(*(np.concatenate(column)[order] for column in (images, boxes, scores, labels)))
