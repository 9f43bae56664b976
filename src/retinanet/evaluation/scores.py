"""How far scores can be trusted: histogram, calibration and confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene, match_any_class

# Bins of the histogram and of the reliability diagram, over scores from 0 to 1.
HISTOGRAM_BINS = 20
CALIBRATION_BINS = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Mean score and precision of the detections in score bins of equal width.

    Attributes:
        counts: int64 ``(B,)``, number of detections.
        scores: float64 ``(B,)``, mean score; NaN in an empty bin.
        precision: float64 ``(B,)``, fraction of true positives; NaN in an empty bin.
        error: expected calibration error: the mean difference of score and precision, weighted by ``counts``; NaN
            without detections.
    """

    counts: Ints
    scores: Floats
    precision: Floats
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to the form of ``metrics.json``."""
        return {"counts": self.counts, "scores": self.scores, "right": self.precision, "error": self.error}


def score_histogram(scene: Scene, matching: Matching) -> tuple[Ints, Ints]:
    """Count true and false positives by score at the first IoU threshold: ``(20,)`` each, in bins of width 0.05."""
    place = _bins(scene.scores, HISTOGRAM_BINS)
    tp, fp = (np.bincount(place[mask], minlength=HISTOGRAM_BINS) for mask in (matching.tp[0], matching.fp[0]))
    return tp, fp


def calibrate(scene: Scene, matching: Matching, label: int | None = None) -> Calibration:
    """Measure the calibration of all detections, or of one class, at the first IoU threshold."""
    use = matching.tp[0] | matching.fp[0]
    if label is not None:
        use &= scene.labels == label
    place, scores = _bins(scene.scores[use], CALIBRATION_BINS), scene.scores[use]
    counts = np.bincount(place, minlength=CALIBRATION_BINS)
    filled = np.where(counts > 0, counts, np.nan)
    mean_score = np.bincount(place, scores, CALIBRATION_BINS) / filled
    precision = np.bincount(place, matching.tp[0][use].astype(np.float64), CALIBRATION_BINS) / filled
    gaps = np.nan_to_num(np.abs(mean_score - precision))
    error = float((gaps * counts).sum() / counts.sum()) if len(scores) else float("nan")
    return Calibration(counts, mean_score, precision, error)


def confusion_matrix(scene: Scene, score: float, least_iou: float = 0.5) -> Ints:
    """Count pairs of annotated class (row) and detected class (column), ``(K + 1, K + 1)``; background is last.

    Each detection with at least ``score``, highest first, is matched with the unmatched object of any class that has
    the highest IoU.
    """
    classes, labels = len(scene.dataset.classes), scene.dataset.labels
    matching = match_any_class(scene, least_iou)
    shown: Bools = scene.scores >= score
    tp, fp = matching.tp[0] & shown, matching.fp[0] & shown
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(matrix, (labels[matching.objects[0][tp]], scene.labels[tp]), 1)
    np.add.at(matrix, (classes, scene.labels[fp]), 1)
    matrix[:classes, classes] = scene.totals() - matrix[:classes, :classes].sum(axis=1)
    return matrix


def _bins(scores: Floats, count: int) -> Ints:
    """Find the bin of each score. A bin includes its lower border, and the last bin includes 1."""
    edges = np.arange(count + 1) / count  # np.linspace would give 0.30000000000000004, which is above a score of 0.3
    return np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, count - 1).astype(np.int64)
