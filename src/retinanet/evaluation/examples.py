"""Objects and detections worth looking at: missed objects, false positives, and likely errors of the annotations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.data.dataset import Dataset
from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene
from retinanet.evaluation.tide import KINDS, MATCH, Errors

# Examples of a kind that are kept.
_KEPT = 60

# A score is sure if of a class's detections with that score or more this share is right.
SURE = 0.9

_EXPLAINED = {
    "Cls": "it lies on an object of another class",
    "Loc": "its box fits an object of the class too badly",
    "Both": "another class, and the box fits badly",
    "Dupe": "a better detection has found the object already",
    "Bkg": "nothing is annotated there",
}


@dataclass(frozen=True)
class Example:
    """Something at a place of an image.

    Attributes:
        image: position of the image in the dataset.
        box: ``xyxy`` pixels.
        label: class of the object or detection.
        score: of the detection; ``None`` for an object that has none.
        kind: what it is an example of.
        text: a sentence about it.
        other: the box of the object or detection that it is compared with, if there is one.
    """

    image: int
    box: tuple[float, ...]
    label: int
    score: float | None
    kind: str
    text: str
    other: tuple[float, ...] | None = None

    def to_dict(self, dataset: Dataset) -> dict[str, Any]:
        """Plain values, with names instead of positions."""
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
    """The first of some ordered list, and how long the list is."""

    total: int
    shown: tuple[Example, ...]


def missed_objects(scene: Scene, matching: Matching, score: float) -> Examples:
    """Objects that no detection with at least ``score`` finds: the largest first, the classes in turn."""
    dataset, shown = scene.dataset, scene.scores >= score
    found = _marked(matching.objects[0][matching.right[0] & shown], len(dataset.boxes))
    rows = np.flatnonzero(~found & ~dataset.ignore)
    rows = rows[np.argsort(-dataset.areas[rows], kind="stable")]
    chosen = rows[_in_turn(dataset.labels[rows].astype(np.int64))][:_KEPT]
    return Examples(len(rows), tuple(_missed(scene, matching, int(row), score) for row in chosen))


def false_positives(scene: Scene, errors: Errors, score: float) -> Examples:
    """Wrong detections with at least ``score``, the best scores first."""
    rows = np.flatnonzero((errors.kinds >= 0) & (scene.scores >= score))
    names = [KINDS[kind] for kind in errors.kinds[rows[:_KEPT]]]
    shown = (
        _detection(scene, int(row), name, f"{name}: {_EXPLAINED[name]}", int(errors.objects[row]))
        for row, name in zip(rows, names, strict=False)
    )
    return Examples(len(rows), tuple(shown))


def label_errors(scene: Scene, matching: Matching, errors: Errors) -> dict[str, Examples]:
    """Likely errors of the annotations by kind: ``"class"``, ``"missing"`` and ``"unfindable"``.

    A detection is sure if at least nine of ten detections of its class with that score or more are right. A sure one
    of another class on an object, or where nothing is annotated, is as likely an error of the annotations as of the
    detector. So is an object that no detection of any class and score overlaps.
    """
    sure = _sure(scene, matching)
    found = _marked(matching.objects[0][matching.right[0] & sure], len(scene.dataset.boxes))
    kinds, classes = errors.kinds, scene.dataset.classes
    other = np.flatnonzero(sure & (kinds == KINDS.index("Cls")))
    other = other[~found[errors.objects[other]]]  # else the class that is annotated is seen there as well
    labels = scene.dataset.labels[errors.objects[other[:_KEPT]]]
    wrong = (
        _detection(
            scene, int(row), "class", f"annotated as {classes[label]}, detected as {classes[scene.labels[row]]}", thing
        )
        for row, label, thing in zip(other, labels, errors.objects[other].tolist(), strict=False)
    )
    empty = np.flatnonzero(sure & (kinds == KINDS.index("Bkg")))
    missing = (_detection(scene, int(row), "missing", "nothing is annotated there") for row in empty[:_KEPT])
    seen = _marked(scene.objects, len(scene.owner))
    unseen = np.flatnonzero(~seen & ~scene.dataset.ignore)
    unseen = unseen[np.argsort(-scene.dataset.areas[unseen], kind="stable")]
    sentence = "no detection of any class and score overlaps it"
    unfindable = (_object(scene, int(row), "unfindable", sentence) for row in unseen[:_KEPT])
    return {
        "class": Examples(len(other), tuple(wrong)),
        "missing": Examples(len(empty), tuple(missing)),
        "unfindable": Examples(len(unseen), tuple(unfindable)),
    }


def _sure(scene: Scene, matching: Matching) -> Bools:
    """Detections with a score at which ``SURE`` of their class are right."""
    sure = np.zeros(len(scene.scores), dtype=np.bool_)
    for label in range(len(scene.dataset.classes)):
        mine = np.flatnonzero(scene.labels == label)
        right, wrong = np.cumsum(matching.right[0][mine]), np.cumsum(matching.wrong[0][mine])
        enough = np.flatnonzero(right >= SURE * np.maximum(right + wrong, 1))
        if len(enough):
            sure[mine[: enough[-1] + 1]] = True
    return sure


def _missed(scene: Scene, matching: Matching, row: int, score: float) -> Example:
    """The missed object, with the best detection of its class near it."""
    label = int(scene.dataset.labels[row])
    near = scene.objects == row
    found, overlaps = scene.found[near], scene.overlaps[near]
    own = scene.labels[found] == label
    finders = np.flatnonzero(matching.right[0] & (matching.objects[0] == row))
    if len(finders):
        best = int(finders[0])
        return _object(scene, row, "missed", f"found with a score of only {scene.scores[best]:.2f}", best)
    if own.any():
        best = int(np.argmax(np.where(own, overlaps, -1)))
        text = f"the best box of its class has an IoU of {overlaps[best]:.2f}, score {scene.scores[found[best]]:.2f}"
        if overlaps[best] >= MATCH:
            text += ", and finds another object"
        return _object(scene, row, "missed", text, int(found[best]))
    other = found[scene.scores[found] >= score]
    if len(other):
        best = int(other.min())  # the highest score
        name = scene.dataset.classes[scene.labels[best]]
        return _object(scene, row, "missed", f"only {name} is detected there, score {scene.scores[best]:.2f}", best)
    return _object(scene, row, "missed", "nothing of its class is detected there", None)


def _object(scene: Scene, row: int, kind: str, text: str, detection: int | None = None) -> Example:
    other = None if detection is None else _corners(scene.boxes[detection])
    box = _corners(scene.dataset.boxes[row].astype(np.float64))
    return Example(int(scene.owner[row]), box, int(scene.dataset.labels[row]), None, kind, text, other)


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
    """An order in which the first of each group come first, then the second of each, and so on."""
    seen: dict[int, int] = {}
    turns: Iterable[int] = groups.tolist()
    places = []
    for group in turns:
        places.append(seen.get(group, 0))
        seen[group] = places[-1] + 1
    return np.argsort(np.array(places, dtype=np.int64), kind="stable")
