"""Run a detector over a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retinanet.data.dataset import Dataset
from retinanet.data.loader import evaluation_loader
from retinanet.detection.detector import Detector
from retinanet.detections import Detections


def predict(
    detector: Detector,
    dataset: Dataset,
    progress: Callable[[int], object] = lambda images: None,
    unreadable: dict[int, str] | None = None,
) -> Detections:
    """Detect objects in every image of ``dataset``, with boxes in pixels of the original images.

    Args:
        detector: its classes must be those of the dataset, see :meth:`Dataset.with_classes`.
        dataset: the images.
        progress: called with the number of images just finished.
        unreadable: if given, collects the position and the error message of each image that cannot be read.

    Raises:
        DataError: an image cannot be read and ``unreadable`` is not given.
    """
    # Deep images are scaled as in the training, and as the detector scales files.
    dataset = replace(dataset, pixel_range=detector.info.config.data.pixel_range)
    parts = []
    for samples in evaluation_loader(dataset, detector.info.config.data, unreadable=unreadable):
        found = detector.detect_scaled([sample.image for sample in samples])
        for sample, detections in zip(samples, found, strict=True):
            scaled = detections.rescaled(sample.image.shape[-2:], sample.size[::-1])
            parts.append(replace(scaled, images=scaled.images + sample.index))
        progress(len(samples))
    return Detections.concatenate(parts)  # the loader groups images by size
