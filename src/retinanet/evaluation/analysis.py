"""Error analysis of a detector on a dataset: everything the report shows beyond the COCO metrics."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.detections import Detections
from retinanet.evaluation import examples
from retinanet.evaluation.curves import (
    CONFIDENCE,
    RECALLS,
    SCORES,
    Resampled,
    Thresholds,
    against_thresholds,
    average_precisions,
    best_score,
    bootstrap,
    by_class,
    mean,
    precisions,
)
from retinanet.evaluation.examples import Examples
from retinanet.evaluation.matching import THRESHOLDS, Floats, Ints, Matching, Scene, make_scene, match
from retinanet.evaluation.scores import Calibration, calibrate, confusion_matrix, score_histogram
from retinanet.evaluation.slices import Slice, slice_by_everything
from retinanet.evaluation.tide import Errors, find_errors

# Positions of the IoUs 0.5 and 0.75 in THRESHOLDS.
_LEVELS = {"0.50": 0, "0.75": 5}

# Decimals of the numbers in JSON.
_DECIMALS = 6

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class ClassResult:
    """A detector's results on one class.

    Attributes:
        name: name of the class.
        objects: number of objects.
        images: number of images with objects of the class.
        detections: number of true and false positives at an IoU of 0.5.
        AP: mean over the IoUs 0.50–0.95. ``AP``, ``AP50`` and ``AP75`` are NaN for a class without objects.
        AP50: AP at an IoU of 0.5.
        AP75: AP at an IoU of 0.75.
        AP_interval: 95% bootstrap interval of the AP; ``None`` if too few images have the class.
        AP50_interval: 95% bootstrap interval of AP50.
        threshold: the score threshold with the best F1 at an IoU of 0.5; NaN without objects.
        f1: F1 at that threshold; NaN without objects.
        precision: precision at that threshold; NaN without detections.
        recall: recall at that threshold; NaN without objects.
        calibration_error: expected calibration error; NaN without detections.
    """

    name: str
    objects: int
    images: int
    detections: int
    AP: float
    AP50: float
    AP75: float
    AP_interval: Interval
    AP50_interval: Interval
    threshold: float
    f1: float
    precision: float
    recall: float
    calibration_error: float


@dataclass(frozen=True, eq=False)
class Analysis:
    """A detector's results on a dataset in detail. Detections are matched at an IoU of 0.5 unless stated otherwise.

    Attributes:
        dataset: the images and objects.
        AP: mean over IoUs and classes; NaN without objects.
        AP50: AP at an IoU of 0.5.
        AP_interval: 95% bootstrap interval of the AP.
        AP50_interval: 95% bootstrap interval of AP50.
        resamples: number of bootstrap resamples.
        classes: results on each class.
        curves: precision at the recalls 0, 0.01 … 1, ``(K, 101)``, by IoU ``"0.50"`` and ``"0.75"``; NaN for classes
            without objects.
        thresholds: precision and recall of each class at each score threshold.
        threshold: the score threshold with the best mean F1 over the classes with objects; 0.5 if no class has objects.
        f1: mean F1 at ``threshold`` over the classes with objects; NaN without objects.
        histogram: true and false positives by score, ``(20,)`` each.
        calibration: calibration of all detections.
        class_calibration: calibration of the detections of each class.
        confusion: number of objects by annotated class (rows) and detected class (columns) at ``threshold``,
            ``(K + 1, K + 1)``; the last row and column are background.
        errors: kinds of errors and their costs.
        slices: results on groups of objects.
        missed: objects without a true positive at ``threshold``.
        false_positives: false positives at ``threshold``.
        label_errors: likely annotation errors, by kind.
    """

    dataset: Dataset
    AP: float
    AP50: float
    AP_interval: Interval
    AP50_interval: Interval
    resamples: int
    classes: tuple[ClassResult, ...]
    curves: dict[str, Floats]
    thresholds: Thresholds
    threshold: float
    f1: float
    histogram: tuple[Ints, Ints]
    calibration: Calibration
    class_calibration: tuple[Calibration, ...]
    confusion: Ints
    errors: Errors
    slices: tuple[Slice, ...]
    missed: Examples
    false_positives: Examples
    label_errors: dict[str, Examples]

    def to_dict(self) -> dict[str, Any]:
        """Convert to the form of ``metrics.json``: plain values, ``None`` instead of NaN."""
        names = self.dataset.classes
        shown = [k for k, each in enumerate(self.classes) if each.objects]
        known: dict[str, Any] = {
            "AP": self.AP,
            "AP50": self.AP50,
            "AP_interval": self.AP_interval,
            "AP50_interval": self.AP50_interval,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "threshold": self.threshold,
            "f1": self.f1,
            "classes": {each.name: _without_name(each) for each in self.classes},
            "precision_recall": {
                "recall": RECALLS,
                **{iou: {names[k]: curve[k] for k in shown} for iou, curve in self.curves.items()},
            },
            "thresholds": {
                "score": SCORES,
                "classes": {
                    names[k]: {
                        "precision": self.thresholds.precision[k],
                        "recall": self.thresholds.recall[k],
                        "f1": self.thresholds.f1[k],
                    }
                    for k in shown
                },
            },
            "score_histogram": {"right": self.histogram[0], "wrong": self.histogram[1]},
            "calibration": {
                **self.calibration.to_dict(),
                "classes": {n: c.to_dict() for n, c in zip(names, self.class_calibration, strict=True)},
            },
            "confusion": _cells(self.confusion, (*names, None)),
            "errors": {"counts": self.errors.counts, "costs": self.errors.costs},
            "slices": [each.to_dict() for each in self.slices],
            "missed": self._listed(self.missed),
            "false_positives": self._listed(self.false_positives),
            "label_errors": {kind: self._listed(each) for kind, each in self.label_errors.items()},
        }
        result: dict[str, Any] = _plain(known)
        return result

    def _listed(self, listed: Examples) -> dict[str, Any]:
        return {"total": listed.total, "first": [example.to_dict(self.dataset) for example in listed.shown]}


def analyze(
    dataset: Dataset, predictions: Detections, seed: int = 0, resamples: int | None = None, lowest: float = 0.0
) -> Analysis:
    """Analyze the detections of a detector on a dataset.

    Args:
        dataset: images and objects.
        predictions: detections with scores from 0 to 1.
        seed: seed of the bootstrap resamples.
        resamples: number of resamples; default: 1000, or fewer for very large datasets.
        lowest: the score above which ``predictions`` have all detections. Lower thresholds are not chosen.
    """
    scene = make_scene(dataset, predictions)
    matching = match(scene, THRESHOLDS)
    totals = scene.totals()
    values = average_precisions(scene, matching, totals)
    resampled = bootstrap(scene, matching, seed, resamples)
    thresholds = against_thresholds(scene, matching, totals)
    calibrations = tuple(calibrate(scene, matching, label) for label in range(len(totals)))
    best = thresholds.best(lowest)
    threshold = 0.5 if best is None else best
    errors = find_errors(scene, matching)
    images = len(np.unique(scene.object_images[~dataset.ignore]))
    return Analysis(
        dataset=dataset,
        AP=mean(values.mean(axis=0)),
        AP50=mean(values[0]),
        AP_interval=resampled.mean_interval(images),
        AP50_interval=resampled.mean_interval(images, slice(0, 1)),
        resamples=len(resampled.values),
        classes=_classes(scene, matching, values, resampled, thresholds, calibrations, lowest),
        curves={iou: _curves(scene, matching, totals, level) for iou, level in _LEVELS.items()},
        thresholds=thresholds,
        threshold=threshold,
        f1=float(thresholds.mean_f1.max()),
        histogram=score_histogram(scene, matching),
        calibration=calibrate(scene, matching),
        class_calibration=calibrations,
        confusion=confusion_matrix(scene, threshold),
        errors=errors,
        slices=tuple(slice_by_everything(scene, threshold, values.mean(axis=0))),
        missed=examples.missed_objects(scene, matching, threshold),
        false_positives=examples.false_positives(scene, errors, threshold),
        label_errors=examples.label_errors(scene, matching, errors),
    )


def _classes(
    scene: Scene,
    matching: Matching,
    values: Floats,
    resampled: Resampled,
    thresholds: Thresholds,
    calibrations: tuple[Calibration, ...],
    lowest: float,
) -> tuple[ClassResult, ...]:
    counted = np.bincount(scene.labels[matching.tp[0] | matching.fp[0]], minlength=len(thresholds.totals))
    precision, recall, f1 = thresholds.precision, thresholds.recall, thresholds.f1
    results = []
    for k, name in enumerate(scene.dataset.classes):
        known = thresholds.totals[k] > 0
        best = best_score(f1[k], lowest) if known and f1[k].any() else math.nan
        place = int(np.argmin(np.abs(SCORES - best))) if not math.isnan(best) else -1
        results.append(
            ClassResult(
                name=name,
                objects=int(thresholds.totals[k]),
                images=int(resampled.images[k]),
                detections=int(counted[k]),
                AP=float(values[:, k].mean()),
                AP50=float(values[_LEVELS["0.50"], k]),
                AP75=float(values[_LEVELS["0.75"], k]),
                AP_interval=resampled.interval(k),
                AP50_interval=resampled.interval(k, slice(0, 1)),
                threshold=best,
                f1=float(f1[k, place]) if place >= 0 else (0.0 if known else math.nan),
                precision=float(precision[k, place]) if place >= 0 else math.nan,
                recall=float(recall[k, place]) if place >= 0 else (0.0 if known else math.nan),
                calibration_error=calibrations[k].error,
            )
        )
    return tuple(results)


def _curves(scene: Scene, matching: Matching, totals: Ints, level: int) -> Floats:
    curves = np.full((len(totals), len(RECALLS)), np.nan)
    for label, mine in by_class(scene.labels, totals):
        curves[label] = precisions(matching.tp[level, mine], matching.fp[level, mine], int(totals[label]))
    return curves


def _without_name(each: ClassResult) -> dict[str, Any]:
    return {name: value for name, value in asdict(each).items() if name != "name"}


def _cells(matrix: Ints, names: tuple[str | None, ...]) -> list[dict[str, Any]]:
    """List the cells that are not zero; ``None`` stands for background."""
    rows, columns = np.nonzero(matrix)
    return [
        {"object": names[row], "detected": names[column], "count": int(matrix[row, column])}
        for row, column in zip(rows, columns, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Convert to the types of JSON, with rounded numbers; NaN becomes ``None``."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float):
        return round(value, _DECIMALS) if math.isfinite(value) else None
    return value
