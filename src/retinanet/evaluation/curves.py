"""Average precision with bootstrap intervals, and precision and recall at each score threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.detections import Detections
from retinanet.evaluation.matching import THRESHOLDS, Bools, Floats, Ints, Matching, Scene, make_scene, match

# The recalls at which COCO samples the precision.
RECALLS = np.linspace(0, 1, 101)

# The score thresholds that are tried, in steps of 0.01. np.linspace would give 0.7000000000000001, which is above a
# score of 0.7.
SCORES = np.arange(101) / 100

# Confidence level of an interval, and the smallest number of images for which an interval is given.
CONFIDENCE = 0.95
FEWEST_IMAGES = 5

# The default number of resamples keeps detections × thresholds × resamples below EFFORT (a few seconds). It is clamped
# to the range from _FEWEST to _MOST.
_MOST, _FEWEST = 1000, 100
EFFORT = 6e8

# Elements of the largest array held at a time.
CHUNK = 4_000_000


def precisions(tp: Bools, fp: Bools, total: int) -> Floats:
    """Compute COCO's precision at each of ``RECALLS``, ``(101,)``, for one class.

    Args:
        tp: ``(D,)``, which detections of the class are true positives, highest score first.
        fp: ``(D,)``, which are false positives.
        total: number of objects of the class, at least one.
    """
    result: Floats = _precisions(tp, fp, np.ones((1, len(tp))), np.array([total]))[0]
    return result


def average_precisions(scene: Scene, matching: Matching, totals: Ints) -> Floats:
    """Compute the AP at each IoU threshold of each class, ``(T, K)``.

    ``totals`` ``(K,)`` is the number of objects of each class; the AP of a class without objects is NaN.
    """
    result = np.full((len(matching.tp), len(totals)), np.nan)
    for label, mine in by_class(scene.labels, totals):
        for level, (tp, fp) in enumerate(zip(matching.tp[:, mine], matching.fp[:, mine], strict=True)):
            result[level, label] = precisions(tp, fp, int(totals[label])).mean()
    return result


def mean(values: Floats) -> float:
    """Compute the mean of the values, without NaN; NaN if all values are NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class Resampled:
    """APs of R resamples of the images.

    Attributes:
        values: float64 ``(R, T, K)``; NaN where a resample has no object of the class.
        images: int64 ``(K,)``, images with objects of each class.
    """

    values: Floats
    images: Ints

    def interval(self, label: int, levels: slice = slice(None)) -> tuple[float, float] | None:
        """Give the 95% interval of a class's AP, the mean over the IoUs ``levels``; ``None`` with too few images."""
        if self.images[label] < FEWEST_IMAGES:
            return None
        return percentile_interval(self.values[:, levels, label].mean(axis=1))

    def means(self, levels: slice = slice(None)) -> Floats:
        """Give the mean AP over IoUs and classes of each resample, ``(R,)``; NaN without objects."""
        per_class = self.values[:, levels].mean(axis=1)  # (R, K)
        known = ~np.isnan(per_class)
        counts = known.sum(axis=1)
        sums = np.where(known, per_class, 0).sum(axis=1)
        result: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        return result

    def mean_interval(self, images: int, levels: slice = slice(None)) -> tuple[float, float] | None:
        """Give the 95% interval of the mean AP; ``images`` is the number of images with objects."""
        return None if images < FEWEST_IMAGES else percentile_interval(self.means(levels))


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """Give the bounds of the middle 95% of the values that are not NaN; ``None`` if all are NaN."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def draw_images(images: int, resamples: int, seed: int) -> Ints:
    """Draw ``images`` images with replacement; returns how often each was drawn, ``(resamples, images)``."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def bootstrap(
    scene: Scene,
    matching: Matching,
    seed: int = 0,
    resamples: int | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> Resampled:
    """Compute the APs on bootstrap resamples of the images.

    The matching of an image does not depend on the other images, so a resample only changes how often the detections
    and objects of an image count. The resamples depend only on the number of images, ``resamples`` and ``seed``. Two
    detectors on the same images therefore get the same resamples, which makes their comparison paired.

    Args:
        scene: objects and detections.
        matching: true and false positives.
        seed: seed of the random draws.
        resamples: number of resamples; default: 1000, or fewer if that would take long.
        progress: called with 1 after each class with objects.
    """
    dataset = scene.dataset
    if resamples is None:
        resamples = int(np.clip(EFFORT / max(1, matching.tp.size), _FEWEST, _MOST))
    draws = draw_images(len(dataset), resamples, seed)  # (R, N)
    counts = np.zeros((len(dataset), len(dataset.classes)), dtype=np.int64)
    objects = ~dataset.ignore
    np.add.at(counts, (scene.object_images[objects], dataset.labels[objects]), 1)
    values = np.full((resamples, len(matching.tp), len(dataset.classes)), np.nan)
    for label, mine in by_class(scene.labels, counts.sum(axis=0)):
        totals = draws @ counts[:, label]
        step = max(1, CHUNK // max(1, len(mine)))
        for start in range(0, resamples, step):
            part = slice(start, start + step)
            weights = draws[part][:, scene.images[mine]].astype(np.float64)
            for level, (tp, fp) in enumerate(zip(matching.tp[:, mine], matching.fp[:, mine], strict=True)):
                values[part, level, label] = _precisions(tp, fp, weights, totals[part]).mean(axis=1)
        progress(1)
    return Resampled(values, (counts > 0).sum(axis=0))


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Precision, recall and F1 of each class at each of the S score thresholds ``SCORES``, at one IoU.

    Attributes:
        tp: int64 ``(K, S)``, true positives with at least that score.
        fp: int64 ``(K, S)``, false positives with at least that score.
        totals: int64 ``(K,)``, objects of each class.
    """

    tp: Ints
    fp: Ints
    totals: Ints

    @property
    def precision(self) -> Floats:
        """``(K, S)``; NaN where nothing is detected."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> Floats:
        """``(K, S)``; NaN without objects."""
        return _ratio(self.tp, np.broadcast_to(self.totals[:, None], self.tp.shape))

    @property
    def f1(self) -> Floats:
        """``(K, S)``: the harmonic mean of precision and recall; NaN without objects."""
        values = _ratio(2 * self.tp, self.tp + self.fp + self.totals[:, None])
        return np.where(self.totals[:, None] > 0, values, np.nan)

    @property
    def mean_f1(self) -> Floats:
        """``(S,)``: mean F1 over the classes with objects; NaN if no class has objects."""
        known = self.totals > 0
        result: Floats = self.f1[known].mean(axis=0) if known.any() else np.full(len(SCORES), np.nan)
        return result

    def best(self, lowest: float = 0.0) -> float | None:
        """Find the score threshold with the best mean F1, at least ``lowest``; ``None`` without true positives."""
        mean_f1 = self.mean_f1
        return best_score(mean_f1, lowest) if np.nan_to_num(mean_f1).any() else None


def against_thresholds(scene: Scene, matching: Matching, totals: Ints, level: int = 0) -> Thresholds:
    """Count the true and false positives of each class at each score of ``SCORES``, at the IoU threshold ``level``."""
    # The highest threshold that each detection reaches.
    place = np.clip(np.searchsorted(SCORES, scene.scores, side="right") - 1, 0, None)

    def count(chosen: Bools) -> Ints:
        table = np.zeros((len(totals), len(SCORES)), dtype=np.int64)
        np.add.at(table, (scene.labels[chosen], place[chosen]), 1)
        return table[:, ::-1].cumsum(axis=1)[:, ::-1]

    return Thresholds(count(matching.tp[level]), count(matching.fp[level]), totals)


def best_threshold(dataset: Dataset, predictions: Detections, lowest: float = 0.0) -> float | None:
    """Find the score threshold with the best mean F1 over the classes, at an IoU of 0.5.

    ``predictions`` have all detections with a score of at least ``lowest``, so lower thresholds are not known. The
    result is ``None`` if there is no true positive.
    """
    scene = make_scene(dataset, predictions)
    return against_thresholds(scene, match(scene, THRESHOLDS[:1]), scene.totals()).best(lowest)


def best_score(f1: Floats, lowest: float = 0.0) -> float:
    """Find the score threshold with the highest F1, at least ``lowest``. Of several thresholds, the middle one."""
    f1 = np.where(lowest <= SCORES, f1, -1.0)
    places = np.flatnonzero(f1 == f1.max())
    return float(SCORES[places[len(places) // 2]])


def _precisions(tp: Bools, fp: Bools, weights: Floats, totals: Ints) -> Floats:
    """Compute the precision at ``RECALLS`` in R resamples, ``(R, 101)``; NaN in a resample without objects.

    Args:
        tp: ``(D,)``, true positives, highest score first.
        fp: ``(D,)``, false positives.
        weights: ``(R, D)``, how often each detection counts.
        totals: ``(R,)``, number of objects.
    """
    hits = np.flatnonzero(tp)
    result = np.zeros((len(totals), len(RECALLS)))
    if len(hits):
        # Recall rises and precision peaks only at true positives, so detections after the last of them are skipped.
        last = hits[-1] + 1
        between = np.append(0, hits[:-1] + 1)
        fp_counts = np.cumsum(np.add.reduceat(weights[:, :last] * fp[:last], between, axis=1), axis=1)
        tp_counts = np.cumsum(weights[:, hits], axis=1)
        precision = tp_counts / (fp_counts + tp_counts + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        place = _first_reaching(tp_counts, np.maximum(totals, 1))
        result = np.take_along_axis(np.pad(envelope, ((0, 0), (0, 1))), place, axis=1)
    result[totals == 0] = np.nan
    return result


def _first_reaching(tp_counts: Floats, totals: Ints) -> Ints:
    """Find where each row of ``tp_counts`` ``(R, H)`` reaches each recall, ``(R, 101)``; H where it never does."""
    # Convert each recall to the number of true positives that reaches it. Integers allow one search over all rows.
    needed = np.ceil(RECALLS * totals[:, None] - 1e-9)
    needed += needed / totals[:, None] < RECALLS
    rows = np.arange(len(tp_counts))[:, None]
    apart = rows * (totals.max() + 2.0)
    places: Ints = np.searchsorted((tp_counts + apart).ravel(), needed + apart) - rows * tp_counts.shape[1]
    return places


def by_class(labels: Ints, totals: Ints) -> list[tuple[int, Ints]]:
    """List each class with objects and the positions of its detections.

    Args:
        labels: ``(D,)``, the class of each detection.
        totals: ``(K,)``, the number of objects of each class.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(totals) + 1))
    return [(int(k), order[bounds[k] : bounds[k + 1]]) for k in np.flatnonzero(totals)]


def _ratio(above: Ints, below: Ints) -> Floats:
    result: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return result
