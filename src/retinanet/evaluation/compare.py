"""Compare two detectors on the same images, with confidence intervals from a paired bootstrap.

``hotcoco.compare`` also resamples images, but counts an image that is drawn twice only once. Its intervals are about a
quarter too narrow (see tests/evaluation/test_compare.py), and it has none for single classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.errors import DataError
from retinanet.evaluation.coco_ap import Metrics, Predictions, evaluate
from retinanet.evaluation.curves import CONFIDENCE, Resampled, average_precisions, bootstrap, mean, middle
from retinanet.evaluation.matching import Floats, Ints, Matching, Scene, make_scene, match

RESAMPLES = 1000

# Which of the IoU thresholds each number is the mean over.
_LEVELS = {"AP": slice(None), "AP50": slice(0, 1)}


@dataclass(frozen=True)
class Contestant:
    """One of the two detectors.

    Attributes:
        name: what to call it: its file or bundled name.
        predictions: what it found on the dataset; labels index ``classes``.
        classes: the classes it knows.
    """

    name: str
    predictions: Predictions
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A number of A and of B, and how sure their difference is.

    Attributes:
        a: of A, 0–1; NaN if there is nothing to measure.
        b: of B.
        low: where the interval of b − a starts that holds 95 of 100 resamples.
        high: where it ends.
        better: share of the resamples in which B is better.
        worse: share of the resamples in which A is better; in the rest, they are equal.
    """

    a: float
    b: float
    low: float
    high: float
    better: float
    worse: float

    @property
    def delta(self) -> float:
        """B's minus A's."""
        return self.b - self.a

    def to_dict(self) -> dict[str, float | None]:
        """As ``compare.json`` holds it; ``null`` for what cannot be measured."""
        values = {"a": self.a, "b": self.b, "delta": self.delta, "low": self.low, "high": self.high}
        values |= {"b_better": self.better, "a_better": self.worse}
        return {name: None if np.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class Mistakes:
    """What a detector misses and makes up in each image, at the score where its F1 at IoU 0.5 is best.

    Attributes:
        score: lowest score counted.
        missed: int64 ``(N,)``.
        wrong: int64 ``(N,)``.
    """

    score: float
    missed: Ints
    wrong: Ints


@dataclass(frozen=True)
class Comparison:
    """What two detectors, A and B, do on the same images.

    Attributes:
        dataset: the images, with the objects of the classes that both know.
        names: of A and B.
        detections: how many A and B have.
        scenes: those of A and B that count, with labels that index ``dataset.classes``.
        matchings: what becomes of them.
        metrics: the COCO numbers of A and B.
        total: ``AP`` and ``AP50`` over all classes.
        per_class: the same for each class with objects.
        only: the classes with objects that only A knows, that only B knows, and that neither knows; not compared.
        mistakes: of A and B.
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

    def to_dict(self) -> dict[str, Any]:
        """As ``compare.json`` holds it."""
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
            "not_compared": dict(zip(("only_a", "only_b", "neither"), map(list, self.only), strict=True)),
        }


def compare(
    dataset: Dataset,
    a: Contestant,
    b: Contestant,
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
) -> Comparison:
    """Compare two detectors by a paired bootstrap over the images.

    The images of the dataset are drawn anew, with replacement, 1000 times; A and B are measured on each draw. Classes
    are matched by name, and those compared that both know. A draw without an object of a class does not count for it.

    Args:
        dataset: images and objects, with the dataset's own classes.
        a: a detector.
        b: another.
        seed: of the draws.
        progress: called with 1 when a class with objects is done for a detector.

    Raises:
        DataError: no class of the dataset is known to both.
    """
    shared = shared_classes(dataset, (a.name, b.name), (a.classes, b.classes))
    used = [name for name, count in dataset.class_counts().items() if count]
    only = (
        tuple(name for name in used if name in a.classes and name not in b.classes),
        tuple(name for name in used if name in b.classes and name not in a.classes),
        tuple(name for name in used if name not in a.classes and name not in b.classes),
    )
    common = restricted(dataset, shared)
    sides = [_measure(common, relabelled(c.predictions, c.classes, shared), seed, progress) for c in (a, b)]
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
    )


def shared_classes(dataset: Dataset, names: tuple[str, str], classes: tuple[Sequence[str], Sequence[str]]) -> list[str]:
    """The classes of ``dataset`` that two detectors of these ``names`` both know.

    Raises:
        DataError: there are none, or none with objects.
    """
    shared = [name for name in dataset.classes if name in classes[0] and name in classes[1]]
    used = [name for name, count in dataset.class_counts().items() if count]
    if not shared or (used and not set(used) & set(shared)):
        raise DataError(
            f"{dataset.name}: no class here ({_some(used or dataset.classes)}) is known to both {names[0]} "
            f"({_some(classes[0])}) and {names[1]} ({_some(classes[1])}); compare detectors with a class in common"
        )
    return shared


def restricted(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """``dataset`` with ``classes`` alone, and without the objects and ignore regions of classes left out.

    A class that only has ignore regions here is left out as :meth:`Dataset.with_classes` leaves it out: they stay, as
    regions of no class in particular, so that the numbers are those of an evaluation of one model.
    """
    counts = dataset.class_counts()
    dropped = [k for k, name in enumerate(dataset.classes) if name not in classes and counts[name]]
    return dataset.with_boxes(~np.isin(dataset.labels, dropped)).with_classes(classes)


def relabelled(predictions: Predictions, own: Sequence[str], classes: Sequence[str]) -> Predictions:
    """``predictions`` of the classes ``own`` with labels that index ``classes``; detections of others are left out."""
    position = {name: k for k, name in enumerate(classes)}
    labels = np.array([position.get(name, NO_CLASS) for name in own], dtype=np.int64)[predictions.labels]
    keep = labels != NO_CLASS
    return Predictions(predictions.images[keep], predictions.boxes[keep], predictions.scores[keep], labels[keep])


def mistakes(scene: Scene, matching: Matching) -> Mistakes:
    """Missed objects and wrong detections of each image, at the score with the best F1 over all classes."""
    counted = matching.right[0] | matching.wrong[0]
    falling, right, images = scene.scores[counted], matching.right[0][counted], scene.images[counted]
    objects = np.bincount(scene.owner[~scene.dataset.ignore], minlength=len(scene.dataset))
    f1 = 2 * np.cumsum(right) / (np.arange(1, len(falling) + 1) + objects.sum())
    f1[np.append(falling[1:] == falling[:-1], False)[: len(f1)]] = -1  # one score, one side of the threshold
    score = float(falling[f1.argmax()]) if len(falling) else 1.0
    shown = falling >= score
    hits, wrong = (np.bincount(images[shown & verdict], minlength=len(objects)) for verdict in (right, ~right))
    return Mistakes(score, objects - hits, wrong)


def most_different(comparison: Comparison, count: int) -> tuple[list[int], list[int]]:
    """Images where B makes fewer mistakes than A, and where A makes fewer: at most ``count`` each, most first."""
    a, b = (m.missed + m.wrong for m in comparison.mistakes)
    gain = a - b
    order = np.argsort(-gain, kind="stable")
    return [int(i) for i in order[:count] if gain[i] > 0], [int(i) for i in order[::-1][:count] if gain[i] < 0]


@dataclass(frozen=True, eq=False)
class _Side:
    """A detector on the images as they are, and on the draws."""

    detections: int
    scene: Scene
    matching: Matching
    metrics: Metrics
    values: Floats  # (T, K)
    resampled: Resampled

    def total(self, levels: slice) -> tuple[float, Floats]:
        """The mean over the classes, and that of each draw, ``(R,)``."""
        return mean(self.values[levels].mean(axis=0)), self.resampled.means(levels)

    def of_class(self, label: int, levels: slice) -> tuple[float, Floats]:
        """The same of one class."""
        return float(self.values[levels, label].mean()), self.resampled.values[:, levels, label].mean(axis=1)


def _measure(dataset: Dataset, predictions: Predictions, seed: int, progress: Callable[[int], object]) -> _Side:
    scene = make_scene(dataset, predictions)
    matching = match(scene)
    return _Side(
        detections=len(predictions.scores),
        scene=scene,
        matching=matching,
        metrics=evaluate(dataset, predictions),
        values=average_precisions(scene, matching, scene.totals()),
        resampled=bootstrap(scene, matching, seed, RESAMPLES, progress),
    )


def _change(a: tuple[float, Floats], b: tuple[float, Floats]) -> Change:
    """From the numbers of A and of B: of the images as they are, and of the draws, ``(R,)``."""
    difference = b[1] - a[1]
    difference = difference[~np.isnan(difference)]
    interval = middle(difference)
    if interval is None:
        return Change(*[np.nan] * 6)
    better, worse = float((difference > 0).mean()), float((difference < 0).mean())
    return Change(a[0], b[0], *interval, better, worse)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
