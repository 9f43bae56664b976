"""Compare two detectors on the same images, with confidence intervals from a paired bootstrap.

``hotcoco.compare`` also resamples images, but it counts an image once even if it is drawn several times. This makes its
intervals about a quarter too narrow (see tests/evaluation/test_compare.py). It gives no intervals for single classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.decode_config import ResolvedDecodeConfig
from retinanet.detections import Detections
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import Metrics, coco_metrics
from retinanet.evaluation.curves import (
    CONFIDENCE,
    Resampled,
    average_precisions,
    bootstrap,
    mean,
    percentile_interval,
)
from retinanet.evaluation.limits import Limits
from retinanet.evaluation.matching import Floats, Ints, Matching, Scene, make_scene, match

RESAMPLES = 1000

# The IoU thresholds that each metric averages over.
_LEVELS = {"AP": slice(None), "AP50": slice(0, 1)}


@dataclass(frozen=True)
class Contestant:
    """One of the two detectors of a comparison.

    Attributes:
        name: its file or bundled name.
        predictions: its detections on the dataset; labels index ``classes``.
        classes: its classes.
        max_detections: largest number of detections per image; ``None`` without a limit.
        detector: the detector's settings; ``None`` for a file of detections.
    """

    name: str
    predictions: Detections
    classes: tuple[str, ...]
    max_detections: int | None = None
    detector: ResolvedDecodeConfig | None = None


@dataclass(frozen=True)
class Change:
    """A metric of A and of B, with an interval of the difference.

    Attributes:
        a: the metric of A, 0–1; NaN if it cannot be measured.
        b: the metric of B.
        low: lower bound of the 95% interval of b − a.
        high: upper bound.
        better: fraction of the resamples in which B is better.
        worse: fraction of the resamples in which A is better. In the remaining resamples A and B are equal.
    """

    a: float
    b: float
    low: float
    high: float
    better: float
    worse: float

    @property
    def delta(self) -> float:
        """The difference b − a."""
        return self.b - self.a

    def to_dict(self) -> dict[str, float | None]:
        """Convert to the form of ``compare.json``; ``None`` replaces NaN."""
        values = {"a": self.a, "b": self.b, "delta": self.delta, "low": self.low, "high": self.high}
        values |= {"b_better": self.better, "a_better": self.worse}
        return {name: None if np.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class Mistakes:
    """A detector's errors in each of N images, at the score threshold with the best F1 at IoU 0.5.

    Attributes:
        score: the score threshold.
        fn: int64 ``(N,)``, false negatives.
        fp: int64 ``(N,)``, false positives.
    """

    score: float
    fn: Ints
    fp: Ints


@dataclass(frozen=True)
class Comparison:
    """The results of two detectors, A and B, on the same images. In each pair, A's value comes first.

    Attributes:
        dataset: the images, with the objects of the classes that both detectors have.
        names: names of the detectors.
        detections: numbers of detections.
        scenes: objects and sorted detections; labels index ``dataset.classes``.
        matchings: true and false positives of ``scenes``.
        metrics: COCO metrics.
        total: ``AP`` and ``AP50`` over all classes.
        per_class: ``AP`` and ``AP50`` of each class with objects.
        only: names of classes that have objects but are not compared, in three groups: classes that only A has, classes
            that only B has, and classes that neither has.
        mistakes: false negatives and false positives per image.
        limits: how many detections count, and how many images reached the limit on detections.
    """

    dataset: Dataset
    names: tuple[str, str]
    detections: tuple[int, int]
    scenes: tuple[Scene, Scene]
    matchings: tuple[Matching, Matching]
    metrics: tuple[Metrics, Metrics]
    total: dict[str, Change]
    per_class: dict[str, dict[str, Change]]
    only: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    mistakes: tuple[Mistakes, Mistakes]
    limits: tuple[Limits, Limits]

    def to_dict(self) -> dict[str, Any]:
        """Convert to the form of ``compare.json``."""
        boxes = self.dataset.class_counts()
        return {
            "a": self.names[0],
            "b": self.names[1],
            "data": self.dataset.name,
            "images": len(self.dataset),
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            **{name: change.to_dict() for name, change in self.total.items()},
            "per_class": {
                name: {"boxes": boxes[name], **{key: change.to_dict() for key, change in changes.items()}}
                for name, changes in self.per_class.items()
            },
            "scores_of_best_f1": {side: m.score for side, m in zip("ab", self.mistakes, strict=True)},
            "metrics": {side: m.summary for side, m in zip("ab", self.metrics, strict=True)},
            "limits": {side: each.to_dict() for side, each in zip("ab", self.limits, strict=True)},
            "not_compared": dict(zip(("only_a", "only_b", "neither"), map(list, self.only), strict=True)),
        }


def compare_predictions(
    dataset: Dataset,
    a: Contestant,
    b: Contestant,
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
) -> Comparison:
    """Compare two detectors by a paired bootstrap over the images.

    A and B are measured on 1,000 bootstrap resamples of the images. Classes are matched by name. Only
    classes that both detectors have are compared. A resample without objects of a class does not count for this class.

    Args:
        dataset: images and objects, with the dataset's own classes.
        a: the first detector.
        b: the second detector.
        seed: seed of the resamples.
        progress: called with 1 when a class with objects is done, for each detector.

    Raises:
        DataError: the dataset has no class that both detectors have.
    """
    shared = shared_classes(dataset, (a.name, b.name), (a.classes, b.classes))
    used = [name for name, count in dataset.class_counts().items() if count]
    only = (
        tuple(name for name in used if name in a.classes and name not in b.classes),
        tuple(name for name in used if name in b.classes and name not in a.classes),
        tuple(name for name in used if name not in a.classes and name not in b.classes),
    )
    common = restricted(dataset, shared)
    sides = [_side(common, relabelled(c.predictions, c.classes, shared), seed, progress) for c in (a, b)]
    first, second = sides
    return Comparison(
        dataset=common,
        names=(a.name, b.name),
        detections=(first.detections, second.detections),
        scenes=(first.scene, second.scene),
        matchings=(first.matching, second.matching),
        metrics=(first.metrics, second.metrics),
        total={name: _change(first.total(levels), second.total(levels)) for name, levels in _LEVELS.items()},
        per_class={
            class_name: {
                name: _change(first.of_class(k, levels), second.of_class(k, levels)) for name, levels in _LEVELS.items()
            }
            for k, class_name in enumerate(shared)
            if class_name in used
        },
        only=only,
        mistakes=(mistakes(first.scene, first.matching), mistakes(second.scene, second.matching)),
        limits=(_limits(common, a), _limits(common, b)),
    )


def _limits(dataset: Dataset, contestant: Contestant) -> Limits:
    return Limits.of(dataset, contestant.predictions, contestant.max_detections, contestant.detector)


def shared_classes(dataset: Dataset, names: tuple[str, str], classes: tuple[Sequence[str], Sequence[str]]) -> list[str]:
    """List the classes of ``dataset`` that two detectors with these ``names`` both have.

    Raises:
        DataError: the detectors share no class of ``dataset``, or no shared class has objects.
    """
    shared = [name for name in dataset.classes if name in classes[0] and name in classes[1]]
    used = [name for name, count in dataset.class_counts().items() if count]
    if not shared or (used and not set(used) & set(shared)):
        raise DataError(
            f"{dataset.name}: no class here ({_some(used or dataset.classes)}) is a class of both {names[0]} "
            f"({_some(classes[0])}) and {names[1]} ({_some(classes[1])}); compare detectors with a class in common"
        )
    return shared


def restricted(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """Reduce ``dataset`` to ``classes``, without the objects and ignore regions of other classes.

    An ignore region of a class that has no objects is kept and applies to all classes, as in
    :meth:`Dataset.with_classes`. So ignore regions have the same effect as in the evaluation of
    one detector alone.
    """
    counts = dataset.class_counts()
    dropped = [k for k, name in enumerate(dataset.classes) if name not in classes and counts[name]]
    return dataset.with_boxes(~np.isin(dataset.labels, dropped)).with_classes(classes)


def relabelled(predictions: Detections, own: Sequence[str], classes: Sequence[str]) -> Detections:
    """Change labels that index ``own`` to labels that index ``classes``, and drop detections of other classes."""
    position = {name: k for k, name in enumerate(classes)}
    labels = np.array([position.get(name, NO_CLASS) for name in own], dtype=np.int64)[predictions.labels]
    keep = labels != NO_CLASS
    return replace(predictions.take(keep), labels=labels[keep])


def mistakes(scene: Scene, matching: Matching) -> Mistakes:
    """Count false negatives and false positives in each image, at the score with the best F1 over all classes."""
    counted = matching.tp[0] | matching.fp[0]
    falling, tp, images = scene.scores[counted], matching.tp[0][counted], scene.images[counted]
    objects = np.bincount(scene.object_images[~scene.dataset.ignore], minlength=len(scene.dataset))
    f1 = 2 * np.cumsum(tp) / (np.arange(1, len(falling) + 1) + objects.sum())
    f1[np.append(falling[1:] == falling[:-1], False)[: len(f1)]] = -1  # a threshold cannot separate equal scores
    score = float(falling[f1.argmax()]) if len(falling) else 1.0
    shown = falling >= score
    hits, fp = (np.bincount(images[shown & kind], minlength=len(objects)) for kind in (tp, ~tp))
    return Mistakes(score, objects - hits, fp)


def most_different(comparison: Comparison, count: int) -> tuple[list[int], list[int]]:
    """List up to ``count`` images where B makes fewer mistakes, and up to ``count`` where A makes fewer.

    Both lists are sorted by the difference, largest first.
    """
    a, b = (m.fn + m.fp for m in comparison.mistakes)
    gain = a - b
    order = np.argsort(-gain, kind="stable")
    return [int(i) for i in order[:count] if gain[i] > 0], [int(i) for i in order[::-1][:count] if gain[i] < 0]


@dataclass(frozen=True, eq=False)
class _Side:
    """A detector's results on the dataset and on the resamples."""

    detections: int
    scene: Scene
    matching: Matching
    metrics: Metrics
    values: Floats  # (T, K)
    resampled: Resampled

    def total(self, levels: slice) -> tuple[float, Floats]:
        """The mean over the classes on the dataset, and on each resample, ``(R,)``."""
        return mean(self.values[levels].mean(axis=0)), self.resampled.means(levels)

    def of_class(self, label: int, levels: slice) -> tuple[float, Floats]:
        """The AP of one class on the dataset, and on each resample, ``(R,)``."""
        return float(self.values[levels, label].mean()), self.resampled.values[:, levels, label].mean(axis=1)


def _side(dataset: Dataset, predictions: Detections, seed: int, progress: Callable[[int], object]) -> _Side:
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    return _Side(
        detections=len(predictions.scores),
        scene=scene,
        matching=matching,
        metrics=coco_metrics(dataset, predictions),
        values=average_precisions(scene, matching, scene.totals()),
        resampled=bootstrap(scene, matching, seed, RESAMPLES, progress),
    )


def _change(a: tuple[float, Floats], b: tuple[float, Floats]) -> Change:
    """Compare a metric of A and B. ``a`` and ``b`` hold its value on the dataset and on each resample, ``(R,)``."""
    difference = b[1] - a[1]
    difference = difference[~np.isnan(difference)]
    interval = percentile_interval(difference)
    if interval is None:
        return Change(*[np.nan] * 6)
    better, worse = float((difference > 0).mean()), float((difference < 0).mean())
    return Change(a[0], b[0], *interval, better, worse)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
