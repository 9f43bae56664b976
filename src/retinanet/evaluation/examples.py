"""Example objects and detections to look at: false negatives, false positives and likely annotation errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.evaluation.error_kinds import ERROR_KINDS
from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene
from retinanet.evaluation.tide import KINDS, MATCH, Errors

# Largest number of examples of each kind.
_KEPT = 60

# A detection is confident if at least this fraction of the detections of its class with the same or a higher score are
# true positives.
CONFIDENT = 0.9


@dataclass(frozen=True)
class Example:
    """An object or a detection in an image.

    Attributes:
        image: position of the image in the dataset.
        box: ``xyxy`` pixels.
        label: class of the object or detection.
        score: score of the detection; ``None`` for an object.
        kind: kind of the example.
        text: a sentence about it.
        other: the box of the object or detection that the example is compared with, if any.
    """

    image: int
    box: tuple[float, ...]
    label: int
    score: float | None
    kind: str
    text: str
    other: tuple[float, ...] | None = None

    def to_dict(self, dataset: Dataset) -> dict[str, Any]:
        """Convert to plain values, with names instead of positions."""
        return {
            "image_id": int(dataset.image_ids[self.image]),
            "file": dataset.files[self.image],
            "box": [round(v, 2) for v in self.box],
            "class": dataset.classes[self.label],
            "score": None if self.score is None else round(self.score, 4),
            "kind": self.kind,
            "text": self.text,
        }


@dataclass(frozen=True)
class Examples:
    """The first entries of a sorted list of examples, and the length of the whole list."""

    total: int
    shown: tuple[Example, ...]


def missed_objects(scene: Scene, matching: Matching, score: float) -> Examples:
    """List the objects without a true positive of at least ``score``, largest first, alternating between classes."""
    dataset, shown = scene.dataset, scene.scores >= score
    found = _marked(matching.objects[0][matching.tp[0] & shown], len(dataset.boxes))
    rows = np.flatnonzero(~found & ~dataset.ignore)
    rows = rows[np.argsort(-dataset.areas[rows], kind="stable")]
    chosen = rows[_in_turn(dataset.labels[rows].astype(np.int64))][:_KEPT]
    return Examples(len(rows), tuple(_missed_object(scene, matching, int(row), score) for row in chosen))


def false_positives(scene: Scene, errors: Errors, score: float) -> Examples:
    """List the false positives with at least ``score``, the highest scores first."""
    rows = np.flatnonzero((errors.kinds >= 0) & (scene.scores >= score))
    codes = [KINDS[kind] for kind in errors.kinds[rows[:_KEPT]]]
    shown = (
        _detection(scene, int(row), code, f"{code}: {ERROR_KINDS[code].detection}", int(errors.objects[row]))
        for row, code in zip(rows, codes, strict=False)
    )
    return Examples(len(rows), tuple(shown))


def label_errors(scene: Scene, matching: Matching, errors: Errors) -> dict[str, Examples]:
    """List likely annotation errors by kind: ``"class"``, ``"missing"`` and ``"unfindable"``.

    Three cases are as likely to be annotation errors as detector errors: a confident detection whose class differs from
    the annotated class, a confident detection where no object is annotated, and an object that no detection of any
    class and score overlaps.
    """
    confident = _confident(scene, matching)
    found = _marked(matching.objects[0][matching.tp[0] & confident], len(scene.dataset.boxes))
    kinds, classes = errors.kinds, scene.dataset.classes
    other = np.flatnonzero(confident & (kinds == KINDS.index("Cls")))
    other = other[~found[errors.objects[other]]]  # keep objects that are not also detected with the annotated class
    labels = scene.dataset.labels[errors.objects[other[:_KEPT]]]
    wrong_class = (
        _detection(
            scene, int(row), "class", f"annotated as {classes[label]}, detected as {classes[scene.labels[row]]}", thing
        )
        for row, label, thing in zip(other, labels, errors.objects[other].tolist(), strict=False)
    )
    empty = np.flatnonzero(confident & (kinds == KINDS.index("Bkg")))
    missing = (_detection(scene, int(row), "missing", ERROR_KINDS["Bkg"].detection) for row in empty[:_KEPT])
    seen = _marked(scene.pair_objects, len(scene.object_images))
    unseen = np.flatnonzero(~seen & ~scene.dataset.ignore)
    unseen = unseen[np.argsort(-scene.dataset.areas[unseen], kind="stable")]
    sentence = "no detection of any class and score overlaps it"
    unfindable = (_object(scene, int(row), "unfindable", sentence) for row in unseen[:_KEPT])
    return {
        "class": Examples(len(other), tuple(wrong_class)),
        "missing": Examples(len(empty), tuple(missing)),
        "unfindable": Examples(len(unseen), tuple(unfindable)),
    }


def _confident(scene: Scene, matching: Matching) -> Bools:
    """Mark the confident detections, bool ``(D,)``; see ``CONFIDENT``."""
    confident = np.zeros(len(scene.scores), dtype=np.bool_)
    for label in range(len(scene.dataset.classes)):
        mine = np.flatnonzero(scene.labels == label)
        tp, fp = np.cumsum(matching.tp[0][mine]), np.cumsum(matching.fp[0][mine])
        enough = np.flatnonzero(tp >= CONFIDENT * np.maximum(tp + fp, 1))
        if len(enough):
            confident[mine[: enough[-1] + 1]] = True
    return confident


def _missed_object(scene: Scene, matching: Matching, row: int, score: float) -> Example:
    """Describe a false negative by the best detection near it."""
    label = int(scene.dataset.labels[row])
    near = scene.pair_objects == row
    detections, ious = scene.pair_detections[near], scene.pair_ious[near]
    own = scene.labels[detections] == label
    finders = np.flatnonzero(matching.tp[0] & (matching.objects[0] == row))
    if len(finders):
        best = int(finders[0])
        return _object(scene, row, "missed", f"found with a score of only {scene.scores[best]:.2f}", best)
    if own.any():
        best = int(np.argmax(np.where(own, ious, -1)))
        text = f"the best box of its class has an IoU of {ious[best]:.2f}, score {scene.scores[detections[best]]:.2f}"
        if ious[best] >= MATCH:
            text += ", and finds another object"
        return _object(scene, row, "missed", text, int(detections[best]))
    other = detections[scene.scores[detections] >= score]
    if len(other):
        best = int(other.min())  # the highest score
        name = scene.dataset.classes[scene.labels[best]]
        return _object(scene, row, "missed", f"only {name} is detected there, score {scene.scores[best]:.2f}", best)
    return _object(scene, row, "missed", "nothing of its class is detected there", None)


def _object(scene: Scene, row: int, kind: str, text: str, detection: int | None = None) -> Example:
    other = None if detection is None else _corners(scene.boxes[detection])
    box = _corners(scene.dataset.boxes[row].astype(np.float64))
    return Example(int(scene.object_images[row]), box, int(scene.dataset.labels[row]), None, kind, text, other)


def _detection(scene: Scene, row: int, kind: str, text: str, thing: int = -1) -> Example:
    other = _corners(scene.dataset.boxes[thing].astype(np.float64)) if thing >= 0 else None
    box, score = _corners(scene.boxes[row]), float(scene.scores[row])
    return Example(int(scene.images[row]), box, int(scene.labels[row]), score, kind, text, other)


def _corners(box: Floats) -> tuple[float, ...]:
    return tuple(float(v) for v in box)


def _marked(rows: Ints, count: int) -> Bools:
    marks = np.zeros(count, dtype=np.bool_)
    marks[rows] = True
    return marks


def _in_turn(groups: Ints) -> Ints:
    """Order the elements: the first element of every group, then the second element of every group, and so on."""
    seen: dict[int, int] = {}
    turns: Iterable[int] = groups.tolist()
    places = []
    for group in turns:
        places.append(seen.get(group, 0))
        seen[group] = places[-1] + 1
    return np.argsort(np.array(places, dtype=np.int64), kind="stable")
