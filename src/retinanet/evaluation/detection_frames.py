"""Find out which image the boxes of a file of detections refer to, if EXIF turns it: the stored or the turned image.

``retinanet detect`` writes boxes of the turned images. Other programs may ignore the EXIF orientation, as the program
may have done that wrote the annotations. The ground truth shows what the boxes refer to: read rightly, they lie on
objects of their class. ``--data.exif`` only states what the annotations refer to, so it decides nothing here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import Dataset
from retinanet.data.split_frames import read_as_stored
from retinanet.detections import Detections
from retinanet.evaluation.matching import make_scene

Bools = npt.NDArray[np.bool_]

# Largest number of images that are compared.
_SAMPLE = 500

# A frame is clearly the better one if its mean IoU is this much higher, and this many times as high.
_MORE, _TIMES = 0.1, 1.25

# A box reaches beyond its image if it does so by more than this fraction of the side, and by more than a pixel.
_SLACK = 0.02

# Without a clear difference in IoU, the boxes that reach beyond one of the images decide if they are this fraction of
# all boxes, and this many times as many as those that reach beyond the other.
_SHARE, _TIMES_BEYOND = 0.01, 4


class _Fit(NamedTuple):
    """How well detections fit: mean IoU with the best object of their class, and fraction beyond their images."""

    iou: float
    beyond: float


def in_turned_frame(dataset: Dataset, found: Detections, fractions: Bools) -> tuple[Detections, str]:
    """Convert detections that refer to the stored pixels of images that EXIF turns.

    Args:
        dataset: images and ground truth.
        found: the detections, read as boxes of the turned images.
        fractions: bool ``(D,)``, detections that the file gives in fractions of the image.

    Returns:
        All detections as boxes of the turned images, and a note for the user; empty if no detection is on an image that
        EXIF turns.
    """
    if dataset.orientations is None:
        return found, ""
    rows = dataset.orientations[found.images] > 1
    if not rows.any():
        return found, ""
    boxes = found.boxes.copy()
    boxes[rows] = read_as_stored(dataset, boxes[rows], found.images[rows], fractions[rows])
    converted = replace(found, boxes=boxes)
    images = np.unique(found.images[rows])
    sample = images[np.linspace(0, len(images) - 1, min(_SAMPLE, len(images))).astype(np.int64)]
    compared = np.isin(found.images, sample)
    turned, stored = (_fit(dataset, each.take(compared)) for each in (found, converted))
    subject = f"detections on {len(images)} images that EXIF turns"
    means = f"mean IoU with the objects {turned.iou:.2f} as boxes of the turned images, {stored.iou:.2f} of the stored"
    if _is_better(stored, turned):
        other = ""
        if dataset.frame is not None and not dataset.frame.known:
            other = "; if they refer to the turned images, the annotations do not: --data.exif ignore"
        return converted, f"{subject} are taken for boxes of the stored pixels and turned too ({means}{other})"
    if _is_better(turned, stored):
        return found, f"{subject} are boxes of the turned images ({means})"
    return found, (
        f"UNCLEAR: {subject} are assumed to be boxes of the turned images, as retinanet detect writes them; they may "
        f"be boxes of the stored pixels ({means})"
    )


def _is_better(one: _Fit, other: _Fit) -> bool:
    for first, second, sign in ((one, other, True), (other, one, False)):
        if first.iou >= max(second.iou + _MORE, _TIMES * second.iou):
            return sign
    return other.beyond >= max(_SHARE, _TIMES_BEYOND * one.beyond)


def _fit(dataset: Dataset, found: Detections) -> _Fit:
    """Measure how well detections fit, weighted by their scores."""
    scene = make_scene(dataset, found)
    best = np.zeros(len(scene.scores))
    same = dataset.labels[scene.pair_objects] == scene.labels[scene.pair_detections]
    same &= ~dataset.ignore[scene.pair_objects]
    np.maximum.at(best, scene.pair_detections[same], scene.pair_ious[same])
    sizes = dataset.sizes[scene.images]
    slack = np.maximum(1.0, _SLACK * sizes)
    beyond = ((scene.boxes[:, 2:] > sizes + slack) | (scene.boxes[:, :2] < -slack)).any(axis=1)
    weights = scene.scores if scene.scores.sum() > 0 else np.ones(len(scene.scores))
    return _Fit(float(np.average(best, weights=weights)), float(beyond.mean()))
