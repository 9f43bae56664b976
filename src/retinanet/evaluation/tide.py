"""What kinds of errors cost how much AP, as TIDE divides them (Bolya et al., ECCV 2020, https://arxiv.org/abs/2008.08115)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retinanet.data.dataset import NO_CLASS
from retinanet.evaluation.curves import by_class, mean, precisions
from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene

# Of detections, in the order of ``Errors.kinds``. "Miss" is an error of objects.
KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg")
ALL_KINDS = (*KINDS, "Miss", "FP", "FN")
_CLS, _LOC, _BOTH, _DUPE, _BKG = range(5)

# The least IoU of a match.
MATCH = 0.5


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors at an IoU of 0.5.

    Attributes:
        kinds: int64 ``(D,)``, index into ``KINDS``; −1 for detections that are right or do not count.
        objects: int64 ``(D,)``, the object that a detection of a wrong class or place is about; −1 elsewhere.
        missed: bool ``(M,)``, objects that nothing finds, not even in a wrong place or as a wrong class.
        counts: how many errors of each of ``ALL_KINDS`` there are.
        costs: by how much AP50 rises if the errors of a kind, and only these, are mended.
    """

    kinds: Ints
    objects: Ints
    missed: Bools
    counts: dict[str, int]
    costs: dict[str, float]


def find_errors(scene: Scene, matching: Matching) -> Errors:
    """Divide what is wrong in ``matching``, whose first threshold is ``MATCH``, into kinds, and mend each of them."""
    right, wrong = matching.right[0], matching.wrong[0]
    kinds, objects = _kinds(scene, wrong)
    found = np.zeros(len(scene.owner), dtype=np.bool_)
    found[matching.objects[0][right]] = True
    unfound = ~found & ~scene.dataset.ignore
    missed = unfound.copy()
    missed[objects[objects >= 0]] = False
    counts = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    counts |= {"Miss": int(missed.sum()), "FP": int(wrong.sum()), "FN": int(unfound.sum())}

    # Of all the detections about an object that is not found, the best one would find it; the others are superfluous.
    about = np.flatnonzero(objects >= 0)
    about = about[~found[objects[about]]]
    finders = about[np.unique(objects[about], return_index=True)[1]]  # the best scores come first
    totals = scene.totals()
    base = _ap50(scene.labels, right, wrong, totals)
    costs = {}
    for kind, name in enumerate(KINDS):
        mended = kinds == kind
        labels, hits = scene.labels.copy(), right.copy()
        fixed = finders[mended[finders]]
        labels[fixed] = scene.dataset.labels[objects[fixed]]
        hits[fixed] = True
        costs[name] = _ap50(labels, hits, wrong & ~mended, totals) - base
    costs["Miss"] = _left(_ap50(scene.labels, right, wrong, scene.totals(missed))) - base
    costs["FP"] = _ap50(scene.labels, right, np.zeros_like(wrong), totals) - base
    costs["FN"] = _left(_ap50(scene.labels, right, wrong, scene.totals(unfound))) - base
    return Errors(kinds, objects, missed, counts, costs)


def _left(value: float) -> float:
    """The AP50 of the objects that are left; perfect if all are gone because nothing was found."""
    return 1.0 if math.isnan(value) else value


def _kinds(scene: Scene, wrong: Bools) -> tuple[Ints, Ints]:
    """The kind of each wrong detection, and the object that it is about."""
    labels = scene.dataset.labels
    counted = ~scene.dataset.ignore[scene.objects]
    same = counted & (labels[scene.objects] == scene.labels[scene.found])
    own, own_overlap = _nearest(scene, same)
    other, other_overlap = _nearest(scene, counted & ~same)
    kinds = np.full(len(wrong), _BOTH, dtype=np.int64)
    kinds[np.maximum(own_overlap, other_overlap) == 0] = _BKG
    kinds[own_overlap >= MATCH] = _DUPE  # the object has been found by a better detection
    kinds[other_overlap >= MATCH] = _CLS
    kinds[(own_overlap > 0) & (own_overlap < MATCH)] = _LOC
    kinds[~wrong] = -1
    objects = np.where(kinds == _LOC, own, np.where(kinds == _CLS, other, NO_CLASS))
    return kinds, objects


def _nearest(scene: Scene, use: Bools) -> tuple[Ints, Floats]:
    """The object that each detection overlaps most among the pairs to ``use``, and their IoU; −1 and 0 for none."""
    objects, overlaps = np.full(len(scene.scores), -1, dtype=np.int64), np.zeros(len(scene.scores))
    rows = np.flatnonzero(use)
    rows = rows[np.lexsort((-scene.objects[rows], scene.overlaps[rows]))]  # the last one written stays
    objects[scene.found[rows]] = scene.objects[rows]
    overlaps[scene.found[rows]] = scene.overlaps[rows]
    return objects, overlaps


def _ap50(labels: Ints, right: Bools, wrong: Bools, totals: Ints) -> float:
    """The mean over the classes with objects."""
    values = [
        precisions(right[mine], wrong[mine], int(totals[label])).mean() for label, mine in by_class(labels, totals)
    ]
    return mean(np.array(values))
