"""Kinds of errors and how much AP each kind costs, as TIDE defines them (Bolya et al., ECCV 2020, arXiv 2008.08115)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retinanet.data.dataset import NO_CLASS
from retinanet.evaluation.curves import by_class, mean, precisions
from retinanet.evaluation.error_kinds import ERROR_KINDS, TOTALS
from retinanet.evaluation.matching import Bools, Floats, Ints, Matching, Scene

# Kinds of false positives, in the order of ``Errors.kinds``. "Miss" is an error of an object, not of a detection.
KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg")
ALL_KINDS = (*ERROR_KINDS, *TOTALS)
_CLS, _LOC, _BOTH, _DUPE, _BKG = range(5)

# The lowest IoU of a match.
MATCH = 0.5


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors at an IoU of 0.5.

    Attributes:
        kinds: int64 ``(D,)``, index into ``KINDS`` for each false positive; −1 for other detections.
        objects: int64 ``(D,)``, the object that a detection with a wrong class or box belongs to; −1 for other
            detections.
        missed: bool ``(M,)``, objects without any detection, not even with an imprecise box or a wrong class.
        counts: number of errors of each of ``ALL_KINDS``.
        costs: by how much AP50 would rise if all errors of this kind, and no others, were corrected.
    """

    kinds: Ints
    objects: Ints
    missed: Bools
    counts: dict[str, int]
    costs: dict[str, float]


def find_errors(scene: Scene, matching: Matching) -> Errors:
    """Find the kind of each error of ``matching``, whose first threshold is ``MATCH``, and the cost of each kind."""
    tp, fp = matching.tp[0], matching.fp[0]
    kinds, objects = _kinds(scene, fp)
    found = np.zeros(len(scene.object_images), dtype=np.bool_)
    found[matching.objects[0][tp]] = True
    unfound = ~found & ~scene.dataset.ignore
    missed = unfound.copy()
    missed[objects[objects >= 0]] = False
    counts = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    counts |= {"Miss": int(missed.sum()), "FP": int(fp.sum()), "FN": int(unfound.sum())}

    # If an object is not found, correction makes its best detection a true positive and drops its other detections.
    about = np.flatnonzero(objects >= 0)
    about = about[~found[objects[about]]]
    finders = about[np.unique(objects[about], return_index=True)[1]]  # the highest scores come first
    totals = scene.totals()
    base = _ap50(scene.labels, tp, fp, totals)
    costs = {}
    for kind, name in enumerate(KINDS):
        corrected = kinds == kind
        labels, hits = scene.labels.copy(), tp.copy()
        fixed = finders[corrected[finders]]
        labels[fixed] = scene.dataset.labels[objects[fixed]]
        hits[fixed] = True
        costs[name] = _ap50(labels, hits, fp & ~corrected, totals) - base
    costs["Miss"] = _or_perfect(_ap50(scene.labels, tp, fp, scene.totals(missed))) - base
    costs["FP"] = _ap50(scene.labels, tp, np.zeros_like(fp), totals) - base
    costs["FN"] = _or_perfect(_ap50(scene.labels, tp, fp, scene.totals(unfound))) - base
    return Errors(kinds, objects, missed, counts, costs)


def _or_perfect(value: float) -> float:
    """The AP50 of the remaining objects; 1 if none remain because no object was found."""
    return 1.0 if math.isnan(value) else value


def _kinds(scene: Scene, fp: Bools) -> tuple[Ints, Ints]:
    """Find the kind of each false positive, and the object that it belongs to."""
    labels = scene.dataset.labels
    counted = ~scene.dataset.ignore[scene.pair_objects]
    same = counted & (labels[scene.pair_objects] == scene.labels[scene.pair_detections])
    own, own_iou = _nearest(scene, same)
    other, other_iou = _nearest(scene, counted & ~same)
    kinds = np.full(len(fp), _BOTH, dtype=np.int64)
    kinds[np.maximum(own_iou, other_iou) == 0] = _BKG
    kinds[own_iou >= MATCH] = _DUPE  # the object is matched with a better detection
    kinds[other_iou >= MATCH] = _CLS
    kinds[(own_iou > 0) & (own_iou < MATCH)] = _LOC
    kinds[~fp] = -1
    objects = np.where(kinds == _LOC, own, np.where(kinds == _CLS, other, NO_CLASS))
    return kinds, objects


def _nearest(scene: Scene, use: Bools) -> tuple[Ints, Floats]:
    """Find the object of highest IoU for each detection, among the pairs ``use``; −1 and 0 without an object."""
    objects, ious = np.full(len(scene.scores), -1, dtype=np.int64), np.zeros(len(scene.scores))
    rows = np.flatnonzero(use)
    rows = rows[np.lexsort((-scene.pair_objects[rows], scene.pair_ious[rows]))]  # the last assignment stays
    objects[scene.pair_detections[rows]] = scene.pair_objects[rows]
    ious[scene.pair_detections[rows]] = scene.pair_ious[rows]
    return objects, ious


def _ap50(labels: Ints, tp: Bools, fp: Bools, totals: Ints) -> float:
    """Compute the mean AP50 over the classes with objects."""
    values = [precisions(tp[mine], fp[mine], int(totals[label])).mean() for label, mine in by_class(labels, totals)]
    return mean(np.array(values))
