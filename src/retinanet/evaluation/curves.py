"""Average precision, its interval, and precision and recall against the threshold, from what became of detections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene

# Recalls at which COCO looks at the precision.
RECALLS = np.linspace(0, 1, 101)

# Score thresholds that are tried: people choose thresholds like 0.42. Divided, because linspace has
# 0.7000000000000001, which a score of 0.7 does not reach.
SCORES = np.arange(101) / 100

# Of an interval. Fewer pictures than this cannot tell how an AP varies.
CONFIDENCE = 0.95
FEWEST_IMAGES = 5

# Resamples at most and at least, and detections × thresholds × resamples that take a few seconds.
_MOST, _FEWEST = 1000, 100
_EFFORT = 6e8

# Elements of the arrays held at a time.
_CHUNK = 4_000_000


def precisions(right: Bools, wrong: Bools, total: int) -> Floats:
    """COCO's precision at each of ``RECALLS``, ``(101,)``, of one class.

    Args:
        right: ``(D,)``, the detections of the class, best score first.
        wrong: ``(D,)``.
        total: objects of the class, at least one.
    """
    result: Floats = _precisions(right, wrong, np.ones((1, len(right))), np.array([total]))[0]
    return result


def average_precisions(scene: Scene, matching: Matching, totals: Ints) -> Floats:
    """AP ``(T, K)`` at each threshold, of each class; NaN for a class without objects, of which ``totals`` tells."""
    result = np.full((len(matching.right), len(totals)), np.nan)
    for label, mine in by_class(scene.labels, totals):
        for level, (right, wrong) in enumerate(zip(matching.right[:, mine], matching.wrong[:, mine], strict=True)):
            result[level, label] = precisions(right, wrong, int(totals[label])).mean()
    return result


def mean(values: Floats) -> float:
    """The mean of those values that are not NaN; NaN if none is."""
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
        """The middle 95 % of a class's AP, averaged over the thresholds ``levels``; ``None`` if too few images tell."""
        if self.images[label] < FEWEST_IMAGES:
            return None
        return middle(self.values[:, levels, label].mean(axis=1))

    def means(self, levels: slice = slice(None)) -> Floats:
        """The mean over thresholds and classes of each resample, ``(R,)``; NaN for one without objects."""
        per_class = self.values[:, levels].mean(axis=1)  # (R, K)
        known = ~np.isnan(per_class)
        counts = known.sum(axis=1)
        sums = np.where(known, per_class, 0).sum(axis=1)
        result: Floats = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        return result

    def mean_interval(self, images: int, levels: slice = slice(None)) -> tuple[float, float] | None:
        """The middle 95 % of the mean over the classes; ``images`` with objects there are."""
        return None if images < FEWEST_IMAGES else middle(self.means(levels))


def middle(values: Floats) -> tuple[float, float] | None:
    """Where the middle 95 % of the values that are not NaN begin and end; ``None`` if all are."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def draw_images(images: int, resamples: int, seed: int) -> Ints:
    """How often each of ``images`` is there when as many are drawn with repetition: ``(resamples, images)``."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def bootstrap(
    scene: Scene,
    matching: Matching,
    seed: int = 0,
    resamples: int | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> Resampled:
    """Draw as many images as there are, with repetition, again and again, and compute the APs of each draw.

    The matching of an image does not depend on the others, so a draw only changes how often its detections and objects
    count. The draws depend on the number of images, ``resamples`` and ``seed`` alone: two detectors on the same images
    get the same ones, and their resamples are pairs.

    Args:
        scene: objects and detections.
        matching: what becomes of the detections.
        seed: of the draws.
        resamples: how many; unset: 1000, or fewer if that would take long.
        progress: called with 1 when a class that has objects is done.
    """
    dataset = scene.dataset
    if resamples is None:
        resamples = int(np.clip(_EFFORT / max(1, matching.right.size), _FEWEST, _MOST))
    draws = draw_images(len(dataset), resamples, seed)  # (R, N)
    counts = np.zeros((len(dataset), len(dataset.classes)), dtype=np.int64)
    np.add.at(counts, (scene.owner[~dataset.ignore], dataset.labels[~dataset.ignore]), 1)
    values = np.full((resamples, len(matching.right), len(dataset.classes)), np.nan)
    for label, mine in by_class(scene.labels, counts.sum(axis=0)):
        totals = draws @ counts[:, label]
        step = max(1, _CHUNK // max(1, len(mine)))
        for start in range(0, resamples, step):
            part = slice(start, start + step)
            weights = draws[part][:, scene.images[mine]].astype(np.float64)
            for level, (right, wrong) in enumerate(zip(matching.right[:, mine], matching.wrong[:, mine], strict=True)):
                values[part, level, label] = _precisions(right, wrong, weights, totals[part]).mean(axis=1)
        progress(1)
    return Resampled(values, (counts > 0).sum(axis=0))


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Precision, recall and F1 at each of ``SCORES``, of each class, at one IoU.

    Attributes:
        right: int64 ``(K, S)``, detections of at least that score that find an object.
        wrong: int64 ``(K, S)``, those that find none.
        totals: int64 ``(K,)``, objects.
    """

    right: Ints
    wrong: Ints
    totals: Ints

    @property
    def precision(self) -> Floats:
        """``(K, S)``; NaN where nothing is detected."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> Floats:
        """``(K, S)``; NaN without objects."""
        return _ratio(self.right, np.broadcast_to(self.totals[:, None], self.right.shape))

    @property
    def f1(self) -> Floats:
        """``(K, S)``: the harmonic mean of precision and recall; NaN without objects."""
        values = _ratio(2 * self.right, self.right + self.wrong + self.totals[:, None])
        return np.where(self.totals[:, None] > 0, values, np.nan)


def against_thresholds(scene: Scene, matching: Matching, totals: Ints, level: int = 0) -> Thresholds:
    """Count right and wrong detections of each class above each of ``SCORES``, at the IoU threshold ``level``."""
    # The highest tried score that a detection reaches; above all of them the detection still counts at each.
    place = np.clip(np.searchsorted(SCORES, scene.scores, side="right") - 1, 0, None)

    def count(chosen: Bools) -> Ints:
        table = np.zeros((len(totals), len(SCORES)), dtype=np.int64)
        np.add.at(table, (scene.labels[chosen], place[chosen]), 1)
        return table[:, ::-1].cumsum(axis=1)[:, ::-1]

    return Thresholds(count(matching.right[level]), count(matching.wrong[level]), totals)


def best_score(f1: Floats) -> float:
    """The score of ``SCORES`` with the highest F1; the middle one of equals."""
    places = np.flatnonzero(f1 == f1.max())
    return float(SCORES[places[len(places) // 2]])


def _precisions(right: Bools, wrong: Bools, weights: Floats, totals: Ints) -> Floats:
    """Precision at ``RECALLS``, ``(R, 101)``, if detections count ``weights`` ``(R, D)`` times and ``totals`` ``(R,)``
    objects are there; NaN where there are none.
    """
    hits = np.flatnonzero(right)
    result = np.zeros((len(totals), len(RECALLS)))
    if len(hits):
        # Recall rises and precision peaks only where a detection is right; after the last of these nothing matters.
        last = hits[-1] + 1
        between = np.append(0, hits[:-1] + 1)
        wrongs = np.cumsum(np.add.reduceat(weights[:, :last] * wrong[:last], between, axis=1), axis=1)
        rights = np.cumsum(weights[:, hits], axis=1)
        precision = rights / (wrongs + rights + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        place = _first_reaching(rights, np.maximum(totals, 1))
        result = np.take_along_axis(np.pad(envelope, ((0, 0), (0, 1))), place, axis=1)
    result[totals == 0] = np.nan
    return result


def _first_reaching(rights: Floats, totals: Ints) -> Ints:
    """The place in each row of ``rights`` ``(R, H)`` where each recall is reached, ``(R, 101)``; H for never."""
    # As whole numbers of objects, so that all rows can be searched at once without rounding.
    needed = np.ceil(RECALLS * totals[:, None] - 1e-9)
    needed += needed / totals[:, None] < RECALLS
    rows = np.arange(len(rights))[:, None]
    apart = rows * (totals.max() + 2.0)
    places: Ints = np.searchsorted((rights + apart).ravel(), needed + apart) - rows * rights.shape[1]
    return places


def by_class(labels: Ints, totals: Ints) -> list[tuple[int, Ints]]:
    """Each class that has objects, by ``totals`` ``(K,)``, and which detections of ``labels`` ``(D,)`` are of it."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(totals) + 1))
    return [(int(k), order[bounds[k] : bounds[k + 1]]) for k in np.flatnonzero(totals)]


def _ratio(above: Ints, below: Ints) -> Floats:
    result: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return result
