"""What scores are worth: how many detections of each score are right, and which classes are taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene, match

# Of the histogram and of the reliability diagram; scores are 0–1.
HISTOGRAM_BINS = 20
CALIBRATION_BINS = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores and the share of detections that are right, in equally wide bins of the score.

    Attributes:
        counts: int64 ``(B,)``, detections.
        scores: float64 ``(B,)``, their mean score; NaN in an empty bin.
        right: float64 ``(B,)``, the share of them that is right; NaN in an empty bin.
        error: the expected calibration error: how far the two are apart, over all detections; NaN without any.
    """

    counts: Ints
    scores: Floats
    right: Floats
    error: float


def score_histogram(scene: Scene, matching: Matching) -> tuple[Ints, Ints]:
    """Right and wrong detections, ``(20,)`` each, in bins of the score of width 0.05, at the first IoU threshold."""
    place = _bins(scene.scores, HISTOGRAM_BINS)
    right, wrong = (
        np.bincount(place[mask], minlength=HISTOGRAM_BINS) for mask in (matching.right[0], matching.wrong[0])
    )
    return right, wrong


def calibrate(scene: Scene, matching: Matching, label: int | None = None) -> Calibration:
    """The calibration of the detections of a class, or of all, at the first IoU threshold."""
    use = matching.right[0] | matching.wrong[0]
    if label is not None:
        use &= scene.labels == label
    place, scores = _bins(scene.scores[use], CALIBRATION_BINS), scene.scores[use]
    counts = np.bincount(place, minlength=CALIBRATION_BINS)
    filled = np.where(counts > 0, counts, np.nan)
    mean_score = np.bincount(place, scores, CALIBRATION_BINS) / filled
    share_right = np.bincount(place, matching.right[0][use].astype(np.float64), CALIBRATION_BINS) / filled
    gaps = np.nan_to_num(np.abs(mean_score - share_right))
    error = float((gaps * counts).sum() / counts.sum()) if len(scores) else float("nan")
    return Calibration(counts, mean_score, share_right, error)


def confusion_matrix(scene: Scene, score: float, least_iou: float = 0.5) -> Ints:
    """Objects (rows) against detections with at least ``score`` (columns), ``(K + 1, K + 1)``; the last is background.

    A detection, best score first, takes the free object of any class that it overlaps most.
    """
    classes, labels = len(scene.dataset.classes), scene.dataset.labels
    matching = match(scene, np.array([least_iou]), any_class=True)
    shown: Bools = scene.scores >= score
    right, wrong = matching.right[0] & shown, matching.wrong[0] & shown
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(matrix, (labels[matching.objects[0][right]], scene.labels[right]), 1)
    np.add.at(matrix, (classes, scene.labels[wrong]), 1)
    matrix[:classes, classes] = scene.totals() - matrix[:classes, :classes].sum(axis=1)
    return matrix


def _bins(scores: Floats, count: int) -> Ints:
    """The bin of each score; the lower border belongs to a bin, and 1 to the last one."""
    edges = np.arange(count + 1) / count  # linspace has 0.30000000000000004, which a score of 0.3 does not reach
    return np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, count - 1).astype(np.int64)
