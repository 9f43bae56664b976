"""Match detections with objects as COCO does, for all images and classes of a dataset at once.

Every number of an analysis comes from this one matching, so that the numbers agree with each other. hotcoco computes
the COCO metrics (:mod:`retinanet.evaluation.coco_ap`), but an analysis needs more. hotcoco does not return the error of
each detection, it can leave out objects only by their area, and it counts detections in ignore regions as confusions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.detections import Detections
from retinanet.evaluation.limits import counted
from retinanet.overlaps import BoxIndex, pair_iou, shared_area

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# COCO's IoU thresholds.
THRESHOLDS = np.linspace(0.5, 0.95, 10)

# Pairs with an IoU below this are dropped. The value is TIDE's background threshold.
LEAST_OVERLAP = 0.1


@dataclass(frozen=True, eq=False)
class Scene:
    """The M objects of a dataset, D detections, and the P pairs of them that overlap.

    The detections are in COCO's matching order: highest score first, then by image id, then in the order given. A pair
    has an IoU of at least ``LEAST_OVERLAP``.

    Attributes:
        dataset: the dataset; its M boxes are the objects and the ignore regions.
        object_images: int64 ``(M,)``, the image of each object.
        images: int64 ``(D,)``, the image of each detection.
        boxes: float64 ``(D, 4)``, ``xyxy``.
        scores: float64 ``(D,)``.
        labels: int64 ``(D,)``.
        pair_detections: int64 ``(P,)``, the detection of each pair.
        pair_objects: int64 ``(P,)``, the object of each pair.
        pair_ious: float64 ``(P,)``; for an ignore region, the fraction of the detection inside it.
    """

    dataset: Dataset
    object_images: Ints
    images: Ints
    boxes: Floats
    scores: Floats
    labels: Ints
    pair_detections: Ints
    pair_objects: Ints
    pair_ious: Floats

    def totals(self, out: Bools | None = None) -> Ints:
        """Count the objects of each class, ``(K,)``, except ignore regions and the objects ``out`` ``(M,)``."""
        counted = ~self.dataset.ignore if out is None else ~(self.dataset.ignore | out)
        return np.bincount(self.dataset.labels[counted], minlength=len(self.dataset.classes))


@dataclass(frozen=True, eq=False)
class Matching:
    """True and false positives among D detections, at T IoU thresholds.

    A detection that is matched with an ignore region is neither a true nor a false positive.

    Attributes:
        objects: int64 ``(T, D)``, the object or ignore region that each detection is matched with; −1 for none.
        tp: bool ``(T, D)``, true positives.
        fp: bool ``(T, D)``, false positives.
    """

    objects: Ints
    tp: Bools
    fp: Bools


def make_scene(dataset: Dataset, predictions: Detections, limit: int | None = None) -> Scene:
    """Sort the detections, keep those that count, and compute the IoUs.

    ``limit`` is how many detections of each image and class count, those with the highest scores. Unset: see
    :func:`retinanet.evaluation.limits.counted`.
    """
    limit = counted(dataset) if limit is None else limit
    by_id = np.empty(len(dataset), dtype=np.int64)
    by_id[np.argsort(dataset.image_ids)] = np.arange(len(dataset))
    scores = predictions.scores.astype(np.float64)
    order = np.lexsort((by_id[predictions.images], -scores))  # stable
    group = predictions.images[order] * len(dataset.classes) + predictions.labels[order]
    order = order[_ranks(group) < limit]
    images, boxes = predictions.images[order], predictions.boxes[order].astype(np.float64)
    pair_detections, pair_objects, pair_ious = _overlapping_pairs(dataset, images, boxes)
    return Scene(
        dataset=dataset,
        object_images=np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets)),
        images=images,
        boxes=boxes,
        scores=scores[order],
        labels=predictions.labels[order],
        pair_detections=pair_detections,
        pair_objects=pair_objects,
        pair_ious=pair_ious,
    )


def match(
    scene: Scene, thresholds: Floats = THRESHOLDS, out: Bools | None = None, outside: Bools | None = None
) -> Matching:
    """Match each detection, highest score first, with the unmatched object of its class that has the highest IoU.

    This is COCO's matching.

    Args:
        scene: objects and detections.
        thresholds: ``(T,)``, the lowest IoU of a match.
        out: bool ``(M,)``, objects that do not count; detections are matched with them only if no other object fits.
        outside: bool ``(D,)``, detections that are not false positives if they match nothing.
    """
    ignored = scene.dataset.ignore if out is None else scene.dataset.ignore | out
    fits = _same_class(scene) | _without_class(scene)
    matched = _matched_objects(scene, thresholds, fits, ignored)
    return _matching(matched, ignored, outside)


def match_any_class(scene: Scene, threshold: float) -> Matching:
    """Match each detection, highest score first, with the unmatched object of any class that has the highest IoU.

    Among objects with the same IoU, an object of the detection's class is preferred. Ignore regions match only
    detections of their own class.
    """
    ignored, own = scene.dataset.ignore, _same_class(scene)
    fits = own | _without_class(scene) | ~ignored[scene.pair_objects]
    matched = _matched_objects(scene, np.array([threshold]), fits, ignored, own)
    return _matching(matched, ignored, None)


def neighbour_overlaps(scene: Scene) -> tuple[Floats, Floats]:
    """Compute the second highest IoU of each object ``(M,)`` and each detection ``(D,)`` with the objects of its image.

    The highest IoU is not used. For an object it is the IoU with itself. For a detection it is the IoU with the object
    that the detection belongs to. IoUs below
    ``LEAST_OVERLAP`` are returned as 0.
    """
    keep = ~scene.dataset.ignore[scene.pair_objects]
    detections = _second_highest(scene.pair_detections[keep], scene.pair_ious[keep], len(scene.scores))
    rows = np.flatnonzero(~scene.dataset.ignore)
    boxes, images = scene.dataset.boxes[rows].astype(np.float64), scene.object_images[rows]
    objects = np.zeros(len(scene.object_images))
    for one, other in BoxIndex(boxes, LEAST_OVERLAP, images).search(boxes, images).chunks():
        overlaps = np.where(one == other, 0, pair_iou(boxes[one], boxes[other]))
        np.maximum.at(objects, rows[one], overlaps)
    return np.where(objects < LEAST_OVERLAP, 0, objects), detections


def iou(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """Compute the IoU ``(D, G)`` of ``boxes`` ``(D, 4)`` and ``others`` ``(G, 4)``.

    For a crowd region, this is the fraction of the box inside the region.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    union = np.where(crowd, areas[:, None], areas[:, None] + other_areas - shared)
    result: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def _same_class(scene: Scene) -> Bools:
    """Mark the pairs of a detection and an object of its class, ``(P,)``."""
    return np.asarray(scene.dataset.labels[scene.pair_objects] == scene.labels[scene.pair_detections])


def _without_class(scene: Scene) -> Bools:
    """Mark the pairs of a detection and an ignore region for all classes, ``(P,)``."""
    return np.asarray(scene.dataset.labels[scene.pair_objects] == NO_CLASS)


def _matched_objects(
    scene: Scene, thresholds: Floats, fits: Bools, ignored: Bools, preferred: Bools | None = None
) -> Ints:
    """Find the object that each detection is matched with, int64 ``(T, D)``; −1 for none.

    Args:
        scene: objects and detections.
        thresholds: ``(T,)``, the lowest IoU of a match.
        fits: ``(P,)``, the pairs that may match.
        ignored: ``(M,)``, objects that do not count.
        preferred: ``(P,)``, pairs that win over others with the same IoU.
    """
    fits = fits & (scene.pair_ious >= min(thresholds))
    found, objects, ious = scene.pair_detections[fits], scene.pair_objects[fits], scene.pair_ious[fits]
    first = np.zeros(len(found), dtype=np.bool_) if preferred is None else preferred[fits]
    rank = _turns(found, objects, scene.dataset.ignore)
    # Sort so that the pairs of a detection are adjacent and its preferred object comes last. An object that counts is
    # preferred to an ignored object. Ties are resolved by the higher IoU, then by the detection's own class (two
    # classes may be annotated with the same box), then by the later object.
    order = np.lexsort((objects, first, ious, ~ignored[objects], found, rank))
    found, objects, rank = found[order], objects[order], rank[order]
    enough = ious[order] >= np.minimum(thresholds, 1 - 1e-10)[:, None]  # (T, P)

    crowd = scene.dataset.ignore
    matched = np.full((len(thresholds), len(scene.scores)), -1, dtype=np.int64)
    taken = np.zeros((len(thresholds), len(crowd)), dtype=np.bool_)
    starts = np.flatnonzero(np.diff(rank, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(rank)]):
        mine = objects[start:end]
        free = enough[:, start:end] & (crowd[mine] | ~taken[:, mine])
        firsts = np.flatnonzero(np.diff(found[start:end], prepend=-1))
        best = np.maximum.reduceat(np.where(free, np.arange(end - start), -1), firsts, axis=1)  # (T, detections)
        chosen = np.where(best >= 0, mine[best], -1)
        matched[:, found[start:end][firsts]] = chosen
        level, column = np.nonzero(best >= 0)
        taken[level, chosen[level, column]] = True
    return matched


def _matching(matched: Ints, ignored: Bools, outside: Bools | None) -> Matching:
    hit = matched >= 0
    tp = hit & ~ignored[matched] if len(ignored) else hit
    return Matching(matched, tp, ~hit if outside is None else ~hit & ~outside)


def _overlapping_pairs(dataset: Dataset, images: Ints, boxes: Floats) -> tuple[Ints, Ints, Floats]:
    """Find the detection, object and IoU of each pair with an IoU of at least ``LEAST_OVERLAP``."""
    truth = dataset.boxes.astype(np.float64)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    none = np.zeros(0, dtype=np.int64)
    parts = [(none, none, np.zeros(0))]
    for crowd in (False, True):
        rows = np.flatnonzero(dataset.ignore == crowd)
        index = BoxIndex(truth[rows], LEAST_OVERLAP, owner[rows])
        for detection, row in index.search(boxes, images, covered=crowd).chunks():
            pair = boxes[detection], truth[rows[row]]
            overlaps = shared_area(*pair) / (pair[0][:, 2:] - pair[0][:, :2]).prod(axis=1) if crowd else pair_iou(*pair)
            keep = overlaps >= LEAST_OVERLAP
            parts.append((detection[keep], rows[row[keep]], overlaps[keep]))
    found, objects, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((objects, found))
    return found[order], objects[order], values[order]


def _turns(found: Ints, objects: Ints, crowd: Bools) -> Ints:
    """Number the turns in which pairs of a detection and an object are matched, ``(P,)``.

    Detections that may compete for an object have different turns: the best detection is first. Competitors are
    connected by pairs. A crowd region may be matched many times, so nobody competes for it.
    """
    contested = ~crowd[objects]
    detections, things = found[contested], objects[contested]
    order = np.argsort(detections, kind="stable")
    detections, things = detections[order], things[order]
    group = np.arange(len(crowd))  # objects of a group are connected
    linked = detections[1:] == detections[:-1]
    ends = np.stack([things[1:][linked], things[:-1][linked]])  # (2, E)
    while len(ends.T) and (group[ends[0]] != group[ends[1]]).any():
        smaller, larger = np.sort(group[ends], axis=0)
        np.minimum.at(group, larger, smaller)
        group = _roots(group)
    alone, place = np.unique(found, return_inverse=True)  # the detections in a pair, in matching order
    of_detection = len(crowd) + np.arange(len(alone))
    of_detection[np.searchsorted(alone, detections)] = group[things]
    return _ranks(of_detection)[place]


def _roots(parents: Ints) -> Ints:
    """Follow the links from each element to its parent until they end."""
    while (parents[parents] != parents).any():
        parents = parents[parents]
    return parents


def _ranks(groups: Ints) -> Ints:
    """Number the elements of each group from 0, in the order given."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return ranks


def _second_highest(groups: Ints, values: Floats, count: int) -> Floats:
    """Find the second highest value of each of ``count`` groups; 0 where there is none."""
    order = np.lexsort((-values, groups))
    second = order[_ranks(groups[order]) == 1]
    result = np.zeros(count)
    result[groups[second]] = values[second]
    return result
